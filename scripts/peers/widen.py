"""A folder in mlx-video's layout with every number in float32: python widen.py SOURCE DESTINATION

wan-i2v converts to 16 bits at most, and mlx-video computes in what it finds.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import mlx.core as mx


def main(source: Path, destination: Path) -> None:
    mx.set_default_device(mx.cpu)
    destination.mkdir()
    shutil.copy(source / "config.json", destination)
    for path in sorted(source.glob("*.safetensors")):
        tensors = {name: tensor.astype(mx.float32) for name, tensor in mx.load(str(path)).items()}
        mx.save_safetensors(str(destination / path.name), tensors)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
