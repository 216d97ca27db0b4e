"""README: adapters in every form that trainers write, on case b's experts.

Nothing of an adapter is stored but names and shapes: its values are portable.weight's of the component
``adapter.<form>.<number of the file>``. Both sides write the same files from them."""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline
from peft import LoHaConfig, LoKrConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

import portable
from models import Models

CASE = "b"
RANK = 4
METADATA = "lora_adapter_metadata"

# diffusers' names and the original ones.
ATTENTION = {f"attn{n}.to_{c}": f"{o}_attn.{d}" for n, o in ((1, "self"), (2, "cross"))
             for c, d in (("q", "q"), ("k", "k"), ("v", "v"), ("out.0", "o"))}  # fmt: skip
BLOCK = ATTENTION | {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}
OTHERS = {
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
}


@dataclass
class File:
    """A file of an adapter: the shapes of its tensors and its header's metadata."""

    tensors: dict[str, list[int]]
    strength: float = 1.0
    metadata: dict[str, str] = field(default_factory=dict)


class Forms:
    """The forms for experts with these weights."""

    def __init__(self, dit):
        self.shapes = {name: list(value.shape) for name, value in dit.state_dict().items()}
        blocks = range(dit.config.num_layers)
        self.block = {f"blocks.{i}.{ours}": f"blocks.{i}.{theirs}" for i in blocks for ours, theirs in BLOCK.items()}
        self.all = self.block | OTHERS

    def all_forms(self) -> dict[str, list[File]]:
        first, second = File(self._original(self.block, RANK), 0.7), File(self._peft("transformer", self.all), -0.3)
        return {
            "peft": [self._both_experts()],
            "original": [File(self._original(self.block, 8) | self._original(OTHERS, RANK, alpha=False))],
            "flat": [File(self._original(self.block, RANK, flat=True))],
            "two": [first, second],
            "dora": [File(self._dora())],
            "biases": [File(self._biases())],
            "whole": [File(self._whole())],
            "loha": [File(self._products(self._hada))],
            "lokr": [File(self._products(self._kron))],
        }

    def _sides(self, module: str, rank: int) -> tuple[list[int], list[int]]:
        """Shapes of what goes down to the rank, and up from it."""
        outputs, *inputs = self.shapes[f"{module}.weight"]
        return [rank, *inputs], [outputs, rank, *[1] * (len(inputs) - 1)]

    def _peft(self, prefix: str, modules, rank: int = RANK, bias: bool = False) -> dict:
        tensors = {}
        for module in modules:
            down, up = self._sides(module, rank)
            tensors |= {f"{prefix}.{module}.lora_A.weight": down, f"{prefix}.{module}.lora_B.weight": up}
            if bias:
                tensors[f"{prefix}.{module}.lora_B.bias"] = up[:1]
        return tensors

    def _both_experts(self) -> File:
        """Both experts in one file, each with its own configuration; the convolution too."""
        modules = [*self.all, "patch_embedding"]
        config = {
            "transformer": dict(lora_alpha=6, alpha_pattern={"^blocks.0.attn1.to_q": 2.5, "ffn.net.2": 3}),
            "transformer_2": dict(lora_alpha=3, use_rslora=True, lora_bias=True),
        }
        header = {f"{expert}.{key}": value for expert, own in config.items()
                  for key, value in (dict(r=RANK, target_modules=modules) | own).items()}  # fmt: skip
        tensors = self._peft("transformer", modules) | self._peft("transformer_2", modules, bias=True)
        return File(tensors, metadata={METADATA: json.dumps(header)})

    def _original(self, modules: dict, rank: int, alpha: bool = True, flat: bool = False) -> dict:
        tensors = {}
        for module, original in modules.items():
            down, up = self._sides(module, rank)
            name = f"lora_unet_{original.replace('.', '_')}" if flat else f"diffusion_model.{original}"
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            if alpha:
                tensors[f"{name}.alpha"] = []
        return tensors

    def _dora(self) -> dict:
        magnitudes = {f"transformer.{module}.lora_magnitude_vector": self.shapes[f"{module}.weight"][:1]
                      for module in self.block}  # fmt: skip
        return self._peft("transformer", self.block) | magnitudes

    def _biases(self) -> dict:
        biases = {f"diffusion_model.{original}.diff_b": self.shapes[f"{module}.bias"]
                  for module, original in self.all.items()}  # fmt: skip
        others = {module: original for module, original in OTHERS.items() if module != "proj_out"}
        head = {"diffusion_model.head.head.diff": self.shapes["proj_out.weight"]}
        low = self._original(self.block, RANK) | self._original(others, RANK, alpha=False)
        return low | biases | head

    def _whole(self) -> dict:
        return {f"diffusion_model.{key}": self.shapes[tensor] for key, tensor in WHOLE.items()}

    def _products(self, of) -> dict:
        tensors = {}
        for module, original in self.block.items():
            own = of(*self.shapes[f"{module}.weight"]) | {"alpha": []}
            tensors |= {f"diffusion_model.{original}.{name}": shape for name, shape in own.items()}
        return tensors

    @staticmethod
    def _hada(outputs: int, inputs: int) -> dict:
        sides = {"a": [outputs, RANK], "b": [RANK, inputs]}
        return {f"hada_w{i}_{side}": shape for i in (1, 2) for side, shape in sides.items()}

    @staticmethod
    def _kron(outputs: int, inputs: int) -> dict:
        return {"lokr_w1": [8, 8], "lokr_w2_a": [outputs // 8, 2], "lokr_w2_b": [2, inputs // 8]}


# What diffusers leaves out or does not read: whole changes of weights, norms and modulations.
WHOLE = {
    "blocks.0.norm3.diff": "blocks.0.norm2.weight",
    "blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
    "blocks.1.self_attn.norm_q.diff": "blocks.1.attn1.norm_q.weight",
    "blocks.0.cross_attn.norm_k.diff": "blocks.0.attn2.norm_k.weight",
    "blocks.0.self_attn.q.diff": "blocks.0.attn1.to_q.weight",
    "blocks.1.ffn.2.diff": "blocks.1.ffn.net.2.weight",
    "blocks.1.ffn.2.diff_b": "blocks.1.ffn.net.2.bias",
    "blocks.0.diff_m": "blocks.0.scale_shift_table",
    "blocks.1.modulation.diff": "blocks.1.scale_shift_table",
    "head.diff_m": "scale_shift_table",
    "patch_embedding.diff": "patch_embedding.weight",
    "patch_embedding.diff_b": "patch_embedding.bias",
    "time_projection.1.diff_b": "condition_embedder.time_proj.bias",
}


def with_adapters(net: Models, form: str, files: list[File], scratch: Path) -> Models:
    """Copies of the experts with the adapters in them, as diffusers and PEFT put them there."""
    net = Models(copy.deepcopy(net.high), copy.deepcopy(net.low), net.vae, net.text_encoder)
    pipeline = WanImageToVideoPipeline(
        None, None, net.vae, UniPCMultistepScheduler(), transformer=net.high, transformer_2=net.low, boundary_ratio=0.9
    )
    names = [f"adapter{i}" for i in range(len(files))]
    for i, (file, name) in enumerate(zip(files, names)):
        path = scratch / f"{form}.{i}.safetensors"
        values = {key: torch.from_numpy(portable.weight(CASE, f"adapter.{form}.{i}", key, shape))
                  for key, shape in file.tensors.items()}  # fmt: skip
        save_file(values, path, metadata=file.metadata or None)
        if form == "whole":
            merge(net, load_file(path))
        elif form in ("loha", "lokr"):
            for dit in (net.high, net.low):
                inject(dit, form, load_file(path), name)
        else:
            pipeline.load_lora_weights(path, adapter_name=name)
            if any(key.startswith("transformer_2.") for key in file.tensors):
                # Without use_safetensors it does not read the header.
                net.low.load_lora_adapter(path, prefix="transformer_2", adapter_name=name, use_safetensors=True)
            else:
                pipeline.load_lora_weights(path, adapter_name=name, load_into_transformer_2=True)
    if len(files) > 1:
        pipeline.set_adapters(names, [file.strength for file in files])
    for dit in (net.high, net.low):
        dit.eval().requires_grad_(False)
    return net


def merge(net: Models, values: dict) -> None:
    """Sums in float64: what diffusers has no way for."""
    for dit in (net.high, net.low):
        weights = dit.state_dict()
        for key, tensor in WHOLE.items():
            weights[tensor].copy_((weights[tensor].double() + values[f"diffusion_model.{key}"].double()).float())


def inject(dit, form: str, values: dict, name: str) -> None:
    """LoHa and LoKr by PEFT itself; the file's alphas become the configuration's."""
    modules = Forms(dit).block
    own = {key.removeprefix("diffusion_model."): value for key, value in values.items()}
    alphas = {f"^{module}": own[f"{original}.alpha"].item() for module, original in modules.items()}
    rank = RANK if form == "loha" else 2
    extra = {} if form == "loha" else {"decompose_factor": 8}
    config = (LoHaConfig if form == "loha" else LoKrConfig)(
        r=rank, alpha=rank, alpha_pattern=alphas, target_modules=list(modules), **extra
    )
    state = {f"{module}.{key.removeprefix(f'{original}.')}": value for module, original in modules.items()
             for key, value in own.items() if key.startswith(f"{original}.") and not key.endswith("alpha")}  # fmt: skip
    inject_adapter_in_model(config, dit, adapter_name=name)
    found = set_peft_model_state_dict(dit, state, name)
    missing = [key for key in found.missing_keys if f"{'hada' if form == 'loha' else 'lokr'}_" in key]
    if missing or found.unexpected_keys:
        raise RuntimeError(f"{form}: {missing=} {found.unexpected_keys=}")


def described(forms: dict[str, list[File]]) -> dict:
    """What ``forms.json`` holds."""
    return {form: [dict(strength=f.strength, metadata=f.metadata, tensors=f.tensors) for f in files]
            for form, files in forms.items()}  # fmt: skip
