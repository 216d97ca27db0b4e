"""Measure the trained autoencoder, fix its latent statistics, and fill the experts' training set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

import vae as net
import world
from latents import LatentSet, statistics
from train_vae import STAGES, to_signed

SAMPLE = 128  # training clips the latent statistics are taken over


def load_vae(folder: Path):
    """The autoencoder of the last training stage."""
    vae = net.new_vae(0)
    vae.load_state_dict(torch.load(folder / f"{STAGES[-1].name}.pt", weights_only=True)["modules"])
    return vae.eval()


def latent_statistics(folder: Path, vae) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [16] per latent channel, measured once and kept."""
    path = folder / "latent_statistics.json"
    if not path.exists():
        clips = to_signed(np.stack([world.draw(world.scene("train", i)) for i in range(SAMPLE)]))
        mean, std = statistics(vae, clips)
        path.write_text(json.dumps(dict(mean=mean.tolist(), std=std.tolist())))
    kept = json.loads(path.read_text())
    return torch.tensor(kept["mean"]), torch.tensor(kept["std"])


def encode(folder: Path, images: int) -> None:
    """Grow the training set to a number of first frames."""
    vae = load_vae(folder)
    mean, std = latent_statistics(folder, vae)
    LatentSet(folder / "latents").grow(vae, mean, std, images)
