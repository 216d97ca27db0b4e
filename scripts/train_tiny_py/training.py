"""What both trainings share: schedule, resumable checkpoints, reproducible steps, logs."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import torch

SAVE_EVERY = 240.0  # seconds between checkpoints
LOG_EVERY = 25  # steps


def seed_step(seed: int, step: int) -> torch.Generator:
    """The random source of one step: a resumed run draws what an uninterrupted one draws."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100, tail: float = 0.4) -> float:
    """Warm up, hold, then fall linearly to nothing over the last `tail` of the steps."""
    fall = (steps - step) / (tail * steps)
    return peak * min(1.0, (step + 1) / warmup, fall)


def save_atomically(state: dict, path: Path) -> None:
    """Write a checkpoint so that a crash leaves either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


class Threads:
    """Uses every allowed core while the machine is otherwise idle, and one thread while it is not.

    A team of threads waits for its slowest member thousands of times a step, so one core
    shared with other work would slow it down many times over.
    """

    LOOK_EVERY = 1.5  # seconds
    OTHERS_BUSY = 0.25  # cores used by other processes

    def __init__(self):
        self.most = torch.get_num_threads()
        self.seen = self._times()

    @staticmethod
    def _times() -> tuple[float, float, float]:
        busy = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        user, nice, system = (int(x) / os.sysconf("SC_CLK_TCK") for x in busy[1:4])
        return time.time(), user + nice + system, time.process_time()

    def adapt(self) -> None:
        """Look at the machine's load now and then, and choose the number of threads."""
        if self.most == 1 or time.time() - self.seen[0] < self.LOOK_EVERY:
            return
        now = self._times()
        wall, busy, own = (a - b for a, b in zip(now, self.seen))
        self.seen = now
        wanted = 1 if (busy - own) / wall > self.OTHERS_BUSY else self.most
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)


class Run:
    """One stage of a training: steps through `loss_of(step)` and keeps a checkpoint.

    `modules` is an nn.Module with everything that is saved; `optimiser` covers what is
    trained. Starting a stage again goes on from the step its `<name>.pt` holds; a finished
    one with more steps goes on too.
    """

    def __init__(self, folder: Path, name: str, modules, optimiser, steps: int, peak: float):
        self.path = folder / f"{name}.pt"
        self.modules, self.optimiser = modules, optimiser
        self.steps, self.peak, self.step = steps, peak, 0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            modules.load_state_dict(state["modules"])
            optimiser.load_state_dict(state["optimiser"])
            self.step = state["step"]

    def save(self) -> None:
        """Write weights, optimiser state and step."""
        state = dict(
            modules=self.modules.state_dict(),
            optimiser=self.optimiser.state_dict(),
            step=self.step,
        )
        save_atomically(state, self.path)

    def train(self, loss_of, report) -> None:
        """Run to the last step; `loss_of(step)` returns a scalar, `report(step)` a log line or ''.

        On SIGTERM or SIGINT the step under way is finished, saved, and the process ends.
        """
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        saved = started = time.time()
        threads = Threads()
        total, counted = 0.0, 0
        while self.step < self.steps:
            rate = learning_rate(self.step, self.steps, self.peak)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            threads.adapt()
            loss = loss_of(self.step)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            self.step += 1
            total, counted = total + loss.item(), counted + 1
            if self.step % LOG_EVERY == 0 or self.step == self.steps:
                pace = (time.time() - started) / counted
                print(
                    f"{self.path.stem} {self.step}/{self.steps} loss {total / counted:.5f} "
                    f"lr {rate:.2e} {pace:.3f} s/step ({torch.get_num_threads()} threads) {report(self.step)}",
                    flush=True,
                )
                total, counted, started = 0.0, 0, time.time()
            if time.time() - saved > SAVE_EVERY or stop.is_set():
                self.save()
                saved = time.time()
            if stop.is_set():
                raise SystemExit(f"stopped at step {self.step} of {self.steps}; start again to go on")
        self.save()
