"""README: the portable generator behind every weight and every input of the golden tests.

Weights are not committed. The Rust tests and these scripts make the same ones from the same keys.

A tensor's key is ``<case>/<component>/<tensor name>``: component is ``transformer``, ``transformer_2``,
``vae``, ``text_encoder``, ``image_encoder``, ``input`` or ``adapter.<form>.<file>``; the name is the one in the safetensors file that
diffusers, transformers or a trainer of adapters saves. Then

    h   = FNV-1a (64 bit) of the key's UTF-8 bytes
    x_i = splitmix64's finaliser of h + (i + 1) * 0x9E3779B97F4A7C15 (mod 2^64)
    u_i = float32(x_i >> 40) * 2^-23 - 1           exact in float32, in [-1, 1)
    v_i = float32(offset) + float32(scale) * u_i   rounded to float32 after the product and after the sum

with i counting the elements in C order. ``rule`` gives offset and scale; the first rule that matches wins.
"""

import math

import numpy as np

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def fnv1a64(data: bytes) -> int:
    """FNV-1a, 64 bit."""
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & _MASK
    return h


def uniform(key: str, count: int) -> np.ndarray:
    """``count`` float32 values in [-1, 1), each a multiple of 2^-23."""
    with np.errstate(over="ignore"):
        i = np.arange(1, count + 1, dtype=np.uint64)
        z = np.uint64(fnv1a64(key.encode())) + i * np.uint64(_GOLDEN_GAMMA)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


def rule(name: str, shape) -> tuple[float, float]:
    """(offset, scale) of the weight ``name``."""
    if name.endswith(".alpha"):
        return 6.0, 2.0
    if "gamma" in name or "magnitude" in name:
        return 1.0, 0.2
    if "scale_shift_table" in name:
        return 0.0, 0.3
    if "relative_attention_bias" in name:
        return 0.0, 1.0
    if "shared." in name or "embed_tokens." in name:
        return 0.0, 1.0
    if len(shape) == 1:
        return (1.0, 0.2) if name.endswith("weight") else (0.0, 0.1)
    return 0.0, math.sqrt(3.0 / math.prod(shape[1:]))


def _scaled(key: str, shape, offset: float, scale: float) -> np.ndarray:
    u = uniform(key, math.prod(shape))
    return (np.float32(offset) + np.float32(scale) * u).reshape(shape)


def weight(case: str, component: str, name: str, shape) -> np.ndarray:
    """The weight ``name`` of a component, float32, shaped ``shape``."""
    return _scaled(f"{case}/{component}/{name}", tuple(shape), *rule(name, shape))


def input(case: str, name: str, shape, scale: float = 1.0) -> np.ndarray:
    """An input tensor in [-scale, scale), float32, shaped ``shape``."""
    return _scaled(f"{case}/input/{name}", tuple(shape), 0.0, scale)


def token_ids(case: str, name: str, count: int) -> np.ndarray:
    """``count`` token ids, int32: ids 3..999 from the generator, then 1 (``</s>``) as the last."""
    u = uniform(f"{case}/input/{name}", count).astype(np.float64)
    ids = (3 + np.floor((u + 1) / 2 * 997)).astype(np.int32)
    ids[-1] = 1
    return ids


def picture(case: str, height: int, width: int) -> np.ndarray:
    """An 8-bit RGB picture [height, width, 3]: floor((u + 1) * 128)."""
    u = uniform(f"{case}/input/picture", height * width * 3)
    return np.floor((u + 1) * 128).astype(np.uint8).reshape(height, width, 3)
