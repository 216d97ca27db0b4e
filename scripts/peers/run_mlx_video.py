"""One clip of mlx-video, the Python original: python run_mlx_video.py JOB FOLDER

JOB is compare.py's description of the clip; FOLDER receives frames.npy and phases.json. The package is
used as it is installed. What it looks up on the hub, draws at random or writes is replaced from
outside: the tokenizer comes from the checkpoint, the noise from a file, and the frames go to FOLDER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx_video.generate_wan as original
import numpy as np
import transformers
from phases import Stopwatch

# What it announces, and the phase that begins there. Its models are loaded in all of them.
BEGINNINGS = {
    "Loading T5 encoder": "text",
    "Encoding input image": "image",
    "Loading transformer model": "denoising",
    "Decoding with VAE": "decoding",
}


def main(job_path: Path, folder: Path) -> None:
    job = json.loads(job_path.read_text())
    mx.set_default_device(mx.gpu if job["device"] == "gpu" else mx.cpu)
    watch = Stopwatch()

    def announce(*words, **_) -> None:
        for beginning, phase in BEGINNINGS.items():
            if any(beginning in str(word) for word in words):
                watch.enter(phase)

    from_pretrained, normal = transformers.AutoTokenizer.from_pretrained, mx.random.normal
    noise = mx.array(np.load(job["noise"]))

    def local_tokenizer(_, *args, **kwargs):
        return from_pretrained(job["tokenizer"], *args, **kwargs)

    def given_noise(shape=(), *args, **kwargs):
        return noise if tuple(shape) == noise.shape else normal(shape, *args, **kwargs)

    load_decoder = original.load_vae_decoder

    class KeepLatents:
        """The decoder, which first writes down what it is given."""

        def __init__(self, *args):
            self.vae = load_decoder(*args)

        def decode(self, latents):
            np.save(folder / "latents.npy", np.array(latents[0]))
            return self.vae.decode(latents)

    original.load_vae_decoder = KeepLatents
    original.print = announce
    original.tqdm = lambda steps, **_: steps
    original.save_video = lambda frames, *_, **__: watch.finish(folder, np.asarray(frames))
    transformers.AutoTokenizer.from_pretrained = local_tokenizer
    mx.random.normal = given_noise
    original.generate_video(
        model_dir=job["mlx_video"],
        prompt=job["prompt"],
        negative_prompt=job["negative_prompt"],
        image=job["picture"],
        width=job["width"],
        height=job["height"],
        num_frames=job["frames"],
        steps=job["steps"],
        guide_scale=(job["guidance"], job["guidance"]),
        shift=job["shift"],
        seed=job["seed"],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
