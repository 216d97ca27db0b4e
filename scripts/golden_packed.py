#!/usr/bin/env python3
"""Writes tests/data/packed/: a weight in every quantized form that is read besides GGUF's.

Each file holds what a published one has beside the layer `blocks.0.ffn.0`, and `dequantized`, the float32
matrix that it stands for. The forms and their order of operations were compared with the programs that write
and read them, to the bit: comfy-kitchen 0.2.31 (ComfyUI's), LightX2V's converter, optimum-quanto and MLX 0.32.2.

Needs torch, numpy, safetensors. Run from anywhere: python scripts/golden_packed.py
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

DATA = Path(__file__).resolve().parent.parent / "tests" / "data" / "packed"
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def matrix(w):
    w = torch.as_tensor(np.asarray(w) if not torch.is_tensor(w) else w, dtype=torch.float32)
    assert w.ndim == 2, "a matrix is needed"
    return w.contiguous()


def json_tensor(**what):
    """`comfy_quant`: UTF-8 JSON as uint8, one dimension."""
    return torch.tensor(list(json.dumps(what).encode()), dtype=torch.uint8)


# --- pieces -----------------------------------------------------------------------------------------------------------

def swizzled_index(rows, columns):
    """Where the scale of (row, block) lies in the flat buffer of cuBLAS's blocked layout of 128x4 tiles."""
    r = torch.arange(rows)[:, None]
    c = torch.arange(columns)[None, :]
    tiles = (columns + 3) // 4
    return (r // 128 * tiles + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4


def swizzle(scales):
    """[rows, blocks] of one-byte values to [rows up to 128s, blocks up to 4s]; the padding is zeros."""
    rows, columns = scales.shape
    out = torch.zeros((rows + 127) // 128 * 128 * ((columns + 3) // 4 * 4), dtype=torch.uint8)
    out[swizzled_index(rows, columns).flatten()] = scales.view(torch.uint8).flatten()
    return out.reshape((rows + 127) // 128 * 128, -1).view(scales.dtype)


def unswizzle(blocked, rows, columns):
    flat = blocked.view(torch.uint8).flatten()
    return flat[swizzled_index(rows, columns).flatten()].reshape(rows, columns).contiguous().view(blocked.dtype)


def pad_to(w, step):
    rows, columns = w.shape
    return torch.nn.functional.pad(w, (0, -columns % step, 0, -rows % step))


def e2m1_codes(x):
    """The 4-bit code nearest to x, ties to the even code; beyond 6 it saturates. Bit 3 is the sign."""
    a = x.abs()
    code = sum((a > t if strict else a >= t).to(torch.uint8)
               for t, strict in [(0.25, 1), (0.75, 0), (1.25, 1), (1.75, 0), (2.5, 1), (3.5, 0), (5.0, 1)])
    return code | (torch.signbit(x).to(torch.uint8) << 3)


def pack_nibbles(codes, even_is_high):
    even, odd = codes[..., 0::2], codes[..., 1::2]
    return (even << 4 | odd) if even_is_high else (odd << 4 | even)


def unpack_nibbles(packed, even_is_high):
    low, high = packed & 15, packed >> 4
    return torch.stack([high, low] if even_is_high else [low, high], -1).flatten(-2)


def e8m0_ceil(amax, largest):
    """Exponent byte of the smallest power of two >= amax / largest."""
    needed = (amax / largest).clamp(min=2.0 ** -127)
    return (torch.ceil(torch.log2(needed)) + 127).clamp(0, 254).to(torch.uint8)


def e8m0_value(e, zero_is_zero=False):
    """2^(e-127). comfy-kitchen reads byte 0 as 0.0; MLX, GGUF and OCP as 2^-127. Byte 255 is NaN in OCP."""
    value = torch.ldexp(torch.ones(e.shape), e.to(torch.int32) - 127)
    return torch.where(e == 0, torch.zeros(()), value) if zero_is_zero else value


def hadamard(size):
    """ConvRot's regular matrix: symmetric, its own inverse. size is a power of four."""
    h4 = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    h = h4
    while h.shape[0] < size:
        h = torch.kron(h, h4)
    assert h.shape[0] == size, "a power of four is needed"
    return h / size ** 0.5


def rotate(w, group):
    """Each run of `group` columns times the matrix; rotating twice gives the input."""
    rows, columns = w.shape
    assert columns % group == 0
    return (w.reshape(rows, -1, group) @ hadamard(group).T).reshape(rows, columns)


# --- ComfyUI ----------------------------------------------------------------------------------------------------------

def comfy_fp8(w, dtype=torch.float8_e4m3fn, old_names=False, full_precision=False):
    """float8_e4m3fn / float8_e5m2, one scale. Old: `scale_weight` and a file-wide `scaled_fp8` (2 elements there mean
    full_precision_matrix_mult). e5m2 was written by Kijai's scripts."""
    w = matrix(w)
    top = torch.finfo(dtype).max
    scale = (w.abs().max() / top).to(torch.float32)
    q = (w * (1.0 / scale)).clamp(-top, top).to(dtype)
    full = q.to(torch.float32) * scale
    if old_names:
        return {"weight": q, "scale_weight": scale, "/scaled_fp8": torch.zeros(2 if full_precision else 0, dtype=dtype)}, full
    conf = {"format": "float8_e4m3fn" if dtype == torch.float8_e4m3fn else "float8_e5m2"}
    if full_precision:
        conf["full_precision_matrix_mult"] = True
    return {"weight": q, "weight_scale": scale, "comfy_quant": json_tensor(**conf)}, full


def comfy_mxfp8(w, scale_as_u8=False):
    """Blocks of 32 e4m3 values under a power of two; the scales are swizzled, the matrix is padded to 32s."""
    w0 = matrix(w)
    w = pad_to(w0, 32)
    rows, columns = w.shape
    blocks = w.reshape(rows, -1, 32)
    amax = blocks.abs().amax(-1)
    e = torch.where(amax == 0, torch.zeros((), dtype=torch.uint8), e8m0_ceil(amax, 448.0))
    divisor = torch.where(amax == 0, torch.ones(()), e8m0_value(e, True))
    q = (blocks / divisor[..., None]).clamp(-448, 448).reshape(rows, columns).to(torch.float8_e4m3fn)
    scale = swizzle(e)
    back = e8m0_value(unswizzle(scale, rows, columns // 32), True)
    full = (q.to(torch.float32).reshape(rows, -1, 32) * back[..., None]).reshape(rows, columns)
    stored = {"weight": q, "weight_scale": scale if scale_as_u8 else scale.view(torch.float8_e8m0fnu),
              "comfy_quant": json_tensor(format="mxfp8")}
    return stored, full[: w0.shape[0], : w0.shape[1]].contiguous()


def nvfp4_parts(w, global_scale):
    """(codes, block scales as e4m3) of a matrix whose columns are a multiple of 16."""
    rows, columns = w.shape
    blocks = w.reshape(rows, -1, 16)
    scale = (blocks.abs().amax(-1) / 6.0 / global_scale).clamp(max=448.0).to(torch.float8_e4m3fn)
    total = global_scale * scale.to(torch.float32)
    x = torch.where(total[..., None] == 0, torch.zeros(()), blocks / torch.where(total == 0, 1.0, total)[..., None])
    return e2m1_codes(x.clamp(-6, 6)).reshape(rows, columns), scale


def comfy_nvfp4(w, scale_as_u8=False):
    """The EVEN column is the HIGH nibble; block scales e4m3, swizzled; the matrix is padded to 16s."""
    w0 = matrix(w)
    w = pad_to(w0, 16)
    rows, columns = w.shape
    second = (w.abs().max() / (448.0 * 6.0)).to(torch.float32)
    codes, scale = nvfp4_parts(w, second)
    packed, blocked = pack_nibbles(codes, True), swizzle(scale)
    total = second * unswizzle(blocked, rows, columns // 16).to(torch.float32)
    values = E2M1[unpack_nibbles(packed, True).long()].reshape(rows, -1, 16)
    full = (values * total[..., None]).reshape(rows, columns)
    stored = {"weight": packed, "weight_scale": blocked.view(torch.uint8) if scale_as_u8 else blocked,
              "weight_scale_2": second, "comfy_quant": json_tensor(format="nvfp4")}
    return stored, full[: w0.shape[0], : w0.shape[1]].contiguous()


def comfy_int8(w, per_row=True, convrot=None):
    """int8_tensorwise: the scale is a scalar OR [rows, 1] in spite of the name; with convrot the columns were rotated in
    groups BEFORE the scales were taken, and the matrix of the layer is the rotated-back one."""
    w = matrix(w)
    x = rotate(w, convrot) if convrot else w
    amax = x.abs().amax(1, keepdim=True) if per_row else x.abs().max()
    scale = (amax / 127.0).clamp(min=1e-30)
    q = torch.round(x / scale).clamp(-128, 127).to(torch.int8)
    full = q.to(torch.float32) * scale
    conf = {"format": "int8_tensorwise"}
    if convrot:
        full = rotate(full, convrot)
        conf |= {"convrot": True, "convrot_groupsize": convrot}
    return {"weight": q, "weight_scale": scale, "comfy_quant": json_tensor(**conf)}, full


# --- LightX2V ---------------------------------------------------------------------------------------------------------

def lightx2v_fp8(w, scale_dtype=torch.float32):
    w = matrix(w)
    scale = (w.abs().amax(1, keepdim=True).clamp(min=1e-5) / 448).to(scale_dtype)
    q = (w / scale.to(torch.float32)).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {"weight": q, "weight_scale": scale}, q.to(torch.float32) * scale.to(torch.float32)


def lightx2v_nvfp4(w, published=True):
    """The even column is the LOW nibble; the global scale DIVIDES. What the converter writes has
    `weight_global_scale`; what is published has `alpha` = 1 / (input_global_scale * weight_global_scale) instead."""
    w = matrix(w)
    rows, columns = w.shape
    by = 2688.0 / w.abs().max()
    codes, scale = nvfp4_parts(w, 1.0 / by)
    stored = {"weight": pack_nibbles(codes, False), "weight_scale": swizzle(scale)}
    if published:
        stored["input_global_scale"] = torch.tensor(2688.0 / 7.5)
        stored["alpha"] = 1.0 / (stored["input_global_scale"] * by)
        second = stored["alpha"] * stored["input_global_scale"]
    else:
        stored["weight_global_scale"] = by
        second = 1.0 / by
    total = second * scale.to(torch.float32)
    return stored, (E2M1[codes.long()].reshape(rows, -1, 16) * total[..., None]).reshape(rows, columns)


def lightx2v_mx(w, bits=8):
    """mxfp8 (e4m3, largest 448) or mxfp4 (e2m1, largest 6): uint8 data, swizzled F8_E8M0 scales, no other key."""
    w = matrix(w)
    rows, columns = w.shape
    blocks = w.reshape(rows, -1, 32)
    e = e8m0_ceil(blocks.abs().amax(-1), 448.0 if bits == 8 else 6.0)
    x = (blocks / e8m0_value(e)[..., None]).reshape(rows, columns)
    if bits == 8:
        q = x.clamp(-448, 448).to(torch.float8_e4m3fn)
        data, values = q.view(torch.uint8), q.to(torch.float32)
    else:
        codes = e2m1_codes(x)
        data, values = pack_nibbles(codes, False), E2M1[codes.long()]
    full = (values.reshape(rows, -1, 32) * e8m0_value(e)[..., None]).reshape(rows, columns)
    return {"weight": data, "weight_scale": swizzle(e).view(torch.float8_e8m0fnu)}, full


# --- ModelOpt, Black Forest Labs --------------------------------------------------------------------------------------

def modelopt_nvfp4(w):
    """The NAMES of ComfyUI's nvfp4, but the even column is the LOW nibble and the scales are [rows, columns/16], not
    swizzled; no `comfy_quant`."""
    w = matrix(w)
    rows, columns = w.shape
    second = (w.abs().max() / (448.0 * 6.0)).to(torch.float32)
    codes, scale = nvfp4_parts(w, second)
    total = second * scale.to(torch.float32)
    stored = {"weight": pack_nibbles(codes, False), "weight_scale": scale, "weight_scale_2": second, "input_scale": torch.tensor(0.01)}
    return stored, (E2M1[codes.long()].reshape(rows, -1, 16) * total[..., None]).reshape(rows, columns)


# --- quanto -----------------------------------------------------------------------------------------------------------

def quanto_8bit(w, dtype=torch.int8, scale_dtype=torch.bfloat16):
    """qint8, qfloat8: `_scale` [rows, 1] in the model's dtype. quanto itself multiplies in that dtype; here the product
    is taken in float32, so a bfloat16 model of quanto's differs by bfloat16's rounding."""
    w = matrix(w)
    top = 127 if dtype == torch.int8 else torch.finfo(dtype).max
    scale = (w.abs().amax(1, keepdim=True) / top).to(scale_dtype)
    x = w / torch.where(scale == 0, torch.ones_like(scale), scale).to(torch.float32)  # quanto: a row of zeros is NaN in float8
    q = x.round().clamp(-128, 127).to(torch.int8) if dtype == torch.int8 else x.clamp(-top, top).to(dtype)
    one = torch.ones((), dtype=scale_dtype)
    stored = {"weight._data": q, "weight._scale": scale, "input_scale": one, "output_scale": one.clone()}
    return stored, q.to(torch.float32) * scale.to(torch.float32)


# --- MLX --------------------------------------------------------------------------------------------------------------

def mlx_fp(w, mode="mxfp8"):
    """What mx.quantize of MLX 0.32.2 gives for mxfp8, mxfp4, nvfp4: `weight` uint32, `scales` uint8, no `biases`. (Up to
    0.32.1 the mx modes rounded the exponent to the nearest and saturated what no longer fitted; decoding is the same.)"""
    w = matrix(w)
    rows, columns = w.shape
    group = 16 if mode == "nvfp4" else 32
    blocks = w.reshape(rows, -1, group)
    needed = blocks.abs().amax(-1) / (448.0 if mode == "mxfp8" else 6.0)
    if mode == "nvfp4":
        scale = needed.clamp(max=448).to(torch.float8_e4m3fn)
        value, byte = scale.to(torch.float32), scale.view(torch.uint8)
    else:
        byte = torch.where(needed == 0, torch.full((), 127, dtype=torch.uint8), e8m0_ceil(needed, 1.0))
        value = e8m0_value(byte)
    x = torch.where(value[..., None] == 0, torch.zeros(()), blocks / value[..., None]).reshape(rows, columns)
    if mode == "mxfp8":
        q = x.clamp(-448, 448).to(torch.float8_e4m3fn)
        data, values = q.view(torch.uint8), q.to(torch.float32)
    else:
        codes = e2m1_codes(x)
        data, values = pack_nibbles(codes, False), E2M1[codes.long()]
    full = (values.reshape(rows, -1, group) * value[..., None]).reshape(rows, columns)
    words = torch.from_numpy(np.ascontiguousarray(data.numpy()).view("<u4").copy())
    return {"weight": words, "scales": byte.contiguous()}, full


FORMS = {
    "comfy_fp8_e5m2": lambda w: comfy_fp8(w, torch.float8_e5m2),
    "comfy_mxfp8": comfy_mxfp8,
    "comfy_nvfp4": comfy_nvfp4,
    "comfy_int8": lambda w: comfy_int8(w, per_row=False),
    "comfy_int8_rotated": lambda w: comfy_int8(w, convrot=64),
    "lightx2v_fp8": lightx2v_fp8,
    "lightx2v_nvfp4": lightx2v_nvfp4,
    "lightx2v_mxfp8": lightx2v_mx,
    "lightx2v_mxfp4": lambda w: lightx2v_mx(w, 4),
    "modelopt_nvfp4": modelopt_nvfp4,
    "quanto_int8": quanto_8bit,
    "mlx_mxfp8": mlx_fp,
    "mlx_mxfp4": lambda w: mlx_fp(w, "mxfp4"),
    "mlx_nvfp4": lambda w: mlx_fp(w, "nvfp4"),
}


def main():
    DATA.mkdir(parents=True, exist_ok=True)
    # More than a tile of 128 rows. A few larger values, and a row of zeros.
    w = torch.randn(160, 64, generator=torch.Generator().manual_seed(7)) * 0.02
    w[3, 17], w[5] = 0.21, 0.0
    for name, form in FORMS.items():
        stored, full = form(w)
        tensors = {k if k.startswith("/") else f"blocks.0.ffn.0.{k}": t.contiguous() for k, t in stored.items()}
        save_file(tensors | {"dequantized": full.contiguous()}, DATA / f"{name}.safetensors")


if __name__ == "__main__":
    main()
