"""A random model in diffusers' layout: python make_model.py FOLDER TOKENIZER

Experts of width 1536 (12 heads, FFN 8960, 4 layers), the published VAE's width of 96 and latent
statistics, a text encoder of 4 layers. Spreads keep activations bounded: a sum over the inputs
spreads as one input does. The values are those that bfloat16 has, stored as float32, so that
passing through a layout of 16 bits changes none.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

TEXT_DIM = 1024


def fill(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            norm = "norm" in name and name.endswith("weight") or name.endswith("gamma")
            if norm:
                value = 1 + 0.05 * draw
            elif name.endswith("scale_shift_table"):
                value = draw * parameter.shape[-1] ** -0.5
            elif parameter.dim() > 1:
                value = draw * parameter[0].numel() ** -0.5
            else:
                value = 0.02 * draw
            # The scores of UMT5's attention are not divided by anything.
            if name.endswith(("SelfAttention.q.weight", "relative_attention_bias.weight")):
                value = value / 8
            if name.endswith("shared.weight"):
                value = draw
            parameter.copy_(value.to(torch.bfloat16).float())
    return model


def main(folder: Path, tokenizer: Path) -> None:
    vocabulary = 1 + max(
        [len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])]
        + [token["id"] for token in json.loads((tokenizer / "tokenizer.json").read_text())["added_tokens"]]
    )
    for number, name in enumerate(("transformer", "transformer_2")):
        expert = WanTransformer3DModel(
            num_attention_heads=12,
            attention_head_dim=128,
            in_channels=36,
            out_channels=16,
            text_dim=TEXT_DIM,
            freq_dim=256,
            ffn_dim=8960,
            num_layers=4,
        )
        fill(expert, 1 + number).save_pretrained(folder / name, max_shard_size="100GB")
        del expert
    fill(AutoencoderKLWan(), 3).save_pretrained(folder / "vae")
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=TEXT_DIM,
            d_kv=64,
            d_ff=2560,
            num_layers=4,
            num_heads=16,
            feed_forward_proj="gated-gelu",
        )
    )
    fill(text, 4).save_pretrained(folder / "text_encoder")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    ).save_pretrained(folder / "scheduler")
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    index = {
        "_class_name": "WanImageToVideoPipeline",
        "boundary_ratio": 0.9,
        "expand_timesteps": False,
        "image_encoder": [None, None],
        "image_processor": [None, None],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
