"""README: builds a case's diffusers folder with the portable weights and loads it back.

The names and shapes that the generator is keyed by are read from the safetensors headers that
``save_pretrained`` wrote, so tied or non-persistent tensors are exactly those of a real checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from safetensors import safe_open
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

import portable
from cases import Case

COMPONENTS = ("transformer", "transformer_2", "vae", "text_encoder")
CONFIGS = (
    "model_index.json",
    "transformer/config.json",
    "transformer_2/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)


@dataclass
class Models:
    """A case's networks, in evaluation mode and float32."""

    high: WanTransformer3DModel
    low: WanTransformer3DModel
    vae: AutoencoderKLWan
    text_encoder: UMT5EncoderModel


def _saved_tensors(folder: Path) -> dict[str, list[int]]:
    shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():
                shapes[name] = list(file.get_slice(name).get_shape())
    return dict(sorted(shapes.items()))


def _fill(module, case: str, component: str, shapes: dict[str, list[int]]) -> None:
    values = {name: torch.from_numpy(portable.weight(case, component, name, s)) for name, s in shapes.items()}
    missing, unexpected = module.load_state_dict(values, strict=False)
    tied = set(getattr(module, "_tied_weights_keys", None) or ())
    if unexpected or not set(missing) <= tied:
        raise RuntimeError(f"{component}: saved names differ from the module's: {missing=} {unexpected=}")
    module.eval().requires_grad_(False)


def build(case: Case, scratch: Path) -> tuple[Models, dict]:
    """The case's networks with portable weights, and its manifest {component: {name: shape}}.

    ``scratch`` receives the folder as diffusers saves it, with weights that are not the portable ones.
    """
    config = UMT5Config(**case.umt5, architectures=["UMT5EncoderModel"])
    models = Models(
        high=WanTransformer3DModel(**case.dit),
        low=WanTransformer3DModel(**case.dit),
        vae=AutoencoderKLWan(**case.vae),
        text_encoder=UMT5EncoderModel(config),
    )
    # flow_shift: what diffusers' convert_wan_to_diffusers.py gives every model but TI2V and FLF2V.
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    pipeline = WanImageToVideoPipeline(
        tokenizer=T5Tokenizer(), text_encoder=models.text_encoder, vae=models.vae, scheduler=scheduler,
        transformer=models.high, transformer_2=models.low, boundary_ratio=0.9,
    )  # fmt: skip
    shard = {} if case.max_shard_size is None else {"max_shard_size": case.max_shard_size}
    pipeline.save_pretrained(scratch, **shard)

    manifest = {component: _saved_tensors(scratch / component) for component in COMPONENTS}
    for component, module in zip(COMPONENTS, (models.high, models.low, models.vae, models.text_encoder)):
        _fill(module, case.name, component, manifest[component])
    return models, manifest


def shards(scratch: Path) -> dict:
    """{component: weight map} of the components that were saved in more than one file."""
    maps = {}
    for component in COMPONENTS:
        for path in (scratch / component).glob("*.safetensors.index.json"):
            maps[component] = json.loads(path.read_text())["weight_map"]
    return maps
