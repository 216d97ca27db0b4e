"""README: writes tests/golden: every case's configs, manifest, picture and reference tensors. See README.md.

usage: make.py OUTPUT [CASE ...]      CASE: a, b, c, d, vae22, vae22_odd, vae_upscale, adapters or common;
                                      all without one
"""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from PIL import Image
from safetensors.numpy import save_file

import adapters
import models
import portable
import schedule
from cases import CASES, STEPS, VAE_CASES, Case, VaeCase

TEXT_LEN = 512
BOUNDARY = 900
TIMES = (999, 937, 500, 1, 0)
DIT_TIME = 937
DISTILLED = (1.0, 0.9375, 0.83333, 0.625)  # sigmas of four-step models, shift 5
LATENT_SCALE = 1.7  # uniform in +-1.7 has about the variance of a normalised latent
IDS = {"short": 7, "medium": 23, "long": 150}
# The whole run's prompts. A long negative prompt is what Wan has by default, and at these sizes it makes
# cond and uncond differ by 13 to 21 %; two short ones drown in the padding (4 to 7 %).
PROMPT, NEGATIVE = "medium", "long"


class Sinusoid(torch.nn.Module):
    """The time sinusoid in float64, as Wan2.2 computes it (diffusers does it in float32, up to 4e-5 away)."""

    def __init__(self, channels: int):
        super().__init__()
        self.half = channels // 2

    def forward(self, timesteps):
        exponent = torch.arange(self.half, dtype=torch.float64) / self.half
        angle = timesteps.double()[:, None] * 10000.0**-exponent
        return torch.cat([angle.cos(), angle.sin()], dim=1).float()


def _tensor(case: Case, name: str, shape, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(portable.input(case.name, name, shape, scale))[None]


def _statistics(vae) -> tuple[torch.Tensor, torch.Tensor]:
    view = (1, -1, 1, 1, 1)
    return torch.tensor(vae.config.latents_mean).view(view), torch.tensor(vae.config.latents_std).view(view)


def _encode(vae, video) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, normalised mean) of a video [1, 3, F, H, W]. The reference multiplies by 1 / std."""
    mean, std = _statistics(vae)
    latents = vae.encode(video).latent_dist.mode()
    return latents, (latents - mean) * (1.0 / std)


def _decode(vae, latents) -> torch.Tensor:
    """Frames [1, 3, F, H, W] of normalised latents, not clamped."""
    mean, std = _statistics(vae)
    with mock.patch("torch.clamp", lambda x, **_: x):
        return vae.decode(latents / (1.0 / std) + mean).sample


def _bytes(video) -> torch.Tensor:
    """[1, 3, F, H, W] in -1..1 to 8-bit frames [F, H, W, 3], rounding half to even."""
    pixels = torch.round((video / 2 + 0.5).clamp(0, 1) * 255)
    return pixels.to(torch.uint8)[0].permute(1, 2, 3, 0).contiguous()


def text(case: Case, net: models.Models, out: dict) -> dict[str, torch.Tensor]:
    """UMT5 outputs; returns contexts [1, 512, text_dim], zero after the real tokens."""
    contexts = {}
    for name, count in IDS.items():
        ids = portable.token_ids(case.name, f"umt5.{name}", count)
        out[f"umt5/ids_{name}"] = ids
        batch = torch.from_numpy(ids).long()[None]
        hidden = net.text_encoder(batch, attention_mask=torch.ones_like(batch)).last_hidden_state
        out[f"umt5/out_{name}"] = hidden[0]
        contexts[name] = torch.nn.functional.pad(hidden, (0, 0, 0, TEXT_LEN - count))
        padded = torch.nn.functional.pad(batch, (0, TEXT_LEN - count))
        masked = net.text_encoder(padded, attention_mask=(torch.arange(TEXT_LEN) < count).long()[None])
        difference = (masked.last_hidden_state[:, :count] - hidden).abs().max()
        print(f"{case.name}: umt5 {name}: padded with mask differs by {difference:.1e}")
    return contexts


def autoencoder(case: Case, net: models.Models, out: dict) -> None:
    video = _tensor(case, "vae.video", (3, case.frames, case.height, case.width))
    mean, normalised = _encode(net.vae, video)
    out["vae/mean"], out["vae/mean_normalised"] = mean[0], normalised[0]
    decoded = _decode(net.vae, _tensor(case, "vae.latents", case.latent_shape, LATENT_SCALE))
    out["vae/decoded"] = decoded[0][:, list(case.float_frames)]
    out["vae/decoded_u8"] = _bytes(decoded)
    print(f"{case.name}: vae: mean std {mean.std():.2f}, decoded std {decoded.std():.2f}, "
          f"{(decoded.abs() > 1).float().mean():.1%} beyond the clamp")  # fmt: skip


def condition(case: Case, net: models.Models, out: dict) -> torch.Tensor:
    """y [1, 20, T, h, w] of the start picture: mask, then normalised latents."""
    pixels = torch.from_numpy(portable.picture(case.name, case.height, case.width))
    image = pixels.permute(2, 0, 1).float() / 127.5 - 1
    video = torch.zeros(1, 3, case.frames, case.height, case.width)
    video[0, :, 0] = image
    mask = torch.zeros(1, 4, *case.latent_shape[1:])
    mask[:, :, 0] = 1
    y = torch.cat([mask, _encode(net.vae, video)[1]], dim=1)
    out["condition/y"] = y[0]
    return y


def condition_of_both(case: Case, net: models.Models) -> torch.Tensor:
    """As `condition`, of the start picture and, as the last one, the same upside down; diffusers' own."""
    pixels = torch.from_numpy(portable.picture(case.name, case.height, case.width))
    first = (pixels.permute(2, 0, 1).float() / 127.5 - 1)[None]
    pipeline = WanImageToVideoPipeline(None, None, net.vae, UniPCMultistepScheduler(), boundary_ratio=BOUNDARY / 1000)
    return pipeline.prepare_latents(
        first, 1, 16, case.height, case.width, case.frames, torch.float32, torch.device("cpu"),
        latents=torch.zeros(1, *case.latent_shape), last_image=first.flip(2),
    )[1]  # fmt: skip


def rope(case: Case, net: models.Models, out: dict) -> None:
    cos, sin = net.high.rope(torch.empty(1, 36, *case.latent_shape[1:]))
    out["rope/cos"], out["rope/sin"] = cos[0, :, 0, 0::2], sin[0, :, 0, 1::2]
    heads, head_dim = case.dit["num_attention_heads"], case.dit["attention_head_dim"]
    q = _tensor(case, "rope.q", (cos.shape[1], heads, head_dim))
    # Wan2.2 rotates complex numbers in float64.
    rotation = torch.complex(cos[..., 0::2].double(), sin[..., 1::2].double())
    rotated = torch.view_as_complex(q.double().unflatten(-1, (-1, 2))) * rotation
    out["rope/q_rotated"] = torch.view_as_real(rotated).flatten(-2).float()[0]


def _capture(module, kept: list):
    return module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))


def transformer(case: Case, label: str, dit, context, tokens: int, out: dict) -> None:
    """Parts and whole of one expert at DIT_TIME on generated latents and the medium text."""
    embedder = dit.condition_embedder
    times = torch.tensor(TIMES)
    temb, projection, _, _ = embedder(times, context.expand(len(TIMES), -1, -1))
    out["time/t"], out["time/sinusoid"] = times.int(), embedder.timesteps_proj(times)
    out[f"time/{label}/temb"], out[f"time/{label}/projection"] = temb, projection

    kept = {name: [] for name in ("patch", "text", "k", "v", "block0")}
    attention = dit.blocks[0].attn2
    modules = dict(patch=dit.patch_embedding, text=embedder.text_embedder, k=attention.norm_k, v=attention.to_v,
                   block0=dit.blocks[0])  # fmt: skip
    hooks = [_capture(module, kept[name]) for name, module in modules.items()]
    hidden = _tensor(case, "dit.hidden", (36, *case.latent_shape[1:]), LATENT_SCALE)
    output = dit(hidden, torch.tensor([DIT_TIME]), context).sample
    for hook in hooks:
        hook.remove()

    out[f"dit/{label}/patches"] = kept["patch"][0][0].flatten(1).T
    # All rows from ``tokens`` on are equal, so the first of them stands for the padding.
    rows = slice(0, tokens + 1)
    out[f"dit/{label}/text"] = kept["text"][0][0, rows]
    out[f"dit/{label}/cross_k"], out[f"dit/{label}/cross_v"] = kept["k"][0][0, rows], kept["v"][0][0, rows]
    if case.detail:
        out[f"dit/{label}/block0"] = kept["block0"][0][0]
    out[f"dit/{label}/output"] = output[0]

    if label == "high":
        count = kept["patch"][0][0, 0].numel()
        features = _tensor(case, "unpatchify.features", (count, 64))
        hook = dit.proj_out.register_forward_hook(lambda *_: features)
        out["dit/unpatchified"] = dit(hidden, torch.tensor([DIT_TIME]), context).sample[0]
        hook.remove()


def denoise(case: Case, net: models.Models, y, contexts, noise) -> tuple[torch.Tensor, dict]:
    """The guided run: final latents [1, 16, T, h, w] and {"x", "cond", "uncond"} of every step."""
    solver = schedule.scheduler("unipc", STEPS, case.shift)
    low, high = case.guide
    x, kept = noise, {"x": [], "cond": [], "uncond": []}
    for t in solver.timesteps:
        expert, guide = (net.high, high) if t >= BOUNDARY else (net.low, low)
        model_input = torch.cat([x, y], dim=1)
        cond = expert(model_input, t[None], contexts[PROMPT]).sample
        uncond = expert(model_input, t[None], contexts[NEGATIVE]).sample
        x = solver.step(uncond + guide * (cond - uncond), t, x, return_dict=False)[0]
        for name, value in (("x", x), ("cond", cond), ("uncond", uncond)):
            kept[name].append(value[0])
    return x, kept


def run(case: Case, net: models.Models, y, contexts, out: dict) -> None:
    noise = torch.randn(1, *case.latent_shape, generator=torch.Generator().manual_seed(case.seed))
    latents, kept = denoise(case, net, y, contexts, noise)
    out["run/noise"] = noise[0]
    out["run/latents"] = latents[0]
    out["run/frames_u8"] = _bytes(_decode(net.vae, latents))
    if case.steps_kept:
        out |= {f"run/steps/{name}": torch.stack(values) for name, values in kept.items()}

    cond, uncond = (torch.stack(kept[name]) for name in ("cond", "uncond"))
    moved, _ = denoise(case, net, y, contexts, noise * (1 + 1e-6))
    experts = schedule.schedule("unipc", STEPS, case.shift)[0] >= BOUNDARY
    print(f"{case.name}: run: {experts.sum()} steps high, {(~experts).sum()} low; latents std {latents.std():.2f}; "
          f"|cond - uncond| / |cond| {(cond - uncond).norm() / cond.norm():.3f}; "
          f"noise * (1 + 1e-6) moves the latents by {(moved - latents).abs().max():.1e}")  # fmt: skip


def make_case(case: Case, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        net, manifest = models.build(case, Path(scratch))
        for config in models.CONFIGS:
            (folder / config).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(scratch) / config, folder / config)
        shards = models.shards(Path(scratch))
    for dit in (net.high, net.low):
        dit.condition_embedder.timesteps_proj = Sinusoid(case.dit["freq_dim"])

    out: dict = {}
    contexts = text(case, net, out)
    autoencoder(case, net, out)
    y = condition(case, net, out)
    rope(case, net, out)
    for label, dit in (("high", net.high), ("low", net.low)):
        transformer(case, label, dit, contexts["medium"], IDS["medium"], out)
    run(case, net, y, contexts, out)

    Image.fromarray(portable.picture(case.name, case.height, case.width)).save(folder / "start.png", optimize=True)
    settings = dict(
        frames=case.frames, height=case.height, width=case.width, steps=STEPS, shift=case.shift, seed=case.seed,
        guide_low=case.guide[0], guide_high=case.guide[1], boundary=BOUNDARY, float_frames=case.float_frames,
    )  # fmt: skip
    _write_json(folder / "case.json", settings)
    _write_json(folder / "manifest.json", manifest)
    if shards:
        _write_json(folder / "shards.json", shards)
    _write_tensors(folder / "golden.safetensors", out)
    if case.frames > 1:
        _write_tensors(folder / "both_ends.safetensors", {"condition/y": condition_of_both(case, net)[0]})


def make_vae(case: VaeCase, folder: Path) -> None:
    """A VAE alone: means of its video and of the first frame, and decoded latents."""
    with tempfile.TemporaryDirectory() as scratch:
        vae, manifest = models.build_vae(case, Path(scratch))
        (folder / "vae").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(scratch) / "vae/config.json", folder / "vae/config.json")
    video = _tensor(case, "vae.video", (3, case.frames, case.height, case.width))
    mean, normalised = _encode(vae, video)
    out = {"vae/mean": mean[0], "vae/mean_normalised": normalised[0], "vae/mean_of_one": _encode(vae, video[:, :, :1])[0][0]}
    decoded = _decode(vae, _tensor(case, "vae.latents", mean[0].shape, LATENT_SCALE))
    if vae.config.patch_size is None and vae.config.out_channels > 3:
        frames = torch.nn.functional.pixel_shuffle(decoded[0].transpose(0, 1), 2)
        decoded = frames.transpose(0, 1)[None]
    out["vae/decoded"] = decoded[0][:, list(case.float_frames)]
    out["vae/decoded_u8"] = _bytes(decoded)
    print(f"{case.name}: mean std {mean.std():.2f}, decoded std {decoded.std():.2f}, "
          f"{(decoded.abs() > 1).float().mean():.1%} beyond the clamp")  # fmt: skip
    settings = dict(frames=case.frames, height=case.height, width=case.width, float_frames=case.float_frames)
    _write_json(folder / "case.json", settings)
    _write_json(folder / "manifest.json", manifest)
    _write_tensors(folder / "golden.safetensors", out)


def distilled(case: Case, net: models.Models, y, context, noise) -> torch.Tensor:
    """Final latents of a run as step-distilled adapters have it: Euler, no guidance, experts by step,
    timesteps that are no integers."""
    x = noise
    for i, (sigma, following) in enumerate(zip(DISTILLED, [*DISTILLED[1:], 0.0])):
        expert = net.high if i < 2 else net.low
        t = torch.tensor([1000 * sigma], dtype=torch.float64)
        velocity = expert(torch.cat([x, y], dim=1), t, context).sample
        x = x + (following - sigma) * velocity
    return x


def make_adapters(folder: Path) -> None:
    """Forwards and runs with adapters in every form."""
    case = next(case for case in CASES if case.name == adapters.CASE)
    with tempfile.TemporaryDirectory() as scratch:
        net, _ = models.build(case, Path(scratch))
    for dit in (net.high, net.low):
        dit.condition_embedder.timesteps_proj = Sinusoid(case.dit["freq_dim"])
    out: dict = {}
    contexts, y = text(case, net, {}), condition(case, net, {})
    hidden = _tensor(case, "dit.hidden", (36, *case.latent_shape[1:]), LATENT_SCALE)
    noise = torch.randn(1, *case.latent_shape, generator=torch.Generator().manual_seed(case.seed))

    def outputs(net: models.Models) -> list[torch.Tensor]:
        return [dit(hidden, torch.tensor([DIT_TIME]), contexts["medium"]).sample[0] for dit in (net.high, net.low)]

    plain = outputs(net)
    forms = adapters.Forms(net.high).all_forms()
    for form, files in forms.items():
        with tempfile.TemporaryDirectory() as scratch:
            changed = adapters.with_adapters(net, form, files, Path(scratch))
        for label, before, after in zip(("high", "low"), plain, outputs(changed)):
            out[f"{form}/{label}/output"] = after
            print(f"{form}: {label}: moves the output by {(after - before).norm() / before.norm():.1%}")
        if form == "two":
            out["two/latents"] = denoise(case, changed, y, contexts, noise)[0][0]
        if form == "original":
            out["original/distilled"] = distilled(case, changed, y, contexts[PROMPT], noise)[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "forms.json").write_text(_lines(adapters.described(forms)))
    _write_tensors(folder / "golden.safetensors", out)


def _lines(value) -> str:
    """JSON with a shape on its name's line."""
    return re.sub(r"\n\s+(?=-?\d|\])", " ", json.dumps(value, indent=1)) + "\n"


def make_common(folder: Path) -> None:
    """Schedules, solver trajectories, and rows of the 14B's RoPE table."""
    out = schedule.tensors()
    rows = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 2, 3), (7, 11, 30), (20, 29, 51), (20, 44, 79)]
    cos, sin = WanRotaryPosEmbed(128, (1, 2, 2), 1024)(torch.empty(1, 16, 21, 90, 160))
    at = [(f * 45 + h) * 80 + w for f, h, w in rows]
    out["rope_14b/positions"] = np.array(rows, dtype=np.int32)
    out["rope_14b/cos"], out["rope_14b/sin"] = cos[0, at, 0, 0::2], sin[0, at, 0, 1::2]
    folder.mkdir(parents=True, exist_ok=True)
    _write_tensors(folder / "golden.safetensors", out)


def _write_json(path: Path, value) -> None:
    """Objects of scalars and short lists stay on one line each: a manifest has a line per tensor."""
    lines = json.dumps(value)
    if isinstance(value, dict) and all(isinstance(v, dict) for v in value.values()):
        groups = []
        for name, group in value.items():
            body = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in group.items())
            groups.append(f"  {json.dumps(name)}: {{\n{body}\n  }}")
        lines = "{\n" + ",\n".join(groups) + "\n}"
    path.write_text(lines + "\n")


def _write_tensors(path: Path, tensors: dict) -> None:
    arrays = {}
    for name in sorted(tensors):
        value = tensors[name]
        array = np.ascontiguousarray(value.numpy() if isinstance(value, torch.Tensor) else value)
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise RuntimeError(f"{path}: {name} is not finite")
        arrays[name] = array
    save_file(arrays, path)
    print(f"{path}: {len(arrays)} tensors, {path.stat().st_size} bytes")


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    output, wanted = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("highest")
    for case in CASES:
        if not wanted or case.name in wanted:
            folder = output / case.name
            folder.mkdir(parents=True, exist_ok=True)
            make_case(case, folder)
    for case in VAE_CASES:
        if not wanted or case.name in wanted:
            make_vae(case, output / case.name)
    if not wanted or "adapters" in wanted:
        make_adapters(output / "adapters")
    if not wanted or "common" in wanted:
        make_common(output / "common")


if __name__ == "__main__":
    main()
