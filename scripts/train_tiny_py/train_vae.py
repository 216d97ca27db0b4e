"""Train the autoencoder: single pictures first, then clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import vae as net
import world
from muon import MuonAdamW
from training import Run, seed_step

SEED = 11
CLIPS = 6000  # training scenes kept in memory as uint8 (1.25 GB)
LATENT_NOISE = 0.04  # of each channel's spread, so that nearby latents decode alike
BLANK = 0.1  # share of clips shown as conditioning videos: a picture, then mid-grey


@dataclass
class Stage:
    """One part of the training; `frames` pixel frames in each of `batch` clips."""

    name: str
    frames: int
    batch: int
    steps: int
    peak: float


STAGES = [
    Stage("vae-1-pictures", 1, 32, 600, 2e-3),
    Stage("vae-2-clips", 17, 4, 500, 1.5e-3),
]


def training_clips(folder: Path, count: int = CLIPS) -> np.ndarray:
    """uint8 [count, 17, 64, 64, 3], drawn once and kept on disk."""
    path = folder / f"clips-{count}.npy"
    if not path.exists():
        clips = np.lib.format.open_memmap(
            path.with_suffix(".partial"), "w+", np.uint8, (count, world.FRAMES, world.SIZE, world.SIZE, 3)
        )
        for i in range(count):
            clips[i] = world.draw(world.scene("train", i))
        clips.flush()
        path.with_suffix(".partial").rename(path)
    return np.load(path, mmap_mode="r")


def to_signed(clips: np.ndarray) -> torch.Tensor:
    """uint8 [B, T, H, W, 3] to [-1, 1] [B, 3, T, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def draw_batch(clips: np.ndarray, stage: Stage, rng: torch.Generator) -> torch.Tensor:
    """Clips of one step: random scenes and starts, randomly mirrored, some as conditioning videos."""
    which = torch.randint(len(clips), (stage.batch,), generator=rng).tolist()
    starts = torch.randint(world.FRAMES - stage.frames + 1, (stage.batch,), generator=rng).tolist()
    batch = to_signed(np.stack([clips[i, s : s + stage.frames] for i, s in zip(which, starts)]))
    flips = torch.rand(3, stage.batch, generator=rng)
    for i in range(stage.batch):
        if flips[0, i] < 0.5:
            batch[i] = batch[i].flip(-1)
        if flips[1, i] < 0.5:
            batch[i] = batch[i].flip(1)  # time
        if stage.frames > 1 and flips[2, i] < BLANK:
            ends_with_picture = flips[2, i] < BLANK / 3
            batch[i, :, 1 : -1 if ends_with_picture else None] = 0
    return batch


def loss_of(vae, clips: np.ndarray, stage: Stage, step: int) -> torch.Tensor:
    """Mean over clips of the root-mean-square error on [-1, 1], with a little noise on the latents."""
    rng = seed_step(SEED, step)
    batch = draw_batch(clips, stage, rng)
    latents = net.encode(vae, batch.bfloat16()).float()
    spread = latents.detach().std((0, 2, 3, 4), keepdim=True)
    latents = latents + LATENT_NOISE * spread * torch.randn(latents.shape, generator=rng)
    error = net.decode(vae, latents.bfloat16()).float() - batch
    return (error.square().mean((1, 2, 3, 4)) + 1e-6).sqrt().mean()


@torch.no_grad()
def round_trip(vae, clips: torch.Tensor, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """PSNR in dB of decoded clips [B, 3, T, H, W] and of their first frames, on 8-bit values."""
    again = net.decode(vae, net.encode(vae, clips.to(dtype))).float().clamp(-1, 1)
    error = ((torch.round(again * 127.5) - torch.round(clips * 127.5)) / 255).square()
    return -10 * error.mean((1, 2, 3, 4)).log10(), -10 * error[:, :, 0].mean((1, 2, 3)).log10()


def train(folder: Path) -> None:
    """Run every stage that is not finished."""
    clips = training_clips(folder)
    held = to_signed(np.stack([world.draw(world.scene("vae-eval", i)) for i in range(24)]))
    vae = net.new_vae(SEED)
    for stage in STAGES:
        run = Run(folder, stage.name, vae, MuonAdamW(vae, stage.peak), stage.steps, stage.peak)

        def report(step: int) -> str:
            if step % 100 and step != stage.steps:
                return ""
            whole, first = round_trip(vae, held[:, :, : stage.frames], torch.bfloat16)
            return f"held-out PSNR {whole.mean():.2f} min {whole.min():.2f} first {first.mean():.2f}"

        if run.step < stage.steps:
            run.train(lambda step: loss_of(vae, clips, stage, step), report)
