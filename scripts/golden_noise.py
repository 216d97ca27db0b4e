#!/usr/bin/env python3
"""Writes tests/data/noise.json: numbers drawn by PyTorch's CPU generator, for tests/all/noise.rs.

Needs torch. Run from anywhere: python scripts/golden_noise.py
"""

import json
from pathlib import Path

import torch

SEEDS = [0, 1, 42, 2**32 - 1, 2**32 + 5, 2**63 - 1]
# Below 16 PyTorch draws one by one; from 16 on in groups of 16, redrawing the last group if short.
WHOLE = [1, 2, 5, 15, 16, 17, 31, 33, 100]
# 16 channels, 21 latent frames of 60 x 104: the noise of an 832x480x81 clip.
PARTLY = [1000, 16 * 21 * 60 * 104, 16 * 21 * 60 * 104 + 7]
PART = 24


def draw(seed, count):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float32)


def rounded(values):
    return [float(f"{v:.9g}") for v in values.tolist()]


cases = []
for seed in SEEDS:
    for count in WHOLE:
        cases.append({"seed": seed, "count": count, "head": rounded(draw(seed, count))})
for seed in SEEDS[:4]:
    for count in PARTLY:
        x = draw(seed, count)
        middle = count // 2
        cases.append(
            {
                "seed": seed,
                "count": count,
                "head": rounded(x[:PART]),
                "middle": rounded(x[middle : middle + PART]),
                "tail": rounded(x[-PART:]),
                "mean": x.double().mean().item(),
                "mean_square": x.double().square().mean().item(),
            }
        )

path = Path(__file__).resolve().parent.parent / "tests" / "data" / "noise.json"
path.parent.mkdir(parents=True, exist_ok=True)
lines = ",\n".join(json.dumps(case) for case in cases)
path.write_text(f"[\n{lines}\n]\n")
print(f"{path.name}: {len(cases)} cases, {path.stat().st_size} bytes, torch {torch.__version__}")
