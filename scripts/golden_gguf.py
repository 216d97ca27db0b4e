#!/usr/bin/env python3
"""Writes tests/data/gguf/, for tests/all/weights/gguf.rs and encoding.rs.

types.gguf: a tensor of random blocks in every type, and metadata of every kind, written by the
gguf package. values.safetensors: their float32 values by gguf.quants.dequantize; the values of
float8's 256 codes by PyTorch; a hash of those of float16's and bfloat16's 65536 codes.

Needs gguf (0.19), safetensors, torch. Run from anywhere: python scripts/golden_gguf.py
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

DATA = Path(__file__).resolve().parent.parent / "tests" / "data" / "gguf"

# Where a block has its float16 scales.
SCALES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
    Type.IQ4_NL: [0],
    Type.IQ4_XS: [0],
    # An exponent of one byte, and four float8.
    Type.MXFP4: [],
    Type.NVFP4: [],
}


def random_blocks(rng, kind):
    """Two rows of blocks with random bytes; the scales finite and of every size."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    per_row = 2 if elements == 256 else 5
    blocks = rng.integers(0, 256, (2 * per_row, size), dtype=np.uint8)
    for place in SCALES[kind]:
        scales = rng.standard_normal(len(blocks)) * 10.0 ** rng.integers(-7, 3, len(blocks))
        blocks[:, place : place + 2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
    if kind is Type.MXFP4:
        blocks[:, 0] = rng.integers(80, 150, len(blocks))
    if kind is Type.NVFP4:
        # Not 0x7f, for which gguf has 0; the sign counts for nothing.
        blocks[:, :4] = rng.integers(0, 0x7F, (len(blocks), 4)) | rng.choice([0, 0x80], (len(blocks), 4))
    return blocks.reshape(2, per_row * size)


def add_metadata(writer):
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -100)
    writer.add_uint16("test.u16", 60000)
    writer.add_int16("test.i16", -30000)
    writer.add_uint32("test.u32", 4_000_000_000)
    writer.add_int32("test.i32", -2_000_000_000)
    writer.add_uint64("test.u64", 2**64 - 1)
    writer.add_int64("test.i64", -(2**63))
    writer.add_float32("test.f32", 1e-6)
    writer.add_float64("test.f64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "naïve ▁")
    writer.add_array("comfy.gguf.orig_shape.some.weight", (1, 6, 40))
    writer.add_array("test.long", list(range(-50, 50)))
    writer.add_token_list(["<pad>", "</s>", "<unk>", "▁der", "ж"])
    writer.add_token_scores([0.0, 0.0, 0.0, -3.5, -12.25])
    writer.add_token_types([3, 3, 2, 1, 1])
    writer.add_precompiled_charsmap(bytes([0, 127, 128, 255]))


def add_tensors(writer, rng):
    """Writes the tensors; returns the values of those that are real numbers."""
    values = {}

    def add(name, array, kind=None, stored=None):
        writer.add_tensor(name, array if stored is None else stored, raw_dtype=kind)
        values[name] = np.ascontiguousarray(array, dtype=np.float32)

    for kind in SCALES:
        blocks = random_blocks(rng, kind)
        add(kind.name.lower(), gguf.quants.dequantize(blocks, kind), kind, blocks)
    normal = rng.standard_normal((3, 7))
    add("f64", normal)
    add("f32", normal.astype(np.float32))
    add("f16", normal.astype(np.float16))
    brain = torch.from_numpy(normal).to(torch.bfloat16)
    add("bf16", brain.float().numpy(), Type.BF16, brain.view(torch.int16).numpy().view(np.uint8))
    # Shapes that files for Wan have: five dimensions, and an outermost dimension of one.
    add("patch_embedding.weight", rng.standard_normal((4, 3, 1, 2, 2)).astype(np.float32))
    add("blocks.0.modulation", rng.standard_normal((1, 6, 8)).astype(np.float16))
    for kind in (np.int8, np.int16, np.int32, np.int64):
        writer.add_tensor(np.dtype(kind).name, np.arange(-3, 3, dtype=kind))
    return values


def code_hash(floats):
    """FNV-1a over the bits as 32-bit words, with one NaN for all."""
    bits = floats.numpy().view(np.uint32).copy()
    bits[np.isnan(floats.numpy())] = 0x7FC00000
    result = 0xCBF29CE484222325
    for word in bits.tolist():
        result = (result ^ word) * 0x100000001B3 % 2**64
    return np.array([result], dtype=np.uint64)


def main():
    rng = np.random.default_rng(4)
    DATA.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(DATA / "types.gguf", "wan")
    add_metadata(writer)
    values = add_tensors(writer, rng)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    codes = torch.arange(256, dtype=torch.uint8)
    values["f8_e4m3"] = codes.view(torch.float8_e4m3fn).float().numpy()
    values["f8_e5m2"] = codes.view(torch.float8_e5m2).float().numpy()
    codes = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    values["f16_hash"] = code_hash(codes.view(torch.float16).float())
    values["bf16_hash"] = code_hash(codes.view(torch.bfloat16).float())
    save_file(values, DATA / "values.safetensors")


if __name__ == "__main__":
    main()
