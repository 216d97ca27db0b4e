#!/usr/bin/env python3
"""Writes tests/data/names.json: what each layout calls every tensor of a tiny Wan.

The names come from running the projects themselves on tiny random models, not from a table:

* the original's from the state dicts of Wan-Video/Wan2.2 (`wan/modules`),
* the canonical ones by sending those through diffusers' own converter
  (`scripts/convert_wan_to_diffusers.py`); UMT5 has no converter, so its pairs are written down
  here, and all three parts must give the same output under both names,
* mlx-video's by its own sanitizers (`mlx_video/models/wan_2/convert.py`), which its own loaders
  must take back,
* llama.cpp's from the `gguf` package's tensor name map.

    golden_names.py --wan DIR --diffusers DIR --mlx-video DIR [--output FILE] [--part PART]

The three folders are checkouts. PART is written anew and the others stay; `vae22`, the VAE of Wan2.2
TI2V-5B, has no names of mlx-video's and needs no such folder. Needs torch, diffusers, transformers, accelerate, einops, ftfy,
gguf and mlx (`mlx[cpu]` on Linux).
"""

import argparse
import importlib.util
import json
import re
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

import torch
from torch.nn import functional

# Every width differs from every other, so that a wrong shape cannot pass for a right one.
EXPERT = dict(dim=24, ffn_dim=40, freq_dim=16, text_dim=20, in_dim=10, out_dim=3, num_heads=2, num_layers=2)
VAE = dict(dim=4, z_dim=6, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True])
VAE22 = dict(dim=4, dec_dim=6, z_dim=7, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True])
TEXT = dict(vocab=50, dim=24, dim_attn=32, dim_ffn=40, num_heads=4, num_layers=2, num_buckets=8)


def package(name, folder):
    """A package whose own __init__ is not run: those import half the world."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def file_module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomize(module, seed):
    """Random values everywhere, gains near one, so that every tensor matters to the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            gain = name.endswith("gamma") or (".norm" in f".{name}" and name.endswith("weight"))
            p.copy_(1 + 0.2 * noise if gain else noise * 0.4 / max(1, p[0].numel()) ** 0.5 if p.dim() > 1 else 0.2 * noise)
    return module.eval()


def tagged(state):
    """The same names and shapes, each tensor filled with a number of its own."""
    return {name: torch.full(t.shape, float(i)) for i, (name, t) in enumerate(state.items())}


def names_after(state, convert):
    """{new name: (old name, new shape)} of a conversion."""
    old = list(state)
    result = {}
    for name, t in convert(tagged(state)).items():
        values = set(t.flatten().tolist())
        assert len(values) == 1, name
        result[name] = (old[int(values.pop())], list(t.shape))
    assert len(result) == len(old), "the conversion is no bijection"
    return result


def same(what, a, b, tolerance):
    error = (a - b).abs().max().item() / a.abs().max().item()
    assert error < tolerance, f"{what}: the outputs differ by {error}"
    print(f"{what}: outputs agree to {error:.1e}, {tuple(a.shape)}", file=sys.stderr)


def sdpa(q, k, v, *_, **__):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def expert(wan, converter):
    from diffusers import WanTransformer3DModel

    original = randomize(wan.WanModel(model_type="t2v", text_len=7, **EXPERT), 1)
    wan.flash_attention = sdpa
    rename = converter.TRANSFORMER_KEYS_RENAME_DICT

    def convert(state):
        result = {}
        for name, t in state.items():
            for old, new in rename.items():
                name = name.replace(old, new)
            result[name] = t
        return result

    pairs = names_after(original.state_dict(), convert)
    canonical = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=EXPERT["num_heads"],
        attention_head_dim=EXPERT["dim"] // EXPERT["num_heads"],
        in_channels=EXPERT["in_dim"],
        out_channels=EXPERT["out_dim"],
        text_dim=EXPERT["text_dim"],
        freq_dim=EXPERT["freq_dim"],
        ffn_dim=EXPERT["ffn_dim"],
        num_layers=EXPERT["num_layers"],
    ).eval()
    canonical.load_state_dict(convert(original.state_dict()), strict=True)
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(EXPERT["in_dim"], 2, 4, 6, generator=generator)
    context = torch.randn(7, EXPERT["text_dim"], generator=generator)
    with torch.no_grad():
        time = torch.tensor([500])
        a = original([latents], time, [context], 12)[0]
        b = canonical(latents[None], time, context[None], return_dict=False)[0][0]
    same("expert", a, b, 1e-4)
    return original, pairs


def vae(wan, converter):
    from diffusers import AutoencoderKLWan

    original = randomize(wan.WanVAE_(attn_scales=[], **VAE), 3)
    tiny = lambda: AutoencoderKLWan(
        base_dim=VAE["dim"],
        z_dim=VAE["z_dim"],
        latents_mean=[0.0] * VAE["z_dim"],
        latents_std=[1.0] * VAE["z_dim"],
    )

    def convert(state):
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            torch.save(dict(state), file.name)
            with mock.patch.object(converter, "hf_hub_download", lambda *_: file.name), mock.patch.object(
                converter, "AutoencoderKLWan", tiny
            ):
                return converter.convert_vae().state_dict()

    pairs = names_after(original.state_dict(), convert)
    canonical = tiny().eval()
    canonical.load_state_dict(convert(original.state_dict()), strict=True)
    generator = torch.Generator().manual_seed(4)
    pixels = torch.rand(1, 3, 9, 16, 24, generator=generator) * 2 - 1
    scale = [torch.zeros(VAE["z_dim"]), torch.ones(VAE["z_dim"])]
    with torch.no_grad():
        a, b = original.encode(pixels, scale), canonical.encode(pixels).latent_dist.mode()
        same("VAE encoder", a, b, 1e-4)
        same("VAE decoder", original.decode(a, scale).clamp(-1, 1), canonical.decode(a).sample, 1e-4)
    return original, pairs


def vae22(wan, converter):
    from diffusers import AutoencoderKLWan

    original = randomize(wan.WanVAE_(attn_scales=[], **VAE22), 7)
    config = dict(
        converter.vae22_diffusers_config,
        base_dim=VAE22["dim"],
        decoder_base_dim=VAE22["dec_dim"],
        z_dim=VAE22["z_dim"],
        latents_mean=[0.0] * VAE22["z_dim"],
        latents_std=[1.0] * VAE22["z_dim"],
    )
    # The class does not know it any more.
    config.pop("clip_output", None)

    def convert(state):
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            torch.save(dict(state), file.name)
            with mock.patch.object(converter, "hf_hub_download", lambda *_: file.name), mock.patch.object(
                converter, "vae22_diffusers_config", config
            ):
                return converter.convert_vae_22().state_dict()

    pairs = names_after(original.state_dict(), convert)
    canonical = AutoencoderKLWan(**config).eval()
    canonical.load_state_dict(convert(original.state_dict()), strict=True)
    generator = torch.Generator().manual_seed(8)
    pixels = torch.rand(1, 3, 9, 32, 48, generator=generator) * 2 - 1
    scale = [torch.zeros(VAE22["z_dim"]), torch.ones(VAE22["z_dim"])]
    with torch.no_grad():
        a, b = original.encode(pixels, scale), canonical.encode(pixels).latent_dist.mode()
        same("Wan2.2 VAE encoder", a, b, 1e-4)
        same("Wan2.2 VAE decoder", original.decode(a, scale).clamp(-1, 1), canonical.decode(a).sample, 1e-4)
    return original, pairs


def text(wan):
    from transformers import UMT5Config, UMT5EncoderModel

    original = randomize(wan.T5Encoder(shared_pos=False, **TEXT), 5)
    block = r"^blocks\.(\d+)\."
    layer = r"encoder.block.\1.layer."
    rules = [
        (r"^token_embedding\.", "shared."),
        (r"^norm\.", "encoder.final_layer_norm."),
        (block + r"norm1\.", layer + "0.layer_norm."),
        (block + r"norm2\.", layer + "1.layer_norm."),
        (block + r"attn\.", layer + "0.SelfAttention."),
        (block + r"pos_embedding\.embedding\.", layer + "0.SelfAttention.relative_attention_bias."),
        (block + r"ffn\.gate\.0\.", layer + "1.DenseReluDense.wi_0."),
        (block + r"ffn\.fc1\.", layer + "1.DenseReluDense.wi_1."),
        (block + r"ffn\.fc2\.", layer + "1.DenseReluDense.wo."),
    ]

    def convert(state):
        result = {}
        for name, t in state.items():
            new = [re.sub(pattern, by, name) for pattern, by in rules if re.match(pattern, name)]
            assert len(new) == 1, name
            result[new[0]] = t
        return result

    pairs = names_after(original.state_dict(), convert)
    canonical = UMT5EncoderModel(
        UMT5Config(
            vocab_size=TEXT["vocab"],
            d_model=TEXT["dim"],
            d_kv=TEXT["dim_attn"] // TEXT["num_heads"],
            d_ff=TEXT["dim_ffn"],
            num_layers=TEXT["num_layers"],
            num_heads=TEXT["num_heads"],
            relative_attention_num_buckets=TEXT["num_buckets"],
            feed_forward_proj="gated-gelu",
        )
    ).eval()
    missing, unexpected = canonical.load_state_dict(convert(original.state_dict()), strict=False)
    assert set(missing) <= {"encoder.embed_tokens.weight"} and not unexpected, (missing, unexpected)
    ids = torch.randint(2, TEXT["vocab"], (1, 11), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        a = original(ids, torch.ones_like(ids))
        b = canonical(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    same("text encoder", a, b, 1e-4)
    return original, pairs


def mlx_names(original, sanitize, loaded_names):
    """{original name: (mlx-video's name, its shape)}; its model must take exactly these."""
    import mlx.core as mx
    import numpy as np

    def convert(state):
        arrays = sanitize({name: mx.array(t.numpy()) for name, t in state.items()})
        return {name: torch.from_numpy(np.array(t)) for name, t in arrays.items()}

    pairs = names_after(original.state_dict(), convert)
    expected = loaded_names()
    found = {name: shape for name, (_, shape) in pairs.items()}
    assert expected == found, {k: (expected.get(k), found.get(k)) for k in expected | found if expected.get(k) != found.get(k)}
    return {old: (new, shape) for new, (old, shape) in pairs.items()}


def parameters(model, without=()):
    from mlx.utils import tree_flatten

    return {k: list(v.shape) for k, v in tree_flatten(model.parameters()) if k not in without}


def mlx_models():
    from mlx_video.models.wan_2 import convert
    from mlx_video.models.wan_2.config import WanModelConfig
    from mlx_video.models.wan_2.text_encoder import T5Encoder
    from mlx_video.models.wan_2.vae import Decoder3d, Encoder3d, WanVAE
    from mlx_video.models.wan_2.wan_2 import WanModel

    def wan_vae():
        # Its widths are constants; everything else is the class's own.
        model = WanVAE(z_dim=VAE["z_dim"], encoder=True)
        model.decoder = Decoder3d(dim=VAE["dim"], z_dim=VAE["z_dim"])
        model.encoder = Encoder3d(dim=VAE["dim"], z_dim=2 * VAE["z_dim"])
        return parameters(model, ("mean", "std", "inv_std"))

    t5 = dict(vocab_size=TEXT["vocab"], **{k: v for k, v in TEXT.items() if k != "vocab"})
    return {
        "expert": (convert.sanitize_wan_transformer_weights, lambda: parameters(WanModel(WanModelConfig(**EXPERT)), ("freqs",))),
        "vae": (convert.sanitize_wan_vae_weights, wan_vae),
        "text": (convert.sanitize_wan_t5_weights, lambda: parameters(T5Encoder(shared_pos=False, **t5))),
    }


def llama_name(canonical):
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, TEXT["num_layers"])
    return names.get_name(canonical, try_suffixes=(".weight",))


def rows(original, pairs, mlx, extra=lambda _: None):
    """Lines "canonical original mlx-video [llama.cpp] weight:SHAPE[>MLX SHAPE] bias:SHAPE", one a
    module; "=" for the name before."""
    state = original.state_dict()
    modules = {}
    for canonical, (old, shape) in pairs.items():
        assert list(state[old].shape) == shape, f"{canonical}: {shape}, but {old}: {state[old].shape}"
        new, new_shape = mlx[old] if mlx else (old, shape)
        names = [canonical, old] + ([new] if mlx else []) + ([extra(canonical)] if extra(canonical) else [])
        leaf = canonical.rpartition(".")[2]
        if leaf in ("weight", "bias", "gamma"):
            assert all(n.endswith("." + leaf) for n in names), names
            names = [n[: -len(leaf) - 1] for n in names]
        else:
            leaf = ""
        text = "x".join(map(str, shape)) + (">" + "x".join(map(str, new_shape)) if new_shape != shape else "")
        modules.setdefault(tuple(names), []).append(f"{leaf}:{text}")
    lines = []
    for names, leaves in sorted(modules.items()):
        shown = [names[0]] + ["=" if n == names[i] else n for i, n in enumerate(names[1:])]
        lines.append(" ".join(shown + leaves))
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wan", type=Path, required=True)
    parser.add_argument("--diffusers", type=Path, required=True)
    parser.add_argument("--mlx-video", type=Path)
    parser.add_argument("--part", choices=["expert", "vae", "vae22", "text"])
    default = Path(__file__).resolve().parent.parent / "tests/data/names.json"
    parser.add_argument("--output", type=Path, default=default)
    args = parser.parse_args()

    package("wan", args.wan / "wan")
    package("wan.modules", args.wan / "wan/modules")
    if args.part != "vae22":
        package("mlx_video", args.mlx_video / "mlx_video")
        package("mlx_video.models", args.mlx_video / "mlx_video/models")
        package("mlx_video.models.ltx_2", args.mlx_video / "mlx_video/models/ltx_2")
        package("mlx_video.models.wan_2", args.mlx_video / "mlx_video/models/wan_2")
    # A default argument there asks for the current GPU when the module is imported.
    with mock.patch.object(torch.cuda, "current_device", lambda: 0):
        from wan.modules import model as wan_model, t5 as wan_t5, vae2_1 as wan_vae, vae2_2 as wan_vae22

    converter = file_module("converter", args.diffusers / "scripts/convert_wan_to_diffusers.py")
    mlx = {} if args.part == "vae22" else mlx_models()
    golden = json.loads(args.output.read_text()) if args.part else {}
    for part, build in {
        "expert": lambda: expert(wan_model, converter),
        "vae": lambda: vae(wan_vae, converter),
        "vae22": lambda: vae22(wan_vae22, converter),
        "text": lambda: text(wan_t5),
    }.items():
        if args.part and part != args.part:
            continue
        original, pairs = build()
        names = mlx_names(original, *mlx[part]) if part in mlx else None
        golden[part] = rows(original, pairs, names, llama_name if part == "text" else lambda _: None)
        print(f"{part}: {len(pairs)} tensors, {len(golden[part])} modules", file=sys.stderr)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(golden, indent=0) + "\n")
    print(f"{args.output}: {args.output.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
