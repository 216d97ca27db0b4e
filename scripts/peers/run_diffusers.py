"""One clip of diffusers' WanImageToVideoPipeline: python run_diffusers.py JOB FOLDER

JOB is compare.py's description of the clip; FOLDER receives frames.npy and phases.json. The schedule
is the original Wan's, as in scripts/compare_diffusers.py. Every part is loaded where it is first
needed, so that loading counts in the same phases as in wan-i2v, and the text encoder is let go.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from phases import Stopwatch
from PIL import Image


def wan_schedule(shift: float) -> type[UniPCMultistepScheduler]:
    """UniPC on the noise levels of Wan-Video/Wan2.2."""

    class Schedule(UniPCMultistepScheduler):
        def set_timesteps(self, num_inference_steps, device=None, **kwargs):
            super().set_timesteps(num_inference_steps, device=device, **kwargs)
            x = np.linspace(float(np.float32(0.999)), 0.0, num_inference_steps + 1)[:-1]
            sigmas = shift * x / (1 + (shift - 1) * x)
            self.timesteps = torch.from_numpy(sigmas * 1000).to(torch.int64).to(device)
            self.sigmas = torch.from_numpy(np.append(sigmas, 0.0)).float()

    return Schedule


@torch.inference_mode()
def main(job_path: Path, folder: Path) -> None:
    job = json.loads(job_path.read_text())
    torch.set_num_threads(job["threads"])
    model, device = job["checkpoint"], "mps" if job["device"] == "gpu" else "cpu"
    dtype = {"dtype": torch.float32}
    watch = Stopwatch()

    watch.enter("text")
    pipeline = WanImageToVideoPipeline.from_pretrained(
        model, vae=None, transformer=None, transformer_2=None, **dtype
    ).to(device)
    positive, negative = pipeline.encode_prompt(
        job["prompt"], job["negative_prompt"], do_classifier_free_guidance=True, max_sequence_length=512
    )
    del pipeline
    gc.collect()

    watch.enter("image")
    vae = AutoencoderKLWan.from_pretrained(model, subfolder="vae", **dtype)

    watch.enter("denoising")
    high = WanTransformer3DModel.from_pretrained(model, subfolder="transformer", **dtype)
    low = WanTransformer3DModel.from_pretrained(model, subfolder="transformer_2", **dtype)
    pipeline = WanImageToVideoPipeline.from_pretrained(
        model, text_encoder=None, tokenizer=None, vae=vae, transformer=high, transformer_2=low
    ).to(device)
    pipeline.scheduler = wan_schedule(job["shift"]).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    prepare_latents, decode = pipeline.prepare_latents, vae.decode

    def timed_prepare_latents(*args, **kwargs):
        watch.enter("image")
        latents = prepare_latents(*args, **kwargs)
        watch.enter("denoising")
        return latents

    def timed_decode(*args, **kwargs):
        watch.enter("decoding")
        return decode(*args, **kwargs)

    def keep_latents(_pipeline, _step, _timestep, tensors):
        np.save(folder / "latents.npy", tensors["latents"][0].cpu().numpy())
        return tensors

    pipeline.prepare_latents, vae.decode = timed_prepare_latents, timed_decode
    frames = pipeline(
        image=Image.open(job["picture"]).convert("RGB"),
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        height=job["height"],
        width=job["width"],
        num_frames=job["frames"],
        num_inference_steps=job["steps"],
        guidance_scale=job["guidance"],
        latents=torch.from_numpy(np.load(job["noise"]))[None],
        callback_on_step_end=keep_latents,
        output_type="np",
    ).frames[0]
    watch.finish(folder, np.round(frames * 255).astype(np.uint8))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
