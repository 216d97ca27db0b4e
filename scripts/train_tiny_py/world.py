"""The synthetic world the miniature knows: coloured shapes that move as a prompt says.

Every scene is a pure function of its split and its number, so training and evaluation
never share a scene and any clip can be drawn again. Ground truth (centres, sizes and
colours per frame) travels with the scene for evaluation.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

import numpy as np

SIZE = 64  # pixels, both sides
FRAMES = 17
TRAVEL = 18.0  # pixels a moving object covers from the first frame to the last
GROW, SHRINK = 1.5, 0.6  # final size over first size
EDGE = 0.9  # half width in pixels of the antialiased edge
MARGIN = 2.0  # pixels kept free between an object and the border
RADIUS = (7.0, 11.0)  # pixels, from the centre to the farthest point of a circle

COLOURS = {
    "red": (0.86, 0.13, 0.13),
    "green": (0.10, 0.60, 0.22),
    "blue": (0.13, 0.27, 0.85),
    "yellow": (0.96, 0.86, 0.15),
    "orange": (0.96, 0.52, 0.08),
    "purple": (0.52, 0.16, 0.68),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.05),
}
SHAPES = ("circle", "square", "triangle", "diamond")
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*DIRECTIONS, "still", "grow", "shrink", "colour")

# {o} is the object ("the red circle"), {n} the new colour. A participle form works
# after "a red circle ..." too, so articles vary independently of the verb.
PHRASES = {
    "right": [
        "{o} moves right", "{o} moves to the right", "{o} slides to the right",
        "{o} goes right", "{o} drifts to the right", "{o} travels right",
        "{o} moving right", "move {o} to the right",
    ],
    "left": [
        "{o} moves left", "{o} moves to the left", "{o} slides to the left",
        "{o} goes left", "{o} drifts to the left", "{o} travels left",
        "{o} moving left", "move {o} to the left",
    ],
    "up": [
        "{o} moves up", "{o} rises", "{o} slides upwards", "{o} goes up",
        "{o} floats up", "{o} climbs", "{o} moving up", "move {o} up",
    ],
    "down": [
        "{o} moves down", "{o} falls", "{o} slides downwards", "{o} goes down",
        "{o} sinks", "{o} drops", "{o} moving down", "move {o} down",
    ],
    "still": [
        "{o} stays still", "{o} does not move", "{o} stands still",
        "{o} remains in place", "{o} rests", "{o} stays where it is",
    ],
    "grow": [
        "{o} grows", "{o} gets bigger", "{o} becomes larger", "{o} expands",
        "{o} grows bigger", "{o} growing",
    ],
    "shrink": [
        "{o} shrinks", "{o} gets smaller", "{o} becomes smaller", "{o} contracts",
        "{o} shrinks in size", "{o} shrinking",
    ],
    "colour": [
        "{o} turns {n}", "{o} becomes {n}", "{o} changes to {n}",
        "{o} changes colour to {n}", "{o} changes its color to {n}", "{o} turning {n}",
    ],
}
REST = [" and {o} stays still", " while {o} stays still", " and {o} does not move"]
SPLITS = {"train": 1, "eval": 2, "vae-eval": 3}


@dataclass
class Thing:
    """One object; `centre` in pixels (x, y), `radius` in pixels, `turned` when it changes colour."""

    shape: str
    colour: str
    radius: float
    centre: tuple[float, float]
    motion: str = "still"
    turned: str | None = None

    def track(self, frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres [frames, 2], radii [frames] and colours [frames, 3] of a clip."""
        u = np.linspace(0.0, 1.0, frames)
        step = np.array(DIRECTIONS.get(self.motion, (0, 0)), np.float64) * TRAVEL
        centres = np.array(self.centre) + u[:, None] * step
        final = {"grow": GROW, "shrink": SHRINK}.get(self.motion, 1.0)
        radii = self.radius * (1 + (final - 1) * u)
        first = np.array(COLOURS[self.colour])
        last = np.array(COLOURS[self.turned]) if self.turned else first
        return centres, radii, first + u[:, None] * (last - first)


@dataclass
class Scene:
    """A background, its things and what a prompt says of the first of them."""

    background: np.ndarray  # [3] in [0, 1]
    shade: np.ndarray  # [2, 3], change of colour across the picture along x and y
    things: list[Thing]
    prompt: str = ""
    held_out: bool = False  # the named (colour, shape, motion) never occurs in training
    seed: tuple[int, int] = field(default=(0, 0))


def is_held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether a combination is kept for evaluation: one in ten, fixed by its name."""
    return zlib.crc32(f"{colour}/{shape}/{motion}".encode()) % 10 == 0


def signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Distance in pixels to a shape's outline, negative inside; y points down."""
    if shape == "circle":
        return np.hypot(dx, dy) - r
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - 0.86 * r
    if shape == "diamond":
        return (np.abs(dx) + np.abs(dy)) * np.sqrt(0.5) - 0.78 * r
    # An upright triangle: base at 0.8 r below the centre, apex 1.1 r above it.
    slope = np.array([1.9, 1.0]) / np.hypot(1.9, 1.0)  # outward normal of the sides
    sides = np.abs(dx) * slope[0] + (dy + 1.1 * r) * -slope[1]
    return np.maximum(sides, dy - 0.8 * r)


def extent(motion: str, radius: float) -> np.ndarray:
    """Room a thing needs left, right, above and below its first centre, in pixels."""
    r = radius * (GROW if motion == "grow" else 1.0) * 1.1 + MARGIN
    dx, dy = np.array(DIRECTIONS.get(motion, (0, 0))) * TRAVEL
    return np.array([r + max(-dx, 0), r + max(dx, 0), r + max(-dy, 0), r + max(dy, 0)])


def place(rng: np.random.Generator, motion: str, radius: float) -> tuple[float, float]:
    """A first centre from which the whole motion stays inside the picture."""
    left, right, above, below = extent(motion, radius)
    return rng.uniform(left, SIZE - right), rng.uniform(above, SIZE - below)


def apart(a: Thing, b: Thing) -> bool:
    """Whether two things keep their distance in every frame."""
    (ca, ra, _), (cb, rb, _) = a.track(), b.track()
    return bool((np.hypot(*(ca - cb).T) > 1.25 * (ra + rb) + 1).all())


def named(rng: np.random.Generator, thing: Thing, alone: bool) -> str:
    """How a prompt names a thing; the colour may be left out when nothing else is there."""
    article = "a" if alone and rng.random() < 0.25 else "the"
    if alone and rng.random() < 0.15:
        return f"{article} {thing.shape}"
    if article == "a" and thing.colour == "orange":
        article = "an"
    return f"{article} {thing.colour} {thing.shape}"


def phrase(rng: np.random.Generator, things: list[Thing]) -> str:
    """A prompt that says what the first thing does."""
    who = named(rng, things[0], len(things) == 1)
    text = str(rng.choice(PHRASES[things[0].motion])).format(o=who, n=things[0].turned)
    if len(things) == 2 and rng.random() < 0.3:
        text += str(rng.choice(REST)).format(o=named(rng, things[1], False))
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:] + "."
    return text


def backdrop(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A muted background colour and its soft shading (none in a third of the scenes)."""
    background = np.clip(rng.uniform(0.38, 0.72) + rng.uniform(-0.09, 0.09, 3), 0, 1)
    strength = 0.0 if rng.random() < 0.33 else 0.12
    return background, rng.uniform(-strength, strength, (2, 1)) * np.ones((2, 3))


def scene(split: str, number: int, motion: str | None = None, objects: int | None = None) -> Scene:
    """Scene `number` of a split; `motion` and `objects` (1 or 2) are drawn unless given."""
    rng = np.random.default_rng((SPLITS[split], number))
    background, shade = backdrop(rng)
    count = objects or (2 if rng.random() < 0.4 else 1)
    wanted = motion or str(rng.choice(MOTIONS))
    while True:
        colours = rng.choice(list(COLOURS), 3, replace=False)
        things = []
        for i in range(count):
            what = wanted if i == 0 else "still"
            radius = rng.uniform(RADIUS[0], RADIUS[1] - (2.0 if count == 2 else 0.0))
            things.append(
                Thing(str(rng.choice(SHAPES)), str(colours[i]), radius, place(rng, what, radius), what)
            )
        if wanted == "colour":
            things[0].turned = str(colours[2])
        held_out = is_held_out(things[0].colour, things[0].shape, wanted)
        if (split != "train" or not held_out) and (count == 1 or apart(*things)):
            break
    return Scene(background, shade, things, phrase(rng, things), held_out, (SPLITS[split], number))


def siblings(original: Scene, split: str, count: int) -> list[Scene]:
    """Up to `count` scenes with the original's first frame in which another thing or motion is named."""
    rng = np.random.default_rng((*original.seed, 1))
    found = []
    choices = [(i, m) for i in range(len(original.things)) for m in MOTIONS]
    for which, motion in rng.permuted(choices, axis=0).tolist():
        mover = original.things[int(which)]
        if (mover is original.things[0] and motion == mover.motion) or len(found) == count:
            continue
        left, right, above, below = extent(motion, mover.radius)
        x, y = mover.centre
        fits = left <= x <= SIZE - right and above <= y <= SIZE - below
        held_out = is_held_out(mover.colour, mover.shape, motion)
        rest = [replace(t, motion="still", turned=None) for t in original.things if t is not mover]
        moved = replace(mover, motion=motion, turned=None)
        if motion == "colour":
            taken = {t.colour for t in original.things}
            moved.turned = str(rng.choice([c for c in COLOURS if c not in taken]))
        if fits and not (split == "train" and held_out) and all(apart(moved, t) for t in rest):
            things = [moved, *rest]
            found.append(replace(original, things=things, prompt=phrase(rng, things), held_out=held_out))
    return found


def draw(scene: Scene, frames: int = FRAMES, first: int = 0, count: int | None = None) -> np.ndarray:
    """Frames [first, first + count) of a scene as uint8 [count, SIZE, SIZE, 3]."""
    count = frames - first if count is None else count
    axis = np.arange(SIZE) + 0.5
    x, y = axis[None, None, :], axis[None, :, None]
    u, v = (x / SIZE - 0.5)[..., None], (y / SIZE - 0.5)[..., None]
    picture = np.broadcast_to(
        scene.background + u * scene.shade[0] + v * scene.shade[1], (1, SIZE, SIZE, 3)
    ).repeat(count, 0)
    for thing in scene.things:
        centres, radii, colours = (part[first : first + count] for part in thing.track(frames))
        d = signed_distance(
            thing.shape, x - centres[:, 0, None, None], y - centres[:, 1, None, None], radii[:, None, None]
        )
        cover = np.clip(0.5 - d / (2 * EDGE), 0, 1)[..., None]
        picture = picture + cover * (colours[:, None, None, :] - picture)
    return np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)
