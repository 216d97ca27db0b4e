"""Distil guidance and steps: a low-rank adapter for each expert, for four Euler steps without guidance.

The teacher is the exported miniature at its defaults, 12 UniPC steps with guidance, 24 passes a
clip. Where it arrives from a noise is stored once (`trajectories`). The student starts from the
same noise and takes its own four steps; each of its predictions is pulled to a point between the
teacher's end and the true clip, since prompt and picture leave one clip to show, and gradients flow
through all four steps (`train`). Only the adapters learn.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import WanImageToVideoPipeline
from safetensors.torch import load_file, save_file
from torch import nn

import dit
import sample
import train_dit
from latents import SHAPE, LatentSet
from training import Run, Threads, seed_step

SEED = 31
RANK = 24  # both experts together stay under 2 MB in float16
BATCH = 16
STEPS, PEAK = 2400, 2e-3
TRUTH = 0.75  # share of the true clip in what is aimed at, the rest is the teacher's end
# Evenly spaced, then shifted by 5, as LightX2V's four-step adapters are used.
SIGMAS = (1.0, 0.9375, 5 / 6, 0.625, 0.0)
HIGH_STEPS = 2
WEIGHTS = (0.3, 0.3, 0.3, 1.0)  # of each step's error; the last one is what is seen
LIMIT = 2_000_000  # bytes
METADATA = dict(
    format="pt",
    base_model="wan-i2v miniature",
    recipe="lightning: 4 steps, Euler, shift 5, no guidance",
)
FILES = {"high": "high_noise_model.safetensors", "low": "low_noise_model.safetensors"}
NAMES = {  # diffusers' names of a block's layers and the original's
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank delta that starts at nothing."""

    def __init__(self, layer: nn.Linear, rng: torch.Generator):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(RANK, layer.in_features, generator=rng) * layer.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.layer.weight + self.up @ self.down, self.layer.bias)


def adapt(expert) -> None:
    """Freeze an expert and give every linear layer of its blocks a low-rank delta."""
    expert.requires_grad_(False)
    rng = torch.Generator().manual_seed(SEED)
    for block in expert.blocks:
        for name in NAMES:
            parent, _, leaf = name.rpartition(".")
            setattr(block.get_submodule(parent), leaf, Adapted(block.get_submodule(name), rng))


def compile_blocks(expert, batch: int) -> None:
    """Make an expert fast to train; its blocks share what is compiled."""
    dit.make_trainable(expert, batch)
    for block in expert.blocks:
        block.compile(dynamic=False)


def load_model(folder: Path) -> sample.Model:
    """The exported miniature, the very weights that are shipped."""
    pipeline = WanImageToVideoPipeline.from_pretrained(folder / "wan-tiny", torch_dtype=torch.float32)
    return sample.from_pipeline(pipeline)


class Ends:
    """The training set with the teacher's ends [n, 16, 5, 8, 8], one for each clip and its own noise."""

    def __init__(self, folder: Path, tokenizer):
        self.path = folder / "latents" / "end.f16"
        self.batches = train_dit.Batches(folder, tokenizer)
        self.index = self.batches.index
        self.count = len(self.index["image"])

    def rows(self) -> np.ndarray:
        """The ends stored so far."""
        return LatentSet(self.path.parent).rows("end")

    def start(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noise, conditioning [B, 20, 5, 8, 8] and token ids [B, TOKENS] of clips; each has its own of all three."""
        last = self.index["last"][rows]
        paired = (last >= 0) & (rows % 2 == 0)
        given = self.batches.condition[self.index["image"][rows]]
        given[paired] = self.batches.both[last[paired]]
        masks = self.batches.masks[torch.from_numpy(paired).long()]
        given = torch.cat([masks, torch.from_numpy(given).float()], 1)
        noise = torch.stack([torch.randn(SHAPE, generator=seed_step(SEED, int(row))) for row in rows])
        return noise, given, self.batches.ids[rows, rows % train_dit.WORDINGS]


@torch.no_grad()
def embed(model: sample.Model, ids: torch.Tensor) -> torch.Tensor:
    """Text embeddings [B, TOKENS, 96]; the experts learn how often each row counts."""
    real = (ids != 0).long()
    for expert in (model.high, model.low):
        dit.set_text_bias(expert, real)
    return dit.embed(model.text, ids, real)


@torch.no_grad()
def guided_end(model: sample.Model, empty: torch.Tensor, noise, given, ids) -> torch.Tensor:
    """Where the teacher arrives: both halves of guidance in one batch of 2 B."""
    text = embed(model, torch.cat([ids, empty.expand_as(ids)]))
    plan = sample.scheduler()
    plan.set_timesteps(sample.STEPS)
    x = noise
    for t in plan.timesteps:
        expert = model.high if t >= train_dit.BOUNDARY * 1000 else model.low
        inputs = torch.cat([x, given], 1).repeat(2, 1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            both = expert(inputs, t.expand(len(inputs)), text, return_dict=False)[0].float()
        told, untold = both.chunk(2)
        x = plan.step(untold + sample.GUIDANCE * (told - untold), t, x, return_dict=False)[0]
    return x


def trajectories(folder: Path, images: int) -> None:
    """Encode the training set as far as it is missing, and store the teacher's end of every clip."""
    model = load_model(folder)
    LatentSet(folder / "latents").grow(model.vae, model.mean, model.std, images)
    ends = Ends(folder, model.tokenizer)
    done, size = len(ends.rows()), int(np.prod(SHAPE)) * 2
    for expert in (model.high, model.low):
        compile_blocks(expert, 2 * BATCH)
    threads = Threads()
    with open(ends.path, "ab") as file:
        file.truncate(done * size)
        for first in range(done, ends.count, BATCH):
            threads.adapt()
            rows = np.arange(first, first + BATCH) % ends.count  # the last batch is filled up
            end = guided_end(model, ends.batches.empty, *ends.start(rows))[: ends.count - first]
            file.write(end.numpy().astype(np.float16).tobytes())
            file.flush()
            if first // BATCH % 10 == 0:
                print(f"teacher {first + len(end)}/{ends.count} clips", flush=True)


def train(folder: Path, steps: int | None = None) -> None:
    """Train both adapters together, then write them."""
    model = load_model(folder)
    ends = Ends(folder, model.tokenizer)
    taught = ends.rows()
    experts = nn.ModuleDict({"high": model.high, "low": model.low})
    for expert in experts.values():
        adapt(expert)
        compile_blocks(expert, BATCH)

    def loss_of(step: int) -> torch.Tensor:
        rows = torch.randint(len(taught), (BATCH,), generator=seed_step(SEED, step)).numpy()
        x, given, ids = ends.start(rows)
        end, true = (torch.from_numpy(x[rows]).float() for x in (taught, ends.batches.target))
        target, text = torch.lerp(end, true, TRUTH), embed(model, ids)
        loss = torch.zeros(())
        for number, (now, then) in enumerate(pairwise(SIGMAS)):
            expert = model.high if number < HIGH_STEPS else model.low
            with torch.autocast("cpu", torch.bfloat16):
                velocity = expert(torch.cat([x, given], 1), torch.full((BATCH,), 1000 * now), text, return_dict=False)[0]
            velocity = velocity.float()
            loss = loss + WEIGHTS[number] * (x - now * velocity - target).square().mean()
            x = x + (then - now) * velocity
        return loss

    learned = [p for p in experts.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, PEAK, betas=(0.9, 0.99), weight_decay=0.0)
    run = Run(folder, "lightning", experts, optimiser, steps or STEPS, PEAK)
    run.train(loss_of, lambda step: "")
    export(folder)


def export(folder: Path) -> None:
    """Write the adapters as they stand to `<folder>/lightning`, one file an expert, in the usual public keys."""
    state = torch.load(folder / "lightning.pt", weights_only=True)["modules"]
    target = folder / "lightning"
    target.mkdir(exist_ok=True)
    for part, file in FILES.items():
        tensors = {}
        for key, up in state.items():
            if not key.startswith(f"{part}.blocks.") or not key.endswith(".up"):
                continue
            block, _, layer = key.removeprefix(f"{part}.blocks.").removesuffix(".up").partition(".")
            name = f"diffusion_model.blocks.{block}.{NAMES[layer]}"
            tensors[f"{name}.lora_down.weight"] = state[key.removesuffix("up") + "down"].half().contiguous()
            tensors[f"{name}.lora_up.weight"] = up.half().contiguous()
            tensors[f"{name}.alpha"] = torch.tensor(float(RANK)).half()
        save_file(tensors, target / f"{file}.partial", METADATA)
        os.replace(target / f"{file}.partial", target / file)
    size = sum((target / file).stat().st_size for file in FILES.values())
    if size > LIMIT:
        raise ValueError(f"the adapters have {size} bytes, more than {LIMIT}")
    print(f"{target}: {size / 1e6:.2f} MB")


@torch.no_grad()
def merge(model: sample.Model, folder: Path) -> None:
    """Add the adapters' deltas to a model's experts."""
    for part, expert in (("high", model.high), ("low", model.low)):
        tensors = load_file(folder / FILES[part])
        for number, block in enumerate(expert.blocks):
            for ours, name in NAMES.items():
                key = f"diffusion_model.blocks.{number}.{name}"
                up, down = (tensors[f"{key}.lora_{side}.weight"].float() for side in ("up", "down"))
                block.get_submodule(ours).weight += tensors[f"{key}.alpha"].item() / len(down) * up @ down
