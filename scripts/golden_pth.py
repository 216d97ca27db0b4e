#!/usr/bin/env python3
"""Makes the PyTorch checkpoints in tests/data/pth/ that their reader is tested on.

Needs torch (made with 2.13). Each NAME.pth has a NAME.txt beside it: a line for each tensor with
its name, encoding, shape and bytes as torch has them; a NAME.pth without one is to be refused.
NAME.pkl are bare pickles that the test puts into an archive itself. Some of them call functions
when they are loaded, and nothing here loads them.

    scripts/golden_pth.py [FOLDER]
"""

import builtins
import collections
import fractions
import io
import os
import pathlib
import pickle
import sys

import torch

FOLDER = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/data/pth")

ENCODINGS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "Bf16",
    torch.float8_e4m3fn: "F8E4M3",
    torch.float8_e5m2: "F8E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "Bool",
}


def values(*shape, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def listing(tensors):
    lines = []
    for name, tensor in tensors.items():
        flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
        flat.copy_(tensor.detach().reshape(-1))
        data = bytes(flat.untyped_storage().tolist())
        shape = ",".join(map(str, tensor.shape))
        lines.append(f"{name} {ENCODINGS[tensor.dtype]} [{shape}] {data.hex()}\n")
    return "".join(lines)


def save(name, saved, tensors=None, **options):
    """Saves `saved`; `tensors` are those it holds, by the names the reader should give them."""
    # torch.save names the archive's folder after the file.
    torch.save(saved, FOLDER / f"{name}.pth", **options)
    if tensors is not None:
        (FOLDER / f"{name}.txt").write_text(listing(tensors))


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.linear = torch.nn.Linear(3, 2)
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters()):
                parameter.copy_(values(*parameter.shape, seed=i))


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Plain:
    """Pickles as an instance of a class."""


def good():
    state = Small().state_dict()
    # An OrderedDict with _metadata, a scalar (num_batches_tracked) and an int64.
    for protocol in range(2, 6):
        save(f"state{protocol}", state, state, pickle_protocol=protocol)

    dtypes = {}
    for dtype, name in ENCODINGS.items():
        dtypes[name.lower()] = (values(2, 3) * 8).abs().to(dtype)
    save("dtypes", dtypes, dtypes)

    base = values(24, dtype=torch.bfloat16)
    views = {
        "whole": base,
        "again": base,
        "tail": base[20:],
        "matrix": base[4:16].view(3, 4),
        "row": base.view(6, 4)[2],
        # Strides of dimensions of one element are free.
        "ones": base.view(6, 4)[1:2].unsqueeze(0),
        "column_of_one": base[3:4].as_strided((1, 1), (7, 9)),
        "scalar": base[5],
        "empty": base[:0],
    }
    save("views", views, views)

    inner = {"w": values(2, 2), "b": values(2, dtype=torch.float16)}
    parameter = torch.nn.Parameter(values(3), requires_grad=True)
    save(
        "wrapped",
        {
            "epoch": 3,
            "note": "text",
            "rate": 0.5,
            "large": 2**70,
            "none": None,
            "betas": [0.9, (1, 2)],
            "dtype": torch.bfloat16,
            "state_dict": {**inner, "p": parameter},
        },
        {**inner, "p": parameter},
    )
    save(
        "nested",
        {"model": inner, "state": {0: {"m": values(2)}}, "list": [values(1), {"x": values(1)}]},
        {
            "model.w": inner["w"],
            "model.b": inner["b"],
            "state.0.m": values(2),
            "list.0": values(1),
            "list.1.x": values(1),
        },
    )
    # Over 256 memo entries and strings over 255 bytes take other opcodes.
    many = {f"layer.{i}." + "x" * (260 if i == 7 else 1): values(1, seed=i) for i in range(30)}
    for protocol in (2, 5):
        save(f"many{protocol}", many, many, pickle_protocol=protocol)


def refused():
    save("transposed", {"fine": values(2, 2), "bad.weight": values(2, 3).T})
    save("expanded", {"wide": values(1).expand(4)})
    save("complex", {"c": values(2).to(torch.complex64)})
    save("negated", {"n": torch._neg_view(values(2))})
    save("sparse", {"s": values(2, 2).to_sparse()})
    save("tensor", values(2))
    save("list", [values(2)])
    save("plain", {"epoch": 3})
    save("module", Small())


def hostile():
    calls = {
        "system": Call(os.system, "true"),
        "eval": Call(builtins.eval, "1"),
        "getattr": Call(getattr, "a", "upper"),
        "newobj": Plain(),
        "fraction": fractions.Fraction(1, 2),
        "counter": collections.Counter("ab"),
        "bytes": b"abc",
        "set": {1},
    }
    for name, value in calls.items():
        for protocol in (2, 4):
            stream = io.BytesIO()
            pickle.Pickler(stream, protocol).dump({"w": value})
            (FOLDER / f"{name}{protocol}.pkl").write_bytes(stream.getvalue())
    for protocol in (0, 1):
        (FOLDER / f"protocol{protocol}.pkl").write_bytes(pickle.dumps({"w": 1}, protocol))


FOLDER.mkdir(parents=True, exist_ok=True)
good()
refused()
hostile()
