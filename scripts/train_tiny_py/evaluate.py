"""Measure the miniature on scenes the training never drew, and draw film strips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import distill
import sample
import train_vae
import world
from tracker import Seen, colour_name, watch

SEED = 5
BATCH = 20
STRIP_FRAMES = (0, 4, 8, 12, 16)
ENLARGED = 2  # size of a frame in the film strips
CAPTION = 18  # pixels for the prompt above a strip
ENOUGH = 0.6  # share of the true change that counts as obeying the prompt
STILL = 2.0  # pixels a resting thing may drift
CONTRAST = 0.85  # share of the contrast that must be left in the last frame


def to_bytes(clips: torch.Tensor) -> np.ndarray:
    """[-1, 1] [B, 3, T, H, W] to uint8 [B, T, H, W, 3]."""
    return ((clips + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 4, 1).to(torch.uint8).numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays in dB."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def drift(before: Seen | None, after: Seen | None) -> np.ndarray:
    """Displacement in pixels; what vanished has moved infinitely far."""
    return after.centre - before.centre if before and after else np.array([np.inf, np.inf])


def along(scene: world.Scene, moved: np.ndarray) -> float:
    """Share of the true displacement in the prompted direction, 0 when another direction dominates."""
    direction = np.array(world.DIRECTIONS[scene.things[0].motion], float)
    if not np.isfinite(moved).all():
        return 0.0
    forward = moved @ direction
    sideways = abs(moved @ direction[::-1])
    return float(forward / world.TRAVEL) if forward > sideways else 0.0


def judge(clip: np.ndarray, scene: world.Scene, truth: np.ndarray) -> dict:
    """Everything measured on one clip (uint8 [17, 64, 64, 3]) against its scene."""
    mover, motion = scene.things[0], scene.things[0].motion
    first, last = watch(clip, scene, 0), watch(clip, scene, world.FRAMES - 1)
    moved = drift(first[0], last[0])
    result = dict(
        motion=motion,
        two=len(scene.things) == 2,
        held_out=scene.held_out,
        first_psnr=psnr(clip[0], truth[0]),
        clip_psnr=psnr(clip, truth),
        contrast=float(clip[-1].std() / clip[0].std() / (truth[-1].std() / truth[0].std())),
        plain_contrast=float(clip[-1].std() / clip[0].std()),
        colour=bool(last[0] and colour_name(last[0].colour) == (mover.turned or mover.colour)),
        shape=bool(last[0] and last[0].shape == mover.shape),
        moved=[float(v) for v in moved],
    )
    if motion in world.DIRECTIONS:
        result["travel"] = along(scene, moved)
        result["obeyed"] = result["travel"] >= ENOUGH
    elif motion == "still":
        result["obeyed"] = bool(np.hypot(*moved) < STILL)
    elif motion == "colour":
        result["obeyed"] = result["colour"]
    else:
        wanted = np.log(world.GROW if motion == "grow" else world.SHRINK)
        found = 0.5 * np.log(last[0].area / first[0].area) if first[0] and last[0] else 0.0
        result["obeyed"] = bool(found / wanted >= ENOUGH)
    if result["two"]:
        result["other_stays"] = bool(np.hypot(*drift(first[1], last[1])) < STILL)
    return result


def other_direction(scene: world.Scene) -> world.Scene | None:
    """The same first frame with the named thing told to move another way, if there is room."""
    for sibling in world.siblings(scene, "eval", 99):
        thing = sibling.things[0]
        if thing.motion in world.DIRECTIONS and thing.centre == scene.things[0].centre:
            return sibling
    return None


def run(
    model, scenes: list[world.Scene], guidance: float, steps: int, with_last: bool = False
) -> list[np.ndarray]:
    """Generated clips, uint8, of scenes from their first (and last) frames and prompts."""
    clips = []
    for start in range(0, len(scenes), BATCH):
        part = scenes[start : start + BATCH]
        pictures = train_vae.to_signed(np.stack([world.draw(s, count=1) for s in part]))[:, :, 0]
        lasts = train_vae.to_signed(np.stack([world.draw(s)[-1:] for s in part]))[:, :, 0] if with_last else None
        prompts = [s.prompt for s in part]
        clips += list(to_bytes(sample.generate(model, pictures, prompts, SEED + start, guidance, steps, lasts)))
    return clips


def rate(results: list[dict], key: str, wanted=lambda r: True) -> str:
    """Share of results, among the wanted ones, in which `key` holds, with their number."""
    chosen = [r[key] for r in results if wanted(r) and key in r]
    return f"{100 * np.mean(chosen):.1f}% of {len(chosen)}" if chosen else "none"


def summary(results: list[dict]) -> dict[str, str]:
    """The table of measures."""
    first = [r["first_psnr"] for r in results]
    travels = [r["travel"] for r in results if "travel" in r]
    changes = [m for m in world.MOTIONS if m not in world.DIRECTIONS]
    table = {
        "first frame PSNR, mean / worst": f"{np.mean(first):.1f} / {min(first):.1f} dB",
        "whole clip PSNR against the true clip, mean": f"{np.mean([r['clip_psnr'] for r in results]):.1f} dB",
        "share of the true displacement, mean / worst": f"{np.mean(travels):.3f} / {min(travels):.3f}",
        "moves as told": rate(results, "obeyed", lambda r: r["motion"] in world.DIRECTIONS),
        **{f"obeys: {m}": rate(results, "obeyed", lambda r, m=m: r["motion"] == m) for m in changes},
        "obeys, combinations never trained": rate(results, "obeyed", lambda r: r["held_out"]),
        "colour as expected": rate(results, "colour"),
        "shape stays": rate(results, "shape"),
        "contrast kept": rate([dict(ok=r["contrast"] >= CONTRAST) for r in results], "ok"),
        "contrast kept, last frame over first": rate([dict(ok=r["plain_contrast"] >= CONTRAST) for r in results], "ok"),
        "contrast kept, last frame over first, where nothing shrinks or turns": rate(
            [dict(ok=r["plain_contrast"] >= CONTRAST) for r in results if r["motion"] not in ("shrink", "colour")], "ok"
        ),
        "two objects: the named one obeys and the other stays": rate(
            [dict(ok=r["obeyed"] and r["other_stays"]) for r in results if r["two"]], "ok"
        ),
    }
    return table


def strips(clips: list[np.ndarray], prompts: list[str], path: Path) -> None:
    """A PNG with one clip a row, five frames each, enlarged, under its prompt."""
    rows = [np.concatenate(list(clip[list(STRIP_FRAMES)]), 1) for clip in clips]
    height, width = (side * ENLARGED for side in rows[0].shape[:2])
    sheet = Image.new("RGB", (width, len(rows) * (height + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (row, prompt) in enumerate(zip(rows, prompts)):
        top = number * (height + CAPTION)
        draw.text((4, top + 2), prompt, fill="black", font_size=CAPTION - 6)
        picture = Image.fromarray(row).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (0, top + CAPTION))
    sheet.save(path, optimize=True)


def evaluate(
    folder: Path, first: int, count: int, guidances: list[float], steps: int, few_steps: str | None = None
) -> None:
    """Measure the exported checkpoint on `count` scenes from number `first` on at every guidance.

    Writes evaluation.json and film strips. `few_steps` measures four passes instead: "adapted", or
    "bare" without the adapters.
    """
    model = distill.load_model(folder)
    if few_steps:
        model.few_steps, guidances, steps = True, [1.0], len(distill.SIGMAS) - 1
    if few_steps == "adapted":
        distill.merge(model, folder / "lightning")
    scenes = [world.scene("eval", i) for i in range(first, first + count)]
    truths = [world.draw(s) for s in scenes]
    report = {"first scene": first, "scenes": count, "steps": steps}
    if not few_steps:  # the adapters leave the autoencoder alone
        trips = [
            train_vae.round_trip(model.vae, train_vae.to_signed(np.stack(truths[i : i + 4])))
            for i in range(0, count - count % 4, 4)
        ]
        whole, first = (torch.cat([trip[i] for trip in trips]) for i in (0, 1))
        report["VAE round trip PSNR, clips mean / worst, first frames mean / worst"] = (
            f"{whole.mean():.1f} / {whole.min():.1f} / {first.mean():.1f} / {first.min():.1f} dB"
        )
    for guidance in guidances:
        clips = run(model, scenes, guidance, steps)
        results = [judge(c, s, t) for c, s, t in zip(clips, scenes, truths)]
        table = summary(results)
        if guidance == guidances[0] and few_steps != "bare":
            table["another direction, another way"] = divergence(model, scenes, clips, guidance, steps)
            table["both ends given: last frame PSNR, mean / worst"] = last_frame_met(model, scenes, guidance, steps)
        name = f"few-{few_steps}" if few_steps else f"g{guidance}"
        report[name] = table
        strips(clips[:12], [s.prompt for s in scenes[:12]], folder / f"strips-{name}.png")
        (folder / f"results-{name}.json").write_text(json.dumps(results))
        (folder / f"evaluation{'-' + name if few_steps else ''}.json").write_text(json.dumps(report, indent=1))
        print(json.dumps(report, indent=1), flush=True)


def last_frame_met(model, scenes, guidance: float, steps: int) -> str:
    """How near a clip conditioned on its first and last frames ends to the last one."""
    clips = run(model, scenes, guidance, steps, with_last=True)
    values = [psnr(clip[-1], world.draw(scene)[-1]) for clip, scene in zip(clips, scenes)]
    return f"{np.mean(values):.1f} / {min(values):.1f} dB"


def divergence(model, scenes, clips, guidance: float, steps: int) -> str:
    """How often the same picture and seed with another direction ends at least half a travel elsewhere."""
    differ = []
    others = [other_direction(scene) or scene for scene in scenes]  # in place, so that seeds agree
    for scene, other, clip, again in zip(scenes, others, clips, run(model, others, guidance, steps)):
        if other is scene or scene.things[0].motion not in world.DIRECTIONS:
            continue
        (a, *_), (b, *_) = (watch(c, s, world.FRAMES - 1) for c, s in ((clip, scene), (again, other)))
        differ.append(bool(a and b and np.hypot(*(a.centre - b.centre)) > 0.5 * world.TRAVEL))
    return f"{100 * np.mean(differ):.1f}% of {len(differ)}" if differ else "none"
