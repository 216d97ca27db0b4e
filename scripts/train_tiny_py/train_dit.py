"""Train the text encoder and the two experts by flow matching on the stored latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import dit
import tokenizer as words
import world
from latents import LatentSet, mask, scenes_of_image
from muon import MuonAdamW
from training import Run, seed_step

SEED = 23
BATCH = 64
SHIFT = 5.0  # as in inference
BOUNDARY = 0.9
TEXT_DROPOUT = 0.1  # share of samples with the empty prompt, the default negative prompt
LAST_SHARE = 0.5  # of the samples that have first-and-last-frame conditioning, how many use it
WORDINGS = 8  # phrasings stored per clip


@dataclass
class Stage:
    """One part of the training; sigma lies in [low, high)."""

    name: str
    start: str | None  # the stage whose weights it begins with
    low: float
    high: float
    steps: int
    peak: float
    text: bool  # whether the text encoder learns too
    seed: int


STAGES = {
    "shared": Stage("dit-1-shared", None, 0.0, 1.0, 6000, 2e-3, True, 29),
    "high": Stage("dit-2-high", "dit-1-shared", BOUNDARY, 1.0, 700, 1e-3, False, 27),
    "low": Stage("dit-2-low", "dit-1-shared", 0.0, BOUNDARY, 2600, 1e-3, False, 26),
}


def tokenise(tokenizer, prompts: list[str]) -> torch.Tensor:
    """Token ids [n, TOKENS] of prompts, padded with 0; a longer prompt is an error."""
    table = torch.zeros(len(prompts), dit.TOKENS, dtype=torch.int64)
    for row, ids in zip(table, tokenizer(prompts).input_ids):
        if len(ids) >= dit.TOKENS:
            raise ValueError(f"a prompt has {len(ids)} tokens, training is laid out for {dit.TOKENS - 1}")
        row[: len(ids)] = torch.tensor(ids)
    return table


def wordings(index: dict[str, np.ndarray], tokenizer) -> torch.Tensor:
    """Token ids [n, WORDINGS, TOKENS]: several phrasings of every clip in the set."""
    prompts = []
    scenes = {int(i): scenes_of_image("train", int(i)) for i in np.unique(index["number"])}
    for number, variant in zip(index["number"], index["variant"]):
        things = scenes[int(number)][int(variant)].things
        rng = np.random.default_rng((SEED, int(number), int(variant)))
        prompts += [world.phrase(rng, things) for _ in range(WORDINGS)]
    return tokenise(tokenizer, prompts).view(-1, WORDINGS, dit.TOKENS)


def shifted(u: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Noise levels in [low, high) spread as inference visits them: s x / (1 + (s - 1) x)."""
    a, b = (x / (SHIFT - (SHIFT - 1) * x) for x in (low, high))
    x = a + (b - a) * u
    return SHIFT * x / (1 + (SHIFT - 1) * x)


class Batches:
    """Random batches of the stored latents."""

    def __init__(self, folder: Path, tokenizer):
        data = LatentSet(folder / "latents")
        self.index = data.index()
        self.target, self.condition, self.both = (data.rows(n) for n in ("target", "condition", "both"))
        self.ids = wordings(self.index, tokenizer)
        self.empty = tokenise(tokenizer, [""])[0]
        self.masks = torch.stack([mask(False), mask(True)])

    def draw(self, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Clean latents [B, 16, 5, 8, 8], conditioning [B, 20, 5, 8, 8] and token ids [B, TOKENS]."""
        rows = torch.randint(len(self.index["image"]), (BATCH,), generator=rng)
        wording = torch.randint(WORDINGS, (BATCH,), generator=rng)
        chance = torch.rand(2, BATCH, generator=rng)
        ids = self.ids[rows, wording]
        ids[chance[0] < TEXT_DROPOUT] = self.empty
        rows = rows.numpy()
        image, last = self.index["image"][rows], self.index["last"][rows]
        paired = (last >= 0) & (chance[1].numpy() < LAST_SHARE)
        given = self.condition[image]
        given[paired] = self.both[last[paired]]
        masks = self.masks[torch.from_numpy(paired).long()]
        given = torch.cat([masks, torch.from_numpy(given).float()], 1)
        return torch.from_numpy(self.target[rows]).float(), given, ids


def new_modules(tokenizer) -> nn.ModuleDict:
    """A fresh text encoder and expert."""
    return nn.ModuleDict({"text": dit.new_text_encoder(len(tokenizer), SEED), "expert": dit.new_expert(SEED)})


def load_stage(folder: Path, name: str, modules: nn.ModuleDict) -> None:
    """Weights as a stage's checkpoint left them."""
    modules.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True)["modules"])


def train(folder: Path, part: str, steps: int | None = None) -> None:
    """Run one stage: shared, high or low, for its own number of steps or another."""
    stage = STAGES[part]
    tokenizer = words.load(folder / "tokenizer")
    batches = Batches(folder, tokenizer)
    modules = new_modules(tokenizer)
    if stage.start:
        load_stage(folder, stage.start, modules)
    modules["text"].requires_grad_(stage.text)
    expert = modules["expert"]
    dit.make_trainable(expert, BATCH)
    predict = torch.compile(expert, dynamic=False)
    embed = torch.compile(dit.embed, dynamic=False)

    def loss_of(step: int) -> torch.Tensor:
        rng = seed_step(stage.seed, step)
        clean, given, ids = batches.draw(rng)
        sigma = shifted(torch.rand(BATCH, generator=rng), stage.low, stage.high)
        noise = torch.randn(clean.shape, generator=rng)
        s = sigma.view(-1, 1, 1, 1, 1)
        noisy = torch.cat([(1 - s) * clean + s * noise, given], 1)
        real = (ids != 0).long()
        dit.set_text_bias(expert, real)
        with torch.autocast("cpu", torch.bfloat16):
            text = embed(modules["text"], ids, real)
            velocity = predict(noisy, (sigma * 1000).long(), text, return_dict=False)[0]
        return (velocity.float() - (noise - clean)).square().mean()

    run = Run(folder, stage.name, modules, MuonAdamW(modules, stage.peak), steps or stage.steps, stage.peak)
    run.train(loss_of, lambda step: "")
