"""Runs wan-i2v and its peers in turn and prints medians and ratios. Started by scripts/compare_peers."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image
from phases import PHASES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OURS = "wan-i2v"
SEED = 11
ROWS = (*PHASES, "start and output", "total", "CPU time", "peak memory")


@dataclass(frozen=True)
class Size:
    width: int
    height: int
    frames: int
    steps: int
    guidance: float = 3.5
    prompt: str = "A red ball rolls across a wooden table."
    negative_prompt: str = "blurry, static"


SIZES = {
    "check": Size(64, 64, 5, 2),
    "small": Size(320, 192, 9, 4),
    "large": Size(480, 272, 17, 4),
    "tiny": Size(
        64, 64, 17, 12, 2.0, "the red circle moves up and the blue square stays still", ""
    ),
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/compare_peers")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--peers", default="wan-i2v,mlx-video,diffusers")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    mac = sys.platform == "darwin"
    parser.add_argument("--device", choices=("cpu", "gpu"), default="gpu" if mac else "cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.peers = given.peers.split(",")
    unknown = set(given.peers) - {OURS, "mlx-video", "diffusers"}
    if unknown or given.runs < 1:
        parser.error(f"no such peer: {', '.join(unknown)}" if unknown else "--runs must be at least 1")
    if not given.binary.is_file():
        parser.error(f"{given.binary} is not there; build it with: cargo build --release")
    if given.size == "tiny" and "mlx-video" in given.peers:
        note("mlx-video's VAE has a fixed width of 96: it cannot run the miniature and is left out")
        given.peers.remove("mlx-video")
    return given


def note(words: str) -> None:
    print(f"compare_peers: {words}", file=sys.stderr, flush=True)


def environment(threads: int, peer: str, folder: Path) -> dict[str, str]:
    """The environment of one run: so many threads for every library, no hub, no tuned-down BLAS."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        variables[name] = str(threads)
    variables |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    variables |= {"TOKENIZERS_PARALLELISM": "false"}
    shim = folder / "mlx-video" / "libblas_shim.so"
    if peer == "mlx-video" and sys.platform == "linux":
        variables["LD_PRELOAD"] = str(shim)
    return variables


def python(folder: Path, peer: str) -> Path:
    return folder / peer / "bin" / "python"


def complete(folder: Path, make) -> Path:
    """`folder`, made by `make` under another name first, so that it is never there in part."""
    if not folder.exists():
        part = folder.with_name(folder.name + ".partial")
        shutil.rmtree(part, ignore_errors=True)
        note(f"making {folder}")
        make(part)
        part.rename(folder)
    return folder


def random_model(given: argparse.Namespace) -> tuple[Path, Path | None]:
    """The random checkpoint in diffusers' layout and in mlx-video's."""
    base = given.dir / "model"
    base.mkdir(exist_ok=True)
    tokenizer = ROOT / "tests" / "data" / "tokenizer"

    def make(part: Path) -> None:
        command = [python(given.dir, "diffusers"), HERE / "make_model.py", part, tokenizer]
        subprocess.run(command, check=True)

    def convert(part: Path) -> None:
        narrow = base / "bf16"
        shutil.rmtree(narrow, ignore_errors=True)
        command = [given.binary, "convert", "--shard-size", "0", checkpoint, narrow]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        command = [python(given.dir, "mlx-video"), HERE / "widen.py", narrow, part]
        subprocess.run(command, check=True)
        shutil.rmtree(narrow)

    checkpoint = complete(base / "checkpoint", make)
    return checkpoint, complete(base / "mlx-video", convert) if "mlx-video" in given.peers else None


def picture(size: Size) -> np.ndarray:
    """A ball before a shaded wall, of exactly the clip's size: nobody has to resize it."""
    y, x = np.mgrid[: size.height, : size.width] / (size.height - 1)
    wall = np.stack([120 + 80 * y, 110 + 60 * y * x, 90 + 40 * np.sin(9 * x)], axis=-1)
    ball = (x - 0.5) ** 2 + (y - 0.6) ** 2 < 0.05
    return np.where(ball[..., None], (200, 40, 30), wall).astype(np.uint8)


def describe(given: argparse.Namespace, work: Path) -> Path:
    """Writes what all are to do: the job's file, the picture and the noise."""
    import torch

    size = SIZES[given.size]
    if given.size == "tiny":
        checkpoint, converted = ROOT / "src" / "tiny" / "model", None
        image = ROOT / "scripts" / "demo.png"
    else:
        checkpoint, converted = random_model(given)
        image = work / "picture.png"
        Image.fromarray(picture(size)).save(image)
    shape = (16, (size.frames - 1) // 4 + 1, size.height // 8, size.width // 8)
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(SEED))
    np.save(work / "noise.npy", noise.numpy())
    job = {
        **vars(size),
        "seed": SEED,
        "shift": 5.0,
        "threads": given.threads,
        "device": given.device,
        "checkpoint": str(checkpoint),
        "tokenizer": str(checkpoint / "tokenizer"),
        "mlx_video": converted and str(converted),
        "picture": str(image),
        "noise": str(work / "noise.npy"),
    }
    path = work / "job.json"
    path.write_text(json.dumps(job, indent=2))
    return path


def command(given: argparse.Namespace, peer: str, job_path: Path, output: Path) -> list[str]:
    if peer != OURS:
        driver = HERE / f"run_{peer.replace('-', '_')}.py"
        return [str(python(given.dir, peer)), str(driver), str(job_path), str(output)]
    job = json.loads(job_path.read_text())
    words = [given.binary, "--model", job["checkpoint"], "--image", job["picture"]]
    words += ["--prompt", job["prompt"]]
    if job["negative_prompt"]:
        words += ["--negative-prompt", job["negative_prompt"]]
    words += ["--size", f"{job['width']}x{job['height']}", "--frames", job["frames"]]
    words += ["--steps", job["steps"], "--shift", job["shift"], "--guide-scale", job["guidance"]]
    words += ["--seed", job["seed"], "--device", job["device"], "--dtype", "f32"]
    return [str(word) for word in [*words, "--output", f"{output / 'frames'}/"]]


def seconds(words: str) -> float:
    """Reads a duration as wan-i2v prints it: `0.43 s`, `3 min 05 s`, `2 h 07 min`."""
    units = {"h": 3600, "min": 60, "s": 1}
    return sum(float(n) * units[u] for n, u in re.findall(r"([\d.]+) (h|min|s)\b", words))


def wait(process: subprocess.Popen[bytes]) -> tuple[int, float, float]:
    """Waits for a process: its exit code, the seconds of all cores, the largest resident set in GB."""
    resident = 0
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        # On Linux ru_maxrss begins with what this program itself has had; the kernel's mark does not.
        try:
            state = Path(f"/proc/{process.pid}/status").read_text()
            resident = int(re.search(r"VmHWM:\s+(\d+) kB", state)[1]) * 1024
        except (OSError, TypeError):
            pass
        time.sleep(0.01)
    if sys.platform == "darwin":
        resident = usage.ru_maxrss
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, resident / 1e9


def run(given: argparse.Namespace, peer: str, job: Path, output: Path) -> dict[str, float]:
    """One clip in a process of its own: seconds of every phase and in all, of all cores together (which
    another job on the machine hardly moves), and the largest resident set in GB."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    log = output / "log.txt"
    variables = environment(given.threads, peer, given.dir)
    with log.open("w") as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            command(given, peer, job, output), stdout=file, stderr=file, env=variables, cwd=output
        )
        process.returncode, used, memory = wait(process)
        total = time.perf_counter() - start
    if process.returncode != 0:
        sys.exit(f"compare_peers: error: {peer} failed ({process.returncode}):\n{log.read_text()[-4000:]}")
    if peer == OURS:
        lines = dict(re.findall(r"^(\w+): ([\d.]+ (?:s|min|h).*)$", log.read_text(), re.MULTILINE))
        phases = {phase: seconds(lines[phase]) for phase in PHASES}
    else:
        phases = json.loads((output / "phases.json").read_text())
    rest = total - sum(phases.values())
    result = {**phases, "start and output": rest, "total": total}
    return {**result, "CPU time": used, "peak memory": memory}


def frames(peer: str, output: Path) -> np.ndarray:
    if peer == OURS:
        paths = sorted((output / "frames").glob("*.png"))
        return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    return np.load(output / "frames.npy")


def psnr(error: np.ndarray, span: float) -> float:
    mean = float(np.mean(error.astype(np.float64) ** 2))
    return float("inf") if mean == 0 else 10 * np.log10(span**2 / mean)


def compare_outputs(peers: list[str], outputs: Path, count: int) -> None:
    """Prints how far apart the clips are, and the latents of the peers that tell theirs.

    mlx-video's decoder makes four frames of the first latent frame too; its last `count` are compared.
    """
    print("\nOutputs:\n")
    for a, b in combinations(peers, 2):
        first, second = (frames(peer, outputs / peer) for peer in (a, b))
        counts = f"{len(first)} and {len(second)} frames, " if len(first) != len(second) else ""
        error = first[-count:].astype(int) - second[-count:]
        by_frame = [psnr(frame, 255) for frame in error]
        print(
            f"- {a} and {b}: {counts}PSNR {psnr(error, 255):.1f} dB (worst frame {min(by_frame):.1f}, "
            f"best {max(by_frame):.1f}), largest difference {np.abs(error).max()} levels, "
            f"mean {np.abs(error).mean():.4f}"
        )
        latents = [outputs / peer / "latents.npy" for peer in (a, b)]
        if all(path.exists() for path in latents):
            x, y = (np.load(path) for path in latents)
            print(f"- their latents: {np.abs(x - y).max() / np.abs(y).max():.1e} of the largest at worst")


def table(results: dict[str, list[dict[str, float]]]) -> None:
    """Medians, and after each peer's how many times ours it is."""
    medians = {
        peer: {row: statistics.median(run[row] for run in runs) for row in ROWS}
        for peer, runs in results.items()
    }
    peers = [peer for peer in medians if peer != OURS]
    ours = medians.get(OURS)
    head = ["", *([OURS] if ours else [])]
    for peer in peers:
        head += [peer, *(["ratio"] if ours else [])]
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for row in ROWS:
        form = "{:.2f} GB" if row == "peak memory" else "{:.2f} s"
        cells = [row, *([form.format(ours[row])] if ours else [])]
        for peer in peers:
            value = medians[peer][row]
            ratio = f"{value / ours[row]:.2f}" if ours and ours[row] > 0 else "-"
            cells += [form.format(value), *([ratio] if ours else [])]
        print("| " + " | ".join(cells) + " |")


def check_blas(given: argparse.Namespace) -> None:
    """Prints the speed of matrix products in both, so that a BLAS that was not interposed is seen."""
    bench = ROOT / ".mlx" / "linux" / "gemm_bench"
    if "mlx-video" not in given.peers or sys.platform != "linux" or not bench.exists():
        return
    variables = environment(given.threads, "mlx-video", given.dir)
    theirs = subprocess.run(
        [python(given.dir, "mlx-video"), HERE / "matmul.py"],
        env=variables, check=True, capture_output=True, text=True,
    ).stdout
    library = ROOT / ".mlx" / "linux" / "lib" / "libmlxc.so"
    own = subprocess.run(
        [bench, library, "2048", "2"],
        env=environment(given.threads, OURS, given.dir), check=True, capture_output=True, text=True,
    ).stdout.split()[0]
    note(f"float32 2048x2048 matmul: {float(own):.0f} GFLOP/s here, {float(theirs):.0f} in mlx-video")
    if float(theirs) < 0.5 * float(own):
        sys.exit("compare_peers: error: mlx-video's products are slow: was its BLAS interposed?")


def main() -> None:
    given = options()
    size = SIZES[given.size]
    work = given.dir / "runs" / given.size
    work.mkdir(parents=True, exist_ok=True)
    job = describe(given, work)
    check_blas(given)
    results: dict[str, list[dict[str, float]]] = {peer: [] for peer in given.peers}
    for number in range(given.runs):
        # Each is first in turn, so that a machine that warms up or slows down favours nobody.
        turn = number % len(given.peers)
        for peer in given.peers[turn:] + given.peers[:turn]:
            result = run(given, peer, job, work / peer)
            results[peer].append(result)
            note(f"run {number + 1}: {peer}: {result['total']:.1f} s, {result['peak memory']:.2f} GB")
    print(
        f"\n{size.width} x {size.height}, {size.frames} frames, {size.steps} steps, {given.device}, "
        f"float32, {given.threads} threads, medians of {given.runs}; ratio: the peer over {OURS}\n"
    )
    table(results)
    compare_outputs(given.peers, work, size.frames)
    if given.json:
        report = {"size": {"name": given.size, **vars(size)}, "threads": given.threads}
        given.json.write_text(json.dumps({**report, "device": given.device, "runs": results}, indent=2))


if __name__ == "__main__":
    main()
