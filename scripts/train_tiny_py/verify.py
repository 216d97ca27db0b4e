"""Show that the fast code here computes what diffusers computes, on the exported checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline
from PIL import Image

import dit
import evaluate
import sample
import train_vae
import vae as net
import world

STEPS = 4
GUIDANCE = 2.0


def verify(folder: Path) -> None:
    """Compare layer arithmetic, stored precision and whole clips; a difference is an error."""
    pipeline = WanImageToVideoPipeline.from_pretrained(folder / "wan-tiny", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    net.check(pipeline.vae)
    trainable, plain = dit.new_expert(0), dit.new_expert(0)
    trainable.load_state_dict(pipeline.transformer.state_dict())
    dit.make_trainable(trainable, 2)
    dit.check(trainable, plain)
    print("layers: equal to diffusers")

    scenes = [world.scene("eval", i) for i in range(4)]
    truths = np.stack([world.draw(s) for s in scenes])
    half, _ = train_vae.round_trip(pipeline.vae, train_vae.to_signed(truths))
    coarse = AutoencoderKLWan.from_pretrained(folder / "wan-tiny" / "vae").bfloat16().float()
    rounded, _ = train_vae.round_trip(coarse, train_vae.to_signed(truths))
    print(f"VAE round trip: {half.mean():.2f} dB from float16 weights, {rounded.mean():.2f} dB from bfloat16")

    model = sample.from_pipeline(pipeline)
    pictures = train_vae.to_signed(truths[:1, :1])[:, :, 0]
    for last in (None, truths[0, -1]):
        ours = evaluate.to_bytes(
            sample.generate(
                model,
                pictures,
                [scenes[0].prompt],
                evaluate.SEED,
                GUIDANCE,
                STEPS,
                None if last is None else train_vae.to_signed(last[None, None])[:, :, 0],
            )
        )[0]
        theirs = pipeline(
            image=Image.fromarray(truths[0, 0]),
            last_image=None if last is None else Image.fromarray(last),
            prompt=scenes[0].prompt,
            negative_prompt="",
            height=world.SIZE,
            width=world.SIZE,
            num_frames=world.FRAMES,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(evaluate.SEED),
            output_type="np",
        ).frames[0]
        error = np.abs(ours.astype(float) - theirs * 255)
        print(f"pipeline, last picture {last is not None}: largest difference {error.max():.2f} levels")
        if error.max() > 2:
            raise AssertionError("the sampler and diffusers' pipeline disagree")
