"""Compare clips of the binary with diffusers' WanImageToVideoPipeline on the built-in miniature.

Usage: python scripts/compare_diffusers.py BINARY [COUNT]   (needs torch, diffusers, transformers, pillow)

Both get the same checkpoint, picture, prompt and seed (so the same noise), and the original Wan
schedule: diffusers' scheduler builds a slightly different one, so its sigmas and timesteps are
replaced. Prints the differences in levels of 255; more than 3, or 0.2 on average, is an error.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline
from PIL import Image

SCRIPTS = Path(__file__).resolve().parent
MODEL = SCRIPTS.parent / "src" / "tiny" / "model"
sys.path.insert(0, str(SCRIPTS / "train_tiny_py"))

import world  # noqa: E402

STEPS, SHIFT, GUIDANCE, SEED = 12, 5.0, 2.0, 11


class WanSchedule(UniPCMultistepScheduler):
    """UniPC on the noise levels of Wan-Video/Wan2.2 (`wan/utils/fm_solvers_unipc.py`)."""

    def set_timesteps(self, num_inference_steps, device=None, **kwargs):
        super().set_timesteps(num_inference_steps, device=device, **kwargs)
        x = np.linspace(float(np.float32(0.999)), 0.0, num_inference_steps + 1)[:-1]
        sigmas = SHIFT * x / (1 + (SHIFT - 1) * x)
        self.timesteps = torch.from_numpy(sigmas * 1000).to(torch.int64)
        self.sigmas = torch.from_numpy(np.append(sigmas, 0.0)).float()


def ours(binary: str, folder: Path, picture: Path, prompt: str) -> np.ndarray:
    """The binary's frames, uint8 [17, 64, 64, 3]."""
    output = folder / "frames"
    command = [binary, "--image", picture, "--prompt", prompt, "--seed", SEED, "--steps", STEPS]
    command += ["--guide-scale", GUIDANCE, "--output", f"{output}/", "--device", "cpu", "--dtype", "f32"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return np.stack([np.asarray(Image.open(path)) for path in sorted(output.glob("*.png"))])


def main(binary: str, count: int) -> None:
    pipeline = WanImageToVideoPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    pipeline.scheduler = WanSchedule.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    worst, means = 0, []
    for number in range(count):
        scene = world.scene("eval", number)
        with tempfile.TemporaryDirectory() as name:
            picture = Path(name) / "start.png"
            Image.fromarray(world.draw(scene, count=1)[0]).save(picture)
            frames = ours(binary, Path(name), picture, scene.prompt)
            theirs = pipeline(
                image=Image.open(picture),
                prompt=scene.prompt,
                negative_prompt="",
                height=world.SIZE,
                width=world.SIZE,
                num_frames=world.FRAMES,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=torch.Generator("cpu").manual_seed(SEED),
                output_type="np",
            ).frames[0]
        difference = np.abs(frames.astype(float) - np.round(theirs * 255))
        worst, means = max(worst, int(difference.max())), [*means, difference.mean()]
        print(f"{scene.prompt}: worst {difference.max():.0f} levels, mean {difference.mean():.4f}", flush=True)
    print(f"{count} clips: worst {worst} levels, mean {np.mean(means):.4f}")
    if worst > 3 or np.mean(means) > 0.2:
        sys.exit("the binary and diffusers disagree")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8)
