"""Write the trained parts as a diffusers folder in float16, with the miniature's settings beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKLWan, WanImageToVideoPipeline

import sample
import train_dit
import vae as net
import world

LIMIT = 12_000_000  # bytes
SETTINGS = dict(
    size=[world.SIZE, world.SIZE],
    frames=world.FRAMES,
    fps=16,
    steps=sample.STEPS,
    shift=train_dit.SHIFT,
    guide_scale=[sample.GUIDANCE, sample.GUIDANCE],
    negative_prompt="",
)


def configured_vae(model: sample.Model) -> AutoencoderKLWan:
    """The autoencoder with its measured latent statistics in the configuration."""
    vae = AutoencoderKLWan(
        base_dim=net.BASE_DIM,
        latents_mean=model.mean.flatten().tolist(),
        latents_std=model.std.flatten().tolist(),
    )
    vae.load_state_dict(model.vae.state_dict())
    return vae


def export(folder: Path) -> None:
    """Write `<folder>/wan-tiny`; fails when it is larger than the limit."""
    model = sample.load(folder)
    pipeline = WanImageToVideoPipeline(
        tokenizer=model.tokenizer,
        text_encoder=model.text.half(),
        vae=configured_vae(model).half(),
        scheduler=sample.scheduler(),
        transformer=model.high.half(),
        transformer_2=model.low.half(),
        boundary_ratio=train_dit.BOUNDARY,
    )
    target, partial = folder / "wan-tiny", folder / "wan-tiny.partial"
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    (partial / "wan_i2v.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")
    # save_pretrained adds a model card of its own; the miniature's is docs/tiny.md.
    (partial / "README.md").unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(f"the checkpoint has {size} bytes, more than {LIMIT}")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    print(f"{target}: {size / 1e6:.2f} MB")
