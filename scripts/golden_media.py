"""Golden data for tests/all/media: run with torch, pillow and safetensors installed.

    python scripts/golden_media.py tests/data/media

Writes small picture files of every kind the program reads, with the pixels PIL decodes from them
(`pictures.safetensors`), and resized pictures from torch and PIL (`resize.safetensors`).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save

# Source size (width, height) and target sizes: up and down, whole and broken factors, one side
# only, and a long row in which coordinates lose precision.
RESIZES = {
    (13, 11): [(26, 22), (29, 17), (7, 5), (13, 20), (5, 31)],
    (997, 1): [(624, 1)],
}


def smooth(width, height, channels=3):
    """A picture with gradients and no two channels alike, u8."""
    x = np.linspace(0, 1, width)[None, :, None]
    y = np.linspace(0, 1, height)[:, None, None]
    phase = np.arange(channels)[None, None, :]
    wave = 0.5 + 0.5 * np.sin(5 * x * (1 + 0.3 * phase) + 4 * y + phase)
    return np.round(wave * 255).astype(np.uint8)


def resizes():
    generator = np.random.default_rng(0)
    golden = {}
    for (width, height), targets in RESIZES.items():
        source = generator.random((height, width, 3), dtype=np.float32)
        golden[f"source_{width}x{height}"] = source
        signed = torch.from_numpy(source).permute(2, 0, 1)[None].sub(0.5).div(0.5)
        for to_width, to_height in targets:
            name = f"{width}x{height}_{to_width}x{to_height}"
            bicubic = torch.nn.functional.interpolate(
                signed, size=(to_height, to_width), mode="bicubic", align_corners=False
            )
            golden[f"bicubic_{name}"] = bicubic[0].permute(1, 2, 0).contiguous().numpy()
            channels = [
                np.asarray(
                    Image.fromarray(source[:, :, c], mode="F").resize(
                        (to_width, to_height), Image.Resampling.LANCZOS
                    )
                )
                for c in range(3)
            ]
            golden[f"lanczos_{name}"] = np.stack(channels, axis=-1).clip(0, 1) * 2 - 1
    return golden


def pictures(folder):
    rgb = Image.fromarray(smooth(24, 16))
    upright = Image.Exif()
    upright[0x0112] = 6  # orientation: turn 90 degrees clockwise
    palette = rgb.quantize(16)
    files = {
        "rgb.png": (rgb, {}),
        "grey.png": (rgb.convert("L"), {}),
        "bilevel.png": (rgb.convert("1"), {}),
        "palette.png": (palette, {}),
        "rgb.webp": (rgb, {"lossless": True}),
        "lossy.webp": (rgb, {"quality": 90}),
        "rgb.jpg": (rgb, {"subsampling": 0}),
        "subsampled.jpg": (rgb, {"subsampling": 2, "quality": 95}),
        "progressive.jpg": (rgb, {"subsampling": 0, "progressive": True}),
        "grey.jpg": (rgb.convert("L"), {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "turned.jpg": (rgb, {"subsampling": 0, "exif": upright}),
        "turned.png": (rgb, {"exif": upright}),
        "turned.webp": (rgb, {"lossless": True, "exif": upright}),
    }
    golden = {}
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
        with Image.open(folder / name) as read:
            pixels = np.asarray(read.convert("RGB"))
        if name.startswith("turned"):
            pixels = np.rot90(pixels, k=-1).copy()
        golden[name] = pixels
    return golden


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in [("resize", resizes()), ("pictures", pictures(folder))]:
        (folder / f"{name}.safetensors").write_bytes(save(tensors))


if __name__ == "__main__":
    main()
