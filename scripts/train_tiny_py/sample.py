"""Generate clips with the trained parts: conditioning, UniPC denoising with two experts, decoding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanImageToVideoPipeline

import dit
import train_dit
import vae as net
from encode_set import latent_statistics, load_vae
from latents import SHAPE, conditioning, mask

STEPS = 12
GUIDANCE = 2.0


@dataclass
class Model:
    """Everything inference needs, in float32, plus the latent statistics [1, 16, 1, 1, 1]."""

    vae: object
    text: object
    high: object
    low: object
    tokenizer: object
    mean: torch.Tensor
    std: torch.Tensor
    few_steps: bool = False  # take four steps without guidance


def scheduler() -> UniPCMultistepScheduler:
    """UniPC of order 2 on flow predictions with the training's shift."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=train_dit.SHIFT,
        solver_order=2,
        num_train_timesteps=1000,
    )


def few_steps() -> FlowMatchEulerDiscreteScheduler:
    """Four Euler steps at timesteps 1000, 937.5, 833.33 and 625: evenly spaced, then shifted."""
    plan = FlowMatchEulerDiscreteScheduler(shift=train_dit.SHIFT)
    plan.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    return plan


def load(folder: Path) -> Model:
    """The newest trained parts in a training folder; an expert not yet trained alone is the shared one."""
    tokenizer = train_dit.words.load(folder / "tokenizer")
    vae = load_vae(folder)
    experts = {}
    for part in ("high", "low"):
        modules = train_dit.new_modules(tokenizer).eval()
        own = train_dit.STAGES[part].name
        trained = (folder / f"{own}.pt").exists()
        train_dit.load_stage(folder, own if trained else train_dit.STAGES["shared"].name, modules)
        experts[part] = modules["expert"]
    mean, std = (x.view(1, -1, 1, 1, 1) for x in latent_statistics(folder, vae))
    return Model(vae, modules["text"], experts["high"], experts["low"], tokenizer, mean, std)


def from_pipeline(pipeline: WanImageToVideoPipeline) -> Model:
    """A loaded diffusers pipeline's parts, such as the exported checkpoint's."""
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (pipeline.vae.config.latents_mean, pipeline.vae.config.latents_std)
    )
    return Model(
        pipeline.vae,
        pipeline.text_encoder,
        pipeline.transformer,
        pipeline.transformer_2,
        pipeline.tokenizer,
        mean,
        std,
    )


@torch.no_grad()
def encode_prompts(model: Model, prompts: list[str]) -> torch.Tensor:
    """Text embeddings [B, 512, 96] as the pipeline pads them."""
    ids = train_dit.tokenise(model.tokenizer, prompts)
    text = dit.embed(model.text, ids, (ids != 0).long())
    return torch.nn.functional.pad(text, (0, 0, 0, dit.TEXT_ROWS - dit.TOKENS))


@torch.no_grad()
def generate(
    model: Model,
    first: torch.Tensor,
    prompts: list[str],
    seed: int,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    last: torch.Tensor | None = None,
) -> torch.Tensor:
    """Clips [B, 3, 17, 64, 64] in [-1, 1] from first pictures [B, 3, 64, 64] and prompts.

    Every clip's noise depends on the seed and its place in the batch only. A model for
    few steps takes its own, whatever `guidance` and `steps` are.
    """
    given = (net.encode(model.vae, conditioning(first, last)) - model.mean) / model.std
    given = torch.cat([mask(last is not None).expand(len(first), -1, -1, -1, -1), given], 1)
    text = encode_prompts(model, prompts)
    nothing = encode_prompts(model, [""]).expand_as(text)
    x = torch.randn(len(first), *SHAPE, generator=torch.Generator().manual_seed(seed))
    if model.few_steps:
        plan, guidance = few_steps(), 1
    else:
        plan = scheduler()
        plan.set_timesteps(steps)
    for t in plan.timesteps:
        expert = model.high if t >= train_dit.BOUNDARY * 1000 else model.low
        when = t.expand(len(first))
        inputs = torch.cat([x, given], 1)
        velocity = expert(inputs, when, text, return_dict=False)[0]
        if guidance != 1:
            without = expert(inputs, when, nothing, return_dict=False)[0]
            velocity = without + guidance * (velocity - without)
        x = plan.step(velocity, t, x, return_dict=False)[0]
    return net.decode(model.vae, x * model.std + model.mean).clamp(-1, 1)
