"""The phases of a clip, timed alike in every peer."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

PHASES = ("text", "image", "denoising", "decoding")


class Stopwatch:
    """Seconds spent in each phase; a phase can be entered more than once."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase: str | None = None
        self._since = 0.0

    def enter(self, phase: str | None) -> None:
        """Ends the phase that runs, if one does, and starts `phase`."""
        now = time.perf_counter()
        if self._phase is not None:
            self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def finish(self, folder: Path, frames: np.ndarray) -> None:
        """Ends the last phase and writes what `compare.py` reads: seconds, and frames (uint8 [F, H, W, 3])."""
        self.enter(None)
        missing = [phase for phase, seconds in self.seconds.items() if seconds == 0]
        if missing:
            raise SystemExit(f"no time was measured for: {', '.join(missing)}")
        np.save(folder / "frames.npy", frames)
        (folder / "phases.json").write_text(json.dumps(self.seconds))
