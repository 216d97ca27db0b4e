"""README: the family's other models: TI2V-5B's kind, T2V-A14B's, Wan2.1's I2V and FLF2V, and CLIP's vision encoder.

Each run is diffusers' own pipeline, given Wan2.2's UniPC schedule and the embeddings that are stored. What an error
costs is measured too: faults.json has the relative error (largest difference over largest value) of each.

usage: family.py OUTPUT [CASE ...]      CASE: ti2v, t2v, i2v21, flf2v, clip or sizes; all without one
"""

import copy
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel
from transformers.activations import ACT2FN

import make
import models
import portable
import schedule
from cases import CASES, Case, _dit, _vae

STEM = "family"
TEXT = CASES[1].umt5  # case b's
VAE = _vae(base=12, dim_mult=[1, 2, 4, 4], blocks=2)
# The latents' statistics are those of the published vae/config.json of Wan2.2-TI2V-5B.
VAE22 = dict(
    base_dim=8, decoder_base_dim=12, z_dim=48, dim_mult=[1, 2, 4, 4], num_res_blocks=2, is_residual=True,
    temperal_downsample=[False, True, True], in_channels=12, out_channels=12, patch_size=2,
    scale_factor_spatial=16, scale_factor_temporal=4,
    latents_mean=[
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ],
    latents_std=[
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ],
)  # fmt: skip
# Heads of 80, as ViT-H/14 has, since the original file does not say how many there are.
CLIP = dict(
    hidden_size=160, num_attention_heads=2, num_hidden_layers=3, intermediate_size=640, image_size=56, patch_size=14,
    hidden_act="gelu", layer_norm_eps=1e-5, projection_dim=96,
)  # fmt: skip
CLIP_TOKENS = (CLIP["image_size"] // CLIP["patch_size"]) ** 2 + 1
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_PICTURE = (97, 131)
FAST = (1.0, 0.757, 0.522)  # sigmas of FastWan's timesteps 1000, 757, 522
AREA = 704 * 1280
# Width and height of pictures: wide, high, square, a panorama, a strip, smaller than the clip, the clip's own size.
PICTURES = [(1920, 1080), (1080, 1920), (1000, 1000), (4096, 1024), (300, 2000), (333, 251), (1280, 704),
            (704, 1280), (1601, 901)]  # fmt: skip


@dataclass(frozen=True)
class Member(Case):
    """A case whose latents and boundary are its own. ``boundary`` 0 is one expert for every step."""

    channels: int = 16
    stride: int = 8
    boundary: int = 0
    steps: int = 6
    experts: tuple[str, ...] = ("high",)

    @property
    def latent_shape(self):
        return (self.channels, self.latent_frames, self.height // self.stride, self.width // self.stride)


def _member(name, heads, ffn, channels=16, inputs=None, image=False, ends=False, **rest) -> Member:
    dit = _dit(heads=heads, head_dim=128, layers=2, ffn=ffn, freq=32, text=TEXT["d_model"])
    dit |= dict(in_channels=inputs or channels, out_channels=channels)
    if image:
        # As published: the projection has made the image's rows as wide as the network.
        dit |= dict(image_dim=CLIP["hidden_size"], added_kv_proj_dim=heads * 128)
    if ends:
        dit |= dict(pos_embed_seq_len=2 * CLIP_TOKENS)
    return Member(name=f"{STEM}/{name}", dit=dit, umt5=TEXT, float_frames=(0, 1), channels=channels, **rest)


MEMBERS = [
    _member("ti2v", heads=2, ffn=184, channels=48, stride=16, vae=VAE22, frames=9, height=96, width=64, seed=11,
            shift=5.0, guide=(5.0, 5.0)),
    _member("t2v", heads=1, ffn=200, vae=VAE, frames=9, height=48, width=32, seed=12, shift=12.0, guide=(3.0, 4.0),
            boundary=875, steps=8, experts=("high", "low")),
    _member("i2v21", heads=2, ffn=168, inputs=36, image=True, vae=VAE, frames=5, height=48, width=80, seed=13,
            shift=3.0, guide=(5.0, 5.0)),
    _member("flf2v", heads=1, ffn=216, inputs=36, image=True, ends=True, vae=VAE, frames=9, height=32, width=48,
            seed=14, shift=16.0, guide=(5.0, 5.0)),
]  # fmt: skip


class Net:
    """A member's networks with portable weights, and the folder that diffusers saves them in."""

    def __init__(self, case: Member, scratch: Path):
        self.case = case
        dits = {"high": "transformer", "low": "transformer_2"}
        self.parts = {dits[e]: WanTransformer3DModel(**case.dit) for e in case.experts}
        self.parts["vae"] = AutoencoderKLWan(**case.vae)
        config = UMT5Config(**case.umt5, architectures=["UMT5EncoderModel"])
        self.parts["text_encoder"] = UMT5EncoderModel(config)
        if case.dit["image_dim"]:
            self.parts["image_encoder"] = CLIPVisionModel(CLIPVisionConfig(**CLIP))
        self.vae, self.text_encoder = self.parts["vae"], self.parts["text_encoder"]
        self.high, self.low = self.parts["transformer"], self.parts.get("transformer_2")
        pipeline = self.pipeline(tokenizer=T5Tokenizer(), text_encoder=self.text_encoder)
        pipeline.save_pretrained(scratch)
        self.manifest = {part: models._saved_tensors(scratch / part) for part in self.parts}
        for part, module in self.parts.items():
            if part == "image_encoder":
                self.manifest[part] = clip_fill(module, case.name, self.manifest[part])
            else:
                models._fill(module, case.name, part, self.manifest[part])
        for expert in case.experts:
            getattr(self, expert).condition_embedder.timesteps_proj = make.Sinusoid(case.dit["freq_dim"])

    def pipeline(self, image=False, high=None, solver=None, boundary=None, tokenizer=None, text_encoder=None):
        """diffusers' pipeline of this model. ``image``: the one that takes a picture."""
        case, name = self.case, self.case.name.removeprefix(f"{STEM}/")
        expand = name == "ti2v"
        rest = dict(tokenizer=tokenizer, text_encoder=text_encoder, vae=self.vae, transformer=high or self.high,
                    scheduler=solver or scheduler_config(name), expand_timesteps=expand)  # fmt: skip
        if case.boundary:
            rest |= dict(transformer_2=self.low, boundary_ratio=(boundary or case.boundary) / 1000)
        # TI2V's folder says WanPipeline, whether there is a picture or not.
        if not (case.dit["image_dim"] or image):
            pipeline = WanPipeline(**rest)
        else:
            encoder = self.parts.get("image_encoder")
            processor = clip_processor() if encoder is not None else None
            pipeline = WanImageToVideoPipeline(**rest, image_encoder=encoder, image_processor=processor)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def scheduler_config(name: str):
    shift = dict(ti2v=5.0, flf2v=16.0).get(name, 3.0)
    return models.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )


def solver(case: Member):
    """The case's schedule, which the pipeline cannot set again."""
    result = schedule.scheduler("unipc", case.steps, case.shift)
    result.set_timesteps = lambda *_, **__: None
    return result


def error(found, expected) -> float:
    """As the tests measure: the largest difference over the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def run(net: Net, contexts, noise, image=None, last=None, tokens=None, high=None, guide=None, boundary=None) -> dict:
    """The guided run: final latents, and x, cond and uncond of every step; ``condition`` where there is one."""
    case = net.case
    pipeline = net.pipeline(image is not None, high=high, solver=solver(case), boundary=boundary)
    kept = {"x": [], "outputs": [], "condition": []}

    def after_step(_pipeline, _step, _t, values):
        kept["x"].append(values["latents"][0])
        return values

    low, top = guide or case.guide
    rest = dict(guidance_scale=top, guidance_scale_2=low) if case.boundary else dict(guidance_scale=top)
    experts = {high or net.high, net.low} - {None}
    hooks = [e.register_forward_hook(lambda _m, _i, output: kept["outputs"].append(output[0][0])) for e in experts]
    if image is not None:
        prepare = pipeline.prepare_latents
        rest |= dict(image=image, last_image=last)

        def prepared(*args, **kwargs):
            found = prepare(*args, **kwargs)
            kept["condition"].append(found[1][0])
            return found

        pipeline.prepare_latents = prepared
        pipeline.encode_image = lambda *_: tokens
    latents = pipeline(
        height=case.height, width=case.width, num_frames=case.frames, num_inference_steps=case.steps,
        latents=noise, prompt_embeds=contexts[make.PROMPT], negative_prompt_embeds=contexts[make.NEGATIVE],
        output_type="latent", callback_on_step_end=after_step, **rest,
    ).frames  # fmt: skip
    for hook in hooks:
        hook.remove()
    result = {"latents": latents, "cond": kept["outputs"][0::2], "uncond": kept["outputs"][1::2], "x": kept["x"]}
    if kept["condition"]:
        result["condition"] = kept["condition"][0]
    return result


def store(case: Member, net: Net, found: dict, key: str, out: dict, whole=True) -> None:
    """``whole``: the predictions and the frames too."""
    out[f"{key}/latents"] = found["latents"][0]
    for name in ("x", "cond", "uncond") if whole else ("x",):
        out[f"{key}/steps/{name}"] = torch.stack(found[name])
    if whole:
        out[f"{key}/frames_u8"] = make._bytes(make._decode(net.vae, found["latents"]))
    cond, uncond = (torch.stack(found[name]) for name in ("cond", "uncond"))
    print(f"{case.name}: {key}: latents std {found['latents'].std():.2f}, "
          f"|cond - uncond| / |cond| {(cond - uncond).norm() / cond.norm():.3f}")  # fmt: skip


def picture(case: Member) -> Image.Image:
    return Image.fromarray(portable.picture(case.name, case.height, case.width))


def flipped(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


# TI2V


def token_times(case: Member, t, first) -> torch.Tensor:
    """[1, tokens]: ``first`` for the first latent frame's tokens, ``t`` for the rest."""
    _, frames, rows, columns = case.latent_shape
    times = torch.full((frames, rows // 2 * (columns // 2)), float(t))
    times[0] = first
    return times.flatten()[None]


def ti2v(case: Member, net: Net, contexts, out: dict, faults: dict) -> None:
    hidden = make._tensor(case, "dit.hidden", case.latent_shape, make.LATENT_SCALE)
    kept = []
    hook = net.high.condition_embedder.time_proj.register_forward_hook(lambda _m, _i, o: kept.append(o))

    def forward(times):
        return net.high(hidden, times, contexts["medium"]).sample[0]

    expected = forward(token_times(case, make.DIT_TIME, 0))
    hook.remove()
    out["dit/high/output"] = expected
    out["time/high/projection"] = kept[0][0, [0, -1]]
    faults["dit/high/output"] = {
        "the first frame's tokens have t": error(forward(token_times(case, make.DIT_TIME, make.DIT_TIME)), expected),
        "every token has 0": error(forward(token_times(case, 0, 0)), expected),
    }
    noise = torch.randn(1, *case.latent_shape, generator=torch.Generator().manual_seed(case.seed))
    start = picture(case)
    found = run(net, contexts, noise, image=start)
    # Wan2.2 puts the picture back after each step, diffusers before each pass and after the last: the same passes.
    z = found.pop("condition")
    for x in found["x"]:
        x[:, 0:1] = z
    out["run/noise"], out["condition/z"] = noise[0], z
    store(case, net, found, "run", out)

    forward_of = net.high.forward

    def all_t(*args, timestep, **kwargs):
        return forward_of(*args, timestep=timestep.max().expand_as(timestep), **kwargs)

    with mock.patch.object(net.high, "forward", all_t):
        wrong = run(net, contexts, noise, image=start)
    # As an I2V that only puts the picture in before the first step would have it.
    once = run(net, contexts, torch.cat([z[None], noise[:, :, 1:]], 2))
    faults["run/latents"] = {
        "the first frame's tokens have t": error(wrong["latents"], found["latents"]),
        "the picture is put in once, and every token has t": error(once["latents"], found["latents"]),
    }

    short = replace(case, frames=5, width=96, height=64, seed=15)
    net.case = short
    noise = torch.randn(1, *short.latent_shape, generator=torch.Generator().manual_seed(short.seed))
    found = run(net, contexts, noise)
    out["text/noise"] = noise[0]
    store(short, net, found, "text", out, whole=False)
    few_steps(short, net, contexts[make.PROMPT], noise, out)
    net.case = case


def few_steps(case: Member, net: Net, context, noise, out: dict) -> None:
    """Three steps of FastWan's, without guidance: as published, with fresh noise for every step, and by Euler."""
    for name in ("renoised", "euler"):
        x = noise
        for i, (sigma, following) in enumerate(zip(FAST, [*FAST[1:], 0.0])):
            velocity = net.high(x, token_times(case, 1000 * sigma, 1000 * sigma), context).sample
            clean = x - sigma * velocity
            fresh = make._tensor(case, f"fast.noise.{i}", case.latent_shape, make.LATENT_SCALE)
            euler = x + (following - sigma) * velocity
            x = (1 - following) * clean + following * fresh if name == "renoised" else euler
        out[f"fast/{name}"] = x[0]


# T2V


def t2v(case: Member, net: Net, contexts, out: dict, faults: dict) -> None:
    for expert in case.experts:
        hidden = make._tensor(case, "dit.hidden", case.latent_shape, make.LATENT_SCALE)
        out[f"dit/{expert}/output"] = getattr(net, expert)(
            hidden, torch.tensor([make.DIT_TIME]), contexts["medium"]).sample[0]  # fmt: skip
    noise = torch.randn(1, *case.latent_shape, generator=torch.Generator().manual_seed(case.seed))
    found = run(net, contexts, noise)
    out["run/noise"] = noise[0]
    store(case, net, found, "run", out)
    faults["run/latents"] = {
        "boundary 0.9": error(run(net, contexts, noise, boundary=900)["latents"], found["latents"]),
        "guidance the other way round": error(
            run(net, contexts, noise, guide=case.guide[::-1])["latents"], found["latents"]),
        "the low-noise expert for every step": error(
            run(net, contexts, noise, high=net.low)["latents"], found["latents"]),
    }  # fmt: skip


# Wan2.1


class JointAttention(WanAttnProcessor):
    """An error: one softmax over the text's and the picture's rows."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        rows = encoder_hidden_states.shape[1] - make.TEXT_LEN
        image, text = encoder_hidden_states[:, :rows], encoder_hidden_states[:, rows:]
        q = attn.norm_q(attn.to_q(hidden_states))
        k = torch.cat([attn.norm_added_k(attn.add_k_proj(image)), attn.norm_k(attn.to_k(text))], 1)
        v = torch.cat([attn.add_v_proj(image), attn.to_v(text)], 1)
        q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return attn.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def picture_dit(case: Member, net: Net, contexts, tokens, faults: dict, out: dict) -> None:
    """One forward with the CLIP tokens, its parts, and what errors cost."""
    hidden = make._tensor(case, "dit.hidden", (36, *case.latent_shape[1:]), make.LATENT_SCALE)
    attention, embedder = net.high.blocks[0].attn2, net.high.condition_embedder.image_embedder
    kept = {name: [] for name in ("image", "k_img", "v_img")}
    hooks = [make._capture(module, kept[name]) for name, module in
             (("image", embedder), ("k_img", attention.norm_added_k), ("v_img", attention.add_v_proj))]  # fmt: skip

    def forward(dit, image=tokens):
        time = torch.tensor([make.DIT_TIME])
        return dit(hidden, time, contexts["medium"], encoder_hidden_states_image=image).sample[0]

    expected = forward(net.high)
    rows = kept["image"][0]
    for hook in hooks:
        hook.remove()
    out["dit/high/image"] = rows[0]
    out["dit/high/cross_k_img"], out["dit/high/cross_v_img"] = kept["k_img"][0][0], kept["v_img"][0][0]
    out["dit/high/output"] = expected

    def changed(change):
        dit = copy.deepcopy(net.high)
        change(dit)
        return error(forward(dit), expected)

    def no_values(dit):
        for block in dit.blocks:
            block.attn2.add_v_proj.weight.zero_(), block.attn2.add_v_proj.bias.zero_()

    def no_norm(dit):
        for block in dit.blocks:
            block.attn2.norm_added_k = torch.nn.Identity()

    def joint(dit):
        for block in dit.blocks:
            block.attn2.processor = JointAttention()

    def tanh(dit):
        dit.condition_embedder.image_embedder.ff.net[0].approximate = "tanh"

    def eps(dit):
        for norm in (dit.condition_embedder.image_embedder.norm1, dit.condition_embedder.image_embedder.norm2):
            norm.eps = 1e-6

    def unplaced(dit):
        dit.condition_embedder.image_embedder.pos_embed.zero_()

    found = {
        "no picture in the cross-attention": changed(no_values),
        "k_img without its norm": changed(no_norm),
        "one softmax over text and picture": changed(joint),
        "the projection's GELU by tanh": changed(tanh),
        "the projection's norms with eps 1e-6": changed(eps),
    }
    if case.dit["pos_embed_seq_len"]:
        found["no position embedding"] = changed(unplaced)
        found["the pictures the other way round"] = error(forward(net.high, tokens.flip(0)), expected)
    faults["dit/high/output"] = found

    def projected(change):
        dit = copy.deepcopy(net.high)
        change(dit)
        return error(dit.condition_embedder.image_embedder(tokens), rows)

    faults["dit/high/image"] = {"GELU by tanh": projected(tanh), "norms with eps 1e-6": projected(eps)}
    if case.dit["pos_embed_seq_len"]:
        faults["dit/high/image"]["no position embedding"] = projected(unplaced)


def wan21(case: Member, net: Net, contexts, out: dict, faults: dict) -> None:
    start = picture(case)
    end = flipped(start) if case.dit["pos_embed_seq_len"] else None
    clip = net.parts["image_encoder"]
    ends = [image for image in (start, end) if image is not None]
    pixels = torch.cat([original_pixels(image) for image in ends])
    states = clip(pixels, output_hidden_states=True).hidden_states
    tokens = states[-2]
    out["clip/tokens"] = tokens
    picture_dit(case, net, contexts, tokens, faults, out)
    faults["clip/tokens"] = {"the last layer's states": error(states[-1], tokens)}

    noise = torch.randn(1, *case.latent_shape, generator=torch.Generator().manual_seed(case.seed))
    found = run(net, contexts, noise, image=start, last=end, tokens=tokens)
    out["run/noise"], out["condition/y"] = noise[0], found.pop("condition")
    store(case, net, found, "run", out)
    faults["run/latents"] = {
        "the CLIP encoder's last states": error(
            run(net, contexts, noise, start, end, states[-1])["latents"], found["latents"]),
        "CLIP's pixels as diffusers makes them": error(
            run(net, contexts, noise, start, end, encoded_by_diffusers(clip, ends))["latents"], found["latents"]),
    }  # fmt: skip


# CLIP


def clip_fill(module, case: str, saved: dict) -> dict:
    """Portable weights by the published names, which begin with ``vision_model.``; transformers 5 leaves that out."""
    published = {f"vision_model.{name.removeprefix('vision_model.')}": shape for name, shape in saved.items()}
    own = {name.removeprefix("vision_model."): name for name in module.state_dict()}
    values = {own[name.removeprefix("vision_model.")]:
              torch.from_numpy(portable.weight(case, "image_encoder", name, shape))
              for name, shape in published.items()}  # fmt: skip
    module.load_state_dict(values, strict=True)
    module.eval().requires_grad_(False)
    return dict(sorted(published.items()))


def clip_processor() -> CLIPImageProcessorPil:
    size = CLIP["image_size"]
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def encoded_by_diffusers(clip, images) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack(clip_processor()(images, return_tensors="np")["pixel_values"]))
    return clip(pixels, output_hidden_states=True).hidden_states[-2]


def unit(image: Image.Image) -> torch.Tensor:
    """[1, 3, H, W] in -1..1."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()[None] / 127.5 - 1


def normalised(pixels) -> torch.Tensor:
    """From 0..1 to CLIP's mean and deviation."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def original_pixels(image: Image.Image, **how) -> torch.Tensor:
    """Wan2.1: stretched to a square by PyTorch's bicubic, of four pixels each way however large the picture."""
    size = (CLIP["image_size"],) * 2
    resized = F.interpolate(unit(image), size=size, mode="bicubic", align_corners=False, **how)
    return normalised(resized * 0.5 + 0.5)


def make_clip(folder: Path) -> None:
    """The encoder alone, and both ways to its pixels, of a picture of odd size."""
    case = f"{STEM}/clip"
    clip = CLIPVisionModel(CLIPVisionConfig(**CLIP))
    with tempfile.TemporaryDirectory() as scratch:
        clip.save_pretrained(scratch)
        saved = models._saved_tensors(Path(scratch))
        config = json.loads((Path(scratch) / "config.json").read_text())
    manifest = {"image_encoder": clip_fill(clip, case, saved)}
    image = Image.fromarray(portable.picture(case, *CLIP_PICTURE))
    (folder / "image_encoder").mkdir(parents=True, exist_ok=True)
    image.save(folder / "start.png", optimize=True)
    _write_config(folder / "image_encoder/config.json", config)
    make._write_json(folder / "manifest.json", manifest)

    pixels = original_pixels(image)
    theirs = torch.from_numpy(clip_processor()(image, return_tensors="np")["pixel_values"])
    states = clip(pixels, output_hidden_states=True).hidden_states
    out = {
        "pixels": pixels[0], "pixels_diffusers": theirs[0], "embeddings": states[0][0], "layer0": states[1][0],
        "tokens": states[-2][0], "tokens_diffusers": clip(theirs, output_hidden_states=True).hidden_states[-2][0],
    }  # fmt: skip
    make._write_tensors(folder / "golden.safetensors", out)

    def encode(net, pixels=pixels):
        return error(net(pixels, output_hidden_states=True).hidden_states[-2], states[-2])

    quick = copy.deepcopy(clip)
    for layer in quick.encoder.layers:
        layer.mlp.activation_fn = ACT2FN["quick_gelu"]
    tanh = copy.deepcopy(clip)
    for layer in tanh.encoder.layers:
        layer.mlp.activation_fn = ACT2FN["gelu_pytorch_tanh"]
    bare = copy.deepcopy(clip)
    bare.pre_layrnorm = torch.nn.Identity()
    finer = copy.deepcopy(clip)
    for norm in [m for m in finer.modules() if isinstance(m, torch.nn.LayerNorm)]:
        norm.eps = 1e-6
    faults = {
        "tokens": {
            "QuickGELU": encode(quick),
            "GELU by tanh": encode(tanh),
            "no norm before the layers": encode(bare),
            "norms with eps 1e-6": encode(finer),
            "the last layer's states": error(states[-1], states[-2]),
            "diffusers' pixels": encode(clip, theirs),
        },
        "pixels": {
            "bicubic over the whole area (antialias)": error(original_pixels(image, antialias=True), pixels),
            "diffusers' pixels": error(theirs, pixels),
            "not normalised": error(original_pixels(image) * torch.tensor(CLIP_STD).view(1, 3, 1, 1)
                                    + torch.tensor(CLIP_MEAN).view(1, 3, 1, 1), pixels),
        },
    }  # fmt: skip
    write_faults(folder, case, faults)


# Sizes


def clip_size(width: int, height: int, step: int = 32) -> tuple[int, int]:
    """TI2V's width and height for a picture: multiples of ``step`` within AREA. Wan2.2 rounds one side down, gives the
    rest of the area to the other, and of both ways keeps the one nearer to the picture's ratio."""
    ratio = width / height
    wide = int((AREA * ratio) ** 0.5 // step) * step
    high = int(AREA / (AREA * ratio) ** 0.5 // step) * step
    by_width, by_height = (wide, int(AREA / wide // step) * step), (int(AREA / high // step) * step, high)
    off = [max(ratio * h / w, w / h / ratio) for w, h in (by_width, by_height)]
    return by_width if off[0] < off[1] else by_height


def make_sizes(folder: Path) -> None:
    """What becomes of pictures: the clip's size, the size that the picture is resized to, the corner of the crop."""
    rows = []
    for width, height in PICTURES:
        w, h = clip_size(width, height)
        scale = max(w / width, h / height)
        resized = (round(width * scale), round(height * scale))
        rows.append(dict(picture=(width, height), clip=(w, h), resized=resized,
                         corner=((resized[0] - w) // 2, (resized[1] - h) // 2)))  # fmt: skip
    (folder / "ti2v_sizes.json").write_text("[\n" + ",\n".join(f" {json.dumps(row)}" for row in rows) + "\n]\n")


# Files


def _write_config(path: Path, config: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2) + "\n")


def write_faults(folder: Path, name: str, faults: dict) -> None:
    rounded = {key: {what: float(f"{value:.2e}") for what, value in group.items()} for key, group in faults.items()}
    (folder / "faults.json").write_text(json.dumps(rounded, indent=1) + "\n")
    for key, group in rounded.items():
        for what, value in group.items():
            print(f"{name}: {key}: {what}: {value:.2e}")


def make_member(case: Member, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        net = Net(case, Path(scratch))
        for config in sorted(Path(scratch).rglob("*.json")):
            relative = config.relative_to(scratch)
            if relative.parts[0] == "tokenizer":
                continue
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            # The class that stands in for CLIPImageProcessor without torchvision.
            text = config.read_text().replace("CLIPImageProcessorPil", "CLIPImageProcessor")
            (folder / relative).write_text(text)
    out: dict = {}
    faults: dict = {}
    contexts = make.text(case, net, out)
    for length in ("ids", "out"):
        del out[f"umt5/{length}_short"]
    timesteps, sigmas = schedule.schedule("unipc", case.steps, case.shift)
    out["schedule/timesteps"], out["schedule/sigmas"] = timesteps, sigmas
    member = {"ti2v": ti2v, "t2v": t2v}.get(case.name.removeprefix(f"{STEM}/"), wan21)
    member(case, net, contexts, out, faults)
    picture(case).save(folder / "start.png", optimize=True)
    make._write_json(folder / "case.json", dict(
        frames=case.frames, height=case.height, width=case.width, steps=case.steps, shift=case.shift, seed=case.seed,
        guide_low=case.guide[0], guide_high=case.guide[1], boundary=case.boundary, float_frames=case.float_frames,
        latent=case.latent_shape,
    ))  # fmt: skip
    make._write_json(folder / "manifest.json", net.manifest)
    make._write_tensors(folder / "golden.safetensors", out)
    write_faults(folder, case.name, faults)


def main(output: Path, wanted: list[str]) -> None:
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("highest")
    for case in MEMBERS:
        if not wanted or case.name.removeprefix(f"{STEM}/") in wanted:
            folder = output / case.name
            folder.mkdir(parents=True, exist_ok=True)
            make_member(case, folder)
    if not wanted or "clip" in wanted:
        make_clip(output / STEM / "clip")
    if not wanted or "sizes" in wanted:
        make_sizes(output / STEM)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
