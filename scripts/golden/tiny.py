"""README: the small autoencoders, taew2_1 and taew2_2, written anew from the layers of madebyollin/taehv (MIT).

The whole clip at once, as the original computes it: frames are a batch, and a block's memory is the batch moved by one.

usage: tiny.py OUTPUT [CASE ...]      CASE: taew or taew22; both without one
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import make
import portable

BLOCKS = 3


@dataclass(frozen=True)
class TinyCase:
    """``widths``: of the decoder's levels, from the latents' size on. ``inner``: the encoder's only one."""

    name: str
    channels: int
    patch: int
    inner: int
    widths: tuple[int, int, int, int]
    frames: int
    height: int
    width: int
    float_frames: tuple[int, ...]

    @property
    def pixels(self) -> int:
        return 3 * self.patch**2


CASES = [
    TinyCase("taew", 16, 1, 12, (32, 24, 16, 8), frames=13, height=32, width=48, float_frames=(0, 1, 12)),
    TinyCase("taew22", 48, 2, 8, (16, 24, 8, 8), frames=9, height=64, width=48, float_frames=(0, 4, 8)),
]


def shapes(case: TinyCase) -> dict[str, list[int]]:
    """Every tensor of the file."""
    found = {}

    def conv(name, inputs, outputs, side=3, bias=True):
        found[f"{name}.weight"] = [outputs, inputs, side, side]
        if bias:
            found[f"{name}.bias"] = [outputs]

    def blocks(half, first, width):
        for index in range(first, first + BLOCKS):
            for layer, inputs in ((0, 2 * width), (2, width), (4, width)):
                conv(f"{half}.{index}.conv.{layer}", inputs, width)

    inner, widths = case.inner, case.widths
    conv("encoder.0", case.pixels, inner)
    for start, frames in ((2, 2), (7, 2), (12, 1)):
        conv(f"encoder.{start}.conv", frames * inner, inner, 1, False)
        conv(f"encoder.{start + 1}", inner, inner, bias=False)
        blocks("encoder", start + 2, inner)
    conv("encoder.17", inner, case.channels)
    conv("decoder.1", case.channels, widths[0])
    blocks("decoder", 3, widths[0])
    for start, frames, before, after in zip((7, 13, 19), (1, 2, 2), widths, widths[1:]):
        conv(f"decoder.{start}.conv", before, frames * before, 1, False)
        conv(f"decoder.{start + 1}", before, after, bias=False)
        if start < 19:
            blocks("decoder", start + 2, after)
    conv("decoder.22", widths[3], case.pixels)
    return dict(sorted(found.items()))


class Tiny:
    """Both halves, on weights by their names in the file."""

    def __init__(self, case: TinyCase, weights: dict[str, torch.Tensor]):
        self.case, self.weights = case, weights

    def conv(self, name, x, stride=1):
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def blocks(self, half, first, x):
        for index in range(first, first + BLOCKS):
            before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
            h = torch.cat([x, before], 1)
            for layer in (0, 2):
                h = F.relu(self.conv(f"{half}.{index}.conv.{layer}", h))
            x = F.relu(self.conv(f"{half}.{index}.conv.4", h) + x)
        return x

    def encode(self, video):
        """[frames, 3, height, width] in 0..1 to latents [frames, channels, rows, columns]."""
        missing = -len(video) % 4
        x = torch.cat([video, video[-1:].expand(missing, -1, -1, -1)])
        x = F.relu(self.conv("encoder.0", F.pixel_unshuffle(x, self.case.patch)))
        for start, frames in ((2, 2), (7, 2), (12, 1)):
            x = x.reshape(-1, frames * x.shape[1], *x.shape[2:])
            x = self.conv(f"encoder.{start + 1}", self.conv(f"encoder.{start}.conv", x), stride=2)
            x = self.blocks("encoder", start + 2, x)
        return self.conv("encoder.17", x)

    def decode(self, latents):
        """The inverse, not clamped; the first three frames that it makes are none of the clip's."""
        x = self.blocks("decoder", 3, F.relu(self.conv("decoder.1", torch.tanh(latents / 3) * 3)))
        for start in (7, 13, 19):
            channels = x.shape[1]
            x = self.conv(f"decoder.{start}.conv", F.interpolate(x, scale_factor=2, mode="nearest"))
            x = self.conv(f"decoder.{start + 1}", x.reshape(-1, channels, *x.shape[2:]))
            if start < 19:
                x = self.blocks("decoder", start + 2, x)
        x = self.conv("decoder.22", F.relu(x))
        return F.pixel_shuffle(x, self.case.patch)[3:]


def config(case: TinyCase) -> dict:
    last = case.widths[3]
    return dict(
        tiny=True, z_dim=case.channels, base_dim=case.inner, decoder_base_dim=last if last != case.inner else None,
        dim_mult=[width // last for width in reversed(case.widths)], num_res_blocks=BLOCKS,
        temperal_downsample=[True, True, False], latents_mean=[0.0] * case.channels, latents_std=[1.0] * case.channels,
        patch_size=case.patch if case.patch > 1 else None, in_channels=case.pixels, out_channels=case.pixels,
    )  # fmt: skip


def make_case(case: TinyCase, folder: Path) -> None:
    names = shapes(case)
    weights = {n: torch.from_numpy(portable.weight(case.name, "vae", n, s)) for n, s in names.items()}
    net = Tiny(case, weights)
    video = torch.from_numpy(portable.input(case.name, "vae.video", (3, case.frames, case.height, case.width)))
    frames = video.transpose(0, 1) / 2 + 0.5
    mean = net.encode(frames).transpose(0, 1)
    latents = torch.from_numpy(portable.input(case.name, "vae.latents", mean.shape, make.LATENT_SCALE))
    decoded = (net.decode(latents.transpose(0, 1)) * 2 - 1).transpose(0, 1)
    assert decoded.shape == video.shape and math.prod(mean.shape)
    out = {"vae/mean": mean, "vae/mean_normalised": mean, "vae/mean_of_one": net.encode(frames[:1]).transpose(0, 1),
           "vae/decoded": decoded[:, list(case.float_frames)], "vae/decoded_u8": make._bytes(decoded[None])}  # fmt: skip
    print(f"{case.name}: mean std {mean.std():.2f}, decoded std {decoded.std():.2f}, "
          f"{(decoded.abs() > 1).float().mean():.1%} beyond the clamp")  # fmt: skip
    (folder / "vae").mkdir(parents=True, exist_ok=True)
    settings = dict(frames=case.frames, height=case.height, width=case.width, float_frames=case.float_frames)
    make._write_json(folder / "vae/config.json", config(case))
    make._write_json(folder / "case.json", settings)
    make._write_json(folder / "manifest.json", {"vae": names})
    make._write_tensors(folder / "golden.safetensors", out)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    output, wanted = Path(sys.argv[1]), sys.argv[2:]
    torch.set_grad_enabled(False)
    for case in CASES:
        if not wanted or case.name in wanted:
            make_case(case, output / case.name)


if __name__ == "__main__":
    main()
