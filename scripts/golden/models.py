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
from cases import Case, VaeCase

COMPONENTS = ("transformer", "transformer_2", "vae", "text_encoder")
CONFIGS = (
    "model_index.json",
    "transformer/config.json",
    "transformer_2/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)


# Of each latent channel of Wan2.2's VAE (Wan-Video/Wan2.2, wan/modules/vae2_2.py).
VAE22_MEAN = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
]  # fmt: skip
VAE22_STD = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
]  # fmt: skip


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


def build_vae(case: VaeCase, scratch: Path) -> tuple[AutoencoderKLWan, dict]:
    """As `build`, of a VAE alone. Its statistics are the published ones where there are 16 or 48 channels."""
    z_dim = case.vae["z_dim"]
    statistics = {} if z_dim == 16 else dict(
        latents_mean=(VAE22_MEAN * z_dim)[:z_dim], latents_std=(VAE22_STD * z_dim)[:z_dim])  # fmt: skip
    vae = AutoencoderKLWan(**case.vae, **statistics)
    vae.save_pretrained(scratch / "vae")
    manifest = {"vae": _saved_tensors(scratch / "vae")}
    _fill(vae, case.name, "vae", manifest["vae"])
    return vae, manifest


def shards(scratch: Path) -> dict:
    """{component: weight map} of the components that were saved in more than one file."""
    maps = {}
    for component in COMPONENTS:
        for path in (scratch / component).glob("*.safetensors.index.json"):
            maps[component] = json.loads(path.read_text())["weight_map"]
    return maps
