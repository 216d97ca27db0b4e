"""Write a full-size transformer whose weights are holes in the files.

Usage: python3 scripts/sparse_expert.py FOLDER original|diffusers F32|BF16|F8|Q8_0|Q4_K [a14b|5b]

Names, shapes and shards are those of the published repositories: an expert of Wan2.2 I2V-A14B (6 files,
-Diffusers: 12; 1,095 tensors, 14.3 billion parameters) or the transformer of TI2V-5B (3 files, -Diffusers: 5;
825 tensors, 5.0 billion). F8 is one file of float8 with scales, as ComfyUI's are, and Q8_0 and Q4_K are GGUF
files. All values are zero and take no disk.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

FREQ, TEXT = 256, 4096
MODELS = {
    "a14b": (5120, 13824, 40, 40, 36, 16, {"original": 6, "diffusers": 12}),
    "5b": (3072, 14336, 30, 24, 48, 48, {"original": 3, "diffusers": 5}),
}
MODEL = sys.argv[4] if len(sys.argv) > 4 else "a14b"
DIM, FFN, LAYERS, HEADS, IN, OUT, SHARDS = MODELS[MODEL]
BYTES = {"F32": 4, "BF16": 2, "F8_E4M3": 1}
# ggml's number, values and bytes of a block.
GGUF = {"F32": (0, 1, 4), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144)}
FILE = "diffusion_pytorch_model"
# Without it, zeros are refused as a download that is not whole.
MEANT = "wan_i2v_zeros"


def linear(name: str, outputs: int, inputs: int) -> dict[str, list[int]]:
    return {f"{name}.weight": [outputs, inputs], f"{name}.bias": [outputs]}


def original() -> dict[str, list[int]]:
    """Names and shapes of Wan-Video/Wan2.2, `wan/modules/model.py`."""
    tensors = {"patch_embedding.weight": [DIM, IN, 1, 2, 2], "patch_embedding.bias": [DIM]}
    tensors |= linear("text_embedding.0", DIM, TEXT) | linear("text_embedding.2", DIM, DIM)
    tensors |= linear("time_embedding.0", DIM, FREQ) | linear("time_embedding.2", DIM, DIM)
    tensors |= linear("time_projection.1", 6 * DIM, DIM)
    for i in range(LAYERS):
        block = f"blocks.{i}"
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                tensors |= linear(f"{block}.{attention}.{part}", DIM, DIM)
            for part in "qk":
                tensors[f"{block}.{attention}.norm_{part}.weight"] = [DIM]
        tensors |= {f"{block}.norm3.weight": [DIM], f"{block}.norm3.bias": [DIM]}
        tensors |= linear(f"{block}.ffn.0", FFN, DIM) | linear(f"{block}.ffn.2", DIM, FFN)
        tensors[f"{block}.modulation"] = [1, 6, DIM]
    tensors |= linear("head.head", OUT * 4, DIM)
    tensors["head.modulation"] = [1, 2, DIM]
    return tensors


def diffusers() -> dict[str, list[int]]:
    """The same under diffusers' names (`WanTransformer3DModel`)."""
    parts = {
        "text_embedding.0.": "condition_embedder.text_embedder.linear_1.",
        "text_embedding.2.": "condition_embedder.text_embedder.linear_2.",
        "time_embedding.0.": "condition_embedder.time_embedder.linear_1.",
        "time_embedding.2.": "condition_embedder.time_embedder.linear_2.",
        "time_projection.1.": "condition_embedder.time_proj.",
        "head.head.": "proj_out.",
        "head.modulation": "scale_shift_table",
        ".modulation": ".scale_shift_table",
        ".ffn.0.": ".ffn.net.0.proj.",
        ".ffn.2.": ".ffn.net.2.",
        ".norm3.": ".norm2.",
        ".self_attn.": ".attn1.",
        ".cross_attn.": ".attn2.",
        ".q.": ".to_q.",
        ".k.": ".to_k.",
        ".v.": ".to_v.",
        ".o.": ".to_out.0.",
    }
    renamed = {}
    for name, shape in original().items():
        for old, new in parts.items():
            name = name.replace(old, new)
        renamed[name] = shape
    return renamed


CONFIGS = {
    "original": {
        "_class_name": "WanModel",
        "_diffusers_version": "0.33.0",
        "dim": DIM,
        "eps": 1e-06,
        "ffn_dim": FFN,
        "freq_dim": FREQ,
        "in_dim": IN,
        "model_type": {"a14b": "i2v", "5b": "ti2v"}[MODEL],
        "num_heads": HEADS,
        "num_layers": LAYERS,
        "out_dim": OUT,
        "text_len": 512,
    },
    "diffusers": {
        "_class_name": "WanTransformer3DModel",
        "added_kv_proj_dim": None,
        "attention_head_dim": DIM // HEADS,
        "cross_attn_norm": True,
        "eps": 1e-06,
        "ffn_dim": FFN,
        "freq_dim": FREQ,
        "image_dim": None,
        "in_channels": IN,
        "num_attention_heads": HEADS,
        "num_layers": LAYERS,
        "out_channels": OUT,
        "patch_size": [1, 2, 2],
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": TEXT,
    },
}


def size(shape: list[int], dtype: str) -> int:
    total = BYTES[dtype]
    for length in shape:
        total *= length
    return total


def is_quantized(name: str, shape: list[int]) -> bool:
    return name.endswith(".weight") and len(shape) == 2 and "blocks." in name


def write_shard(path: Path, tensors: dict[str, list[int]], wanted: str) -> None:
    header, at = {"__metadata__": {"format": "pt", MEANT: "for measurements"}}, 0
    for name, shape in tensors.items():
        dtype = wanted
        if wanted == "F8":
            dtype = "F8_E4M3" if is_quantized(name, shape) else "BF16"
            dtype = "F32" if name.endswith(".scale_weight") else dtype
        end = at + size(shape, dtype)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def write_gguf(path: Path, tensors: dict[str, list[int]], wanted: str) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    # A string has type 8.
    about = {"general.architecture": "wan", MEANT: "for measurements"}
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(about))
    out += b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in about.items())
    at = 0
    for name, shape in tensors.items():
        kind, values, block = GGUF[wanted if is_quantized(name, shape) else "F32"]
        out += text(name) + struct.pack("<I", len(shape))
        out += struct.pack(f"<{len(shape)}QIQ", *reversed(shape), kind, at)
        count = 1
        for length in shape:
            count *= length
        at += (count // values * block + 31) // 32 * 32
    with path.open("wb") as file:
        file.write(out)
        file.truncate((len(out) + 31) // 32 * 32 + at)


def write_one(folder: Path, tensors: dict[str, list[int]], dtype: str) -> None:
    """One file of quantized weights, beside nothing."""
    if dtype == "F8":
        weights = [name for name, shape in tensors.items() if is_quantized(name, shape)]
        scales = {name.removesuffix("weight") + "scale_weight": [] for name in weights}
        write_shard(folder / f"{FILE}.safetensors", tensors | scales, dtype)
    else:
        write_gguf(folder / f"{FILE}.gguf", tensors, dtype)


def main(folder: Path, layout: str, dtype: str) -> None:
    tensors = original() if layout == "original" else diffusers()
    folder.mkdir(parents=True, exist_ok=True)
    if dtype not in BYTES:
        write_one(folder, tensors, dtype)
        return
    whole = sum(size(shape, dtype) for shape in tensors.values())
    shards, filled = [{}], 0
    for name, shape in tensors.items():
        if filled >= whole * len(shards) / SHARDS[layout]:
            shards.append({})
        shards[-1][name] = shape
        filled += size(shape, dtype)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"{FILE}-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / file, shard, dtype)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": whole}, "weight_map": weight_map}
    (folder / f"{FILE}.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIGS[layout], indent=2))
    count = sum(size(shape, dtype) // BYTES[dtype] for shape in tensors.values())
    print(f"{folder}: {len(tensors)} tensors, {count:,} parameters, {whole:,} bytes, {len(shards)} files")


if __name__ == "__main__":
    forms = {"F32", "BF16", "F8", "Q8_0", "Q4_K"}
    if len(sys.argv) not in (4, 5) or sys.argv[2] not in CONFIGS or sys.argv[3] not in forms:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
