"""Golden data for tests/all/media/colour.rs: run with pillow and numpy installed.

    python scripts/golden_colour.py tests/data/colour

Writes a small picture as people's cameras, screens and programs write it, and for each file NAME a
WANT_NAME.png with what a colour-managed viewer shows, from LittleCMS (Pillow's ImageCms).
"""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

OUT = Path(sys.argv[1])
WIDTH, HEIGHT = 32, 24

D50 = (0.9642, 1.0, 0.8249)
P3 = [(0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841)]
ADOBE = [(0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)]


def picture():
    """Gradients of all hues, u8."""
    x = np.linspace(0, 1, WIDTH)[None, :, None]
    y = np.linspace(0, 1, HEIGHT)[:, None, None]
    wave = 0.5 + 0.5 * np.sin(6 * x + 4 * y + np.array([0, 2.1, 4.2]))
    return (wave * 255).round().astype(np.uint8)


def s15(value):
    return struct.pack(">i", round(value * 65536))


def curve(gamma):
    """A curv tag: an exponent, or sRGB's own curve as a table."""
    if gamma != "srgb":
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    v = np.linspace(0, 1, 1024)
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + (linear * 65535).round().astype(">u2").tobytes()


def icc(primaries, gamma):
    """A matrix profile (ICC version 2); of grey without primaries."""
    text = b"golden\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(s15, D50)),
    }
    for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries or []):
        tags[name] = b"XYZ \0\0\0\0" + b"".join(map(s15, xyz))
    for name in (b"rTRC", b"gTRC", b"bTRC") if primaries else (b"kTRC",):
        tags[name] = curve(gamma)
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02400000, b"mntr", b"RGB " if primaries else b"GRAY", b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + b"".join(map(s15, D50))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def shown(image, profile):
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, *chunks):
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels), 9)
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def want(name, image):
    image.convert("RGB").save(OUT / f"want_{name.replace('.', '_')}.png", optimize=True)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    pixels = picture()
    image = Image.fromarray(pixels)
    p3, adobe = icc(P3, 2.2), icc(ADOBE, 2.2)
    for name, profile, options in [
        ("p3.png", p3, {}),
        ("p3.webp", p3, {"lossless": True}),
        ("p3.tiff", p3, {"compression": "tiff_lzw"}),
        ("p3.jpg", p3, {"quality": 100, "subsampling": 0}),
        ("adobe.png", adobe, {}),
    ]:
        image.save(OUT / name, icc_profile=profile, **options)
        want(name, shown(Image.open(OUT / name).convert("RGB"), profile))
    grey, profile = image.convert("L"), icc(None, 1.8)
    grey.save(OUT / "grey18.png", icc_profile=profile)
    want("grey18.png", shown(grey, profile))

    def write(name, data, expected):
        (OUT / name).write_bytes(data)
        want(name, expected)

    # Display P3 by its code points; they count, not the profile beside them.
    cicp = chunk(b"cICP", bytes([12, 13, 0, 1]))
    other = chunk(b"iCCP", b"x\0\0" + zlib.compress(adobe))
    write("cicp.png", png(pixels, cicp, other), shown(image, icc(P3, "srgb")))
    # Linear light, shown as the PNG specification has it (13.13); and sRGB's usual gAMA and cHRM.
    linear = (255 * (pixels / 255.0) ** (1 / 2.2)).round().astype(np.uint8)
    write("linear.png", png(pixels, chunk(b"gAMA", struct.pack(">I", 100000))), Image.fromarray(linear))
    primaries = [31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000]
    usual = [chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"cHRM", struct.pack(">8I", *primaries))]
    write("usual.png", png(pixels, *usual), image)

    for name in ("plain.bmp", "plain.tiff", "plain.gif"):
        image.save(OUT / name)
        want(name, Image.open(OUT / name))
    frames = [Image.new("RGB", (WIDTH, HEIGHT), "magenta")]
    image.quantize().save(OUT / "two.gif", save_all=True, append_images=frames)
    want("two.gif", Image.open(OUT / "two.gif"))

    # Without an end marker, as some programs write it, and with a camera's data in its place.
    image.save(OUT / "whole.jpg", quality=95)
    whole, expected = (OUT / "whole.jpg").read_bytes(), Image.open(OUT / "whole.jpg").convert("RGB")
    (OUT / "whole.jpg").unlink()
    write("endless.jpg", whole[:-2], expected)
    trailer = b"\0\0\x31\x0a\x0e\0\0\0Panorama_Shot_Info" + bytes(500) + b"SEFH" + bytes(40) + b"SEFT"
    write("trailer.jpg", whole[:-2] + trailer, expected)


main()
