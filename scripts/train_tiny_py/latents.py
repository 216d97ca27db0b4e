"""The experts' training set: normalised latents of clips and of their conditioning videos, on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import vae as net
import world
from train_vae import to_signed
from training import Threads

SIBLINGS = 3  # further prompts per first frame
LAST_SHARE = 6  # one in this many images also gets first-and-last-frame conditioning
CHUNK = 4  # images encoded at a time
SHAPE = (16, 5, 8, 8)


def conditioning(first: torch.Tensor, last: torch.Tensor | None = None) -> torch.Tensor:
    """The conditioning video [B, 3, 17, 64, 64]: the picture(s) [B, 3, 64, 64], mid-grey elsewhere."""
    video = torch.zeros(len(first), 3, world.FRAMES, *first.shape[2:])
    video[:, :, 0] = first
    if last is not None:
        video[:, :, -1] = last
    return video


def mask(last: bool) -> torch.Tensor:
    """The 4 mask channels [4, 5, 8, 8]: which pixel frames of a latent frame are given.

    As diffusers' WanImageToVideoPipeline.prepare_latents lays them out: the first latent
    frame is all ones; the last picture sets the last of the four channels of the last.
    """
    channels = torch.zeros(4, *SHAPE[1:])
    channels[:, 0] = 1
    if last:
        channels[3, -1] = 1
    return channels


def scenes_of_image(split: str, number: int) -> list[world.Scene]:
    """A scene and its siblings: one first frame, several prompts."""
    scene = world.scene(split, number)
    return [scene, *world.siblings(scene, split, SIBLINGS)]


def encode_padded(vae, part: torch.Tensor) -> torch.Tensor:
    """Latents of up to CHUNK clips; the batch is filled up, since every new shape is compiled anew."""
    full = torch.cat([part, part[-1:].expand(CHUNK - len(part), *part.shape[1:])])
    return net.encode(vae, full.bfloat16()).float()[: len(part)]


@torch.no_grad()
def statistics(vae, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-channel mean and standard deviation [16] of the latents of clips."""
    latents = torch.cat([net.encode(vae, part.bfloat16()).float() for part in clips.split(CHUNK)])
    return latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))


class LatentSet:
    """Memory-mapped float16 arrays that grow; opened again, they hold what was written so far.

    target [n, 16, 5, 8, 8]; image [n], the row of its conditioning in condition
    [m, 16, 5, 8, 8]; last [n], the row of its first-and-last conditioning in both
    [k, 16, 5, 8, 8] or -1.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def rows(self, name: str) -> np.ndarray:
        """The latents written so far under a name."""
        path = self.folder / f"{name}.f16"
        if not path.exists() or not path.stat().st_size:
            return np.zeros((0, *SHAPE), np.float16)
        return np.memmap(path, np.float16, "r").reshape(-1, *SHAPE)

    def index(self) -> dict[str, np.ndarray]:
        """The index as of the last complete chunk."""
        path = self.folder / "index.npz"
        if not path.exists():
            return {k: np.zeros(0, np.int64) for k in ("number", "variant", "image", "last")}
        return dict(np.load(path))

    def grow(self, vae, mean: torch.Tensor, std: torch.Tensor, images: int) -> None:
        """Encode further images until `images` are in the set."""
        index = self.index()
        done = int(index["image"].max()) + 1 if len(index["image"]) else 0
        counts = {"target": len(index["image"]), "condition": done, "both": int(index["last"].max(initial=-1)) + 1}
        for name, count in counts.items():  # drop what an interrupted chunk left behind
            with open(self.folder / f"{name}.f16", "ab") as file:
                file.truncate(count * int(np.prod(SHAPE)) * 2)
        threads = Threads()
        for start in range(done, images, CHUNK):
            threads.adapt()
            self._encode_chunk(vae, mean, std, range(start, min(start + CHUNK, images)))
            if start % (25 * CHUNK) == 0:
                print(f"encoded {start + CHUNK}/{images} images", flush=True)

    @torch.no_grad()
    def _encode_chunk(self, vae, mean, std, numbers) -> None:
        index = {k: v.tolist() for k, v in self.index().items()}
        both = max(index["last"], default=-1) + 1
        clips, firsts, pairs = [], [], []
        for number in numbers:
            for variant, scene in enumerate(scenes_of_image("train", number)):
                clip = to_signed(world.draw(scene)[None])
                paired = number % LAST_SHARE == 0
                index["number"].append(number)
                index["variant"].append(variant)
                index["image"].append(number)
                index["last"].append(both + len(pairs) if paired else -1)
                clips.append(clip)
                if paired:
                    pairs.append(conditioning(clip[:, :, 0], clip[:, :, -1]))
            firsts.append(conditioning(clip[:, :, 0]))
        for name, parts in (("target", clips), ("condition", firsts), ("both", pairs)):
            for part in torch.cat(parts).split(CHUNK) if parts else []:
                latents = encode_padded(vae, part)
                latents = (latents - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
                with open(self.folder / f"{name}.f16", "ab") as file:
                    file.write(latents.numpy().astype(np.float16).tobytes())
        partial = self.folder / "index.partial.npz"
        np.savez(partial, **{k: np.array(v, np.int64) for k, v in index.items()})
        partial.rename(self.folder / "index.npz")
