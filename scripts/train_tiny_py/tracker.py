"""Measure what a generated clip shows: where each thing is, how big, in which colour and shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import world


@dataclass
class Seen:
    """What was found of one thing in one frame; `area` in pixels, `centre` in pixels (x, y)."""

    centre: np.ndarray
    area: float
    colour: np.ndarray
    shape: str


def plain(scene: world.Scene) -> np.ndarray:
    """The scene's background alone [SIZE, SIZE, 3] in [0, 1]."""
    empty = world.Scene(scene.background, scene.shade, [])
    return world.draw(empty, count=1)[0] / 255.0


def cover(frame: np.ndarray, back: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """How far [0, 1] every pixel is from the background's colour towards a thing's, 0 where it fits neither."""
    towards = colour - back
    share = ((frame - back) * towards).sum(-1) / np.maximum((towards**2).sum(-1), 1e-6)
    share = np.clip(share, 0, 1)
    misfit = np.linalg.norm(frame - back - share[..., None] * towards, axis=-1)
    return np.where(misfit < 0.5 * np.linalg.norm(towards, axis=-1), share, 0)


def find(frame: np.ndarray, back: np.ndarray, colours: list[np.ndarray]) -> Seen | None:
    """The thing of the first of `colours`; the other colours belong to other things in the frame."""
    candidates = np.stack([back, *(np.broadcast_to(c, back.shape) for c in colours)])
    nearest = np.linalg.norm(frame - candidates, axis=-1).argmin(0)
    body = nearest == 1
    if body.sum() < 8:
        return None
    y, x = np.nonzero(body)
    middle = np.array([np.median(x), np.median(y)]) + 0.5
    grid = np.arange(world.SIZE) + 0.5
    near = np.hypot(grid[None] - middle[0], grid[:, None] - middle[1]) < 20
    share = cover(frame, back, colours[0]) * (near & (nearest <= 1))
    share[share < 0.15] = 0
    area = float(share.sum())
    centre = np.array([(share.sum(0) * grid).sum(), (share.sum(1) * grid).sum()]) / area
    core = share > 0.9 * share.max()
    return Seen(centre, area, np.median(frame[core], axis=0), best_shape(share, centre, area))


def best_shape(share: np.ndarray, centre: np.ndarray, area: float) -> str:
    """The shape whose outline, at the same centre of mass and area, overlaps best."""
    scores = {}
    for shape in world.SHAPES:
        mask, mass = silhouette(shape, (world.SIZE / 2, world.SIZE / 2), 10.0)
        radius = 10.0 * np.sqrt(area / mask.sum())
        origin = centre - (mass - world.SIZE / 2) * radius / 10.0
        mask, _ = silhouette(shape, origin, radius)
        scores[shape] = np.minimum(mask, share).sum() / np.maximum(mask, share).sum()
    return max(scores, key=scores.get)


def silhouette(shape: str, origin, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Coverage [SIZE, SIZE] of a shape and its centre of mass."""
    grid = np.arange(world.SIZE) + 0.5
    d = world.signed_distance(shape, grid[None] - origin[0], grid[:, None] - origin[1], np.float64(radius))
    mask = np.clip(0.5 - d / (2 * world.EDGE), 0, 1)
    return mask, np.array([(mask.sum(0) * grid).sum(), (mask.sum(1) * grid).sum()]) / mask.sum()


def watch(clip: np.ndarray, scene: world.Scene, frame: int) -> list[Seen | None]:
    """What is seen of every thing of a scene in one frame of a clip [17, SIZE, SIZE, 3] uint8."""
    picture, back = clip[frame] / 255.0, plain(scene)
    colours = [thing.track()[2][frame] for thing in scene.things]
    return [find(picture, back, [colours[i], *colours[:i], *colours[i + 1 :]]) for i in range(len(colours))]


def colour_name(colour: np.ndarray) -> str:
    """The named colour nearest to an RGB value in [0, 1]."""
    return min(world.COLOURS, key=lambda name: np.linalg.norm(colour - np.array(world.COLOURS[name])))
