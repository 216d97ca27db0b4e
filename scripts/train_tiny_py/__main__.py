"""Train the miniature. `all` runs every part in its order; each part can be run alone.

vae       train the autoencoder (pictures, then clips)
encode    measure its latents and store the experts' training set
shared    train the text encoder and one expert on all noise levels
high, low train the two experts, each on its own noise levels, from the shared one
export    write <folder>/wan-tiny in the diffusers layout
teacher   store where the exported model's guided steps lead, for the few-step adapters
distill   train the few-step adapters and write them to <folder>/lightning
verify    compare this code with diffusers' pipeline on the exported checkpoint
evaluate  measure the trained model on scenes never drawn in training

Training is resumable: stop any part (SIGTERM saves first) and start it again with the
same command and folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch._inductor.config

PARTS = ("vae", "encode", "shared", "high", "low", "export", "teacher", "distill", "verify", "evaluate")


def run(part: str, args: argparse.Namespace) -> None:
    """Run one part; modules are imported where needed because they load slowly."""
    if part == "vae":
        import train_vae

        train_vae.train(args.folder)
    elif part == "encode":
        import encode_set

        encode_set.encode(args.folder, args.images)
    elif part == "export":
        import export

        export.export(args.folder)
    elif part == "teacher":
        import distill

        distill.trajectories(args.folder, args.images)
    elif part == "distill":
        import distill

        distill.train(args.folder, args.stage_steps)
    elif part == "verify":
        import verify

        verify.verify(args.folder)
    elif part == "evaluate":
        import evaluate

        evaluate.evaluate(args.folder, args.first, args.count, args.guidance, args.steps, args.few_steps)
    else:
        import train_dit

        train_dit.train(args.folder, part, args.stage_steps)


def main() -> None:
    """Parse the command line and run what it asks for."""
    parser = argparse.ArgumentParser(
        prog="train_tiny", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["all", *PARTS])
    parser.add_argument("folder", type=Path, help="where checkpoints, data and results live")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=1800, help="encode, teacher: first frames in the training set (%(default)s)")
    parser.add_argument("--stage-steps", type=int, help="shared, high, low, distill: another number of steps")
    parser.add_argument("--first", type=int, default=0, help="evaluate: number of the first scene (%(default)s)")
    parser.add_argument("--count", type=int, default=240, help="evaluate: scenes (%(default)s)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0, 3.5, 1.0], help="evaluate: scales (%(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="evaluate: denoising steps (%(default)s)")
    parser.add_argument("--few-steps", choices=["adapted", "bare"], help="evaluate: four passes, with the adapters or without")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch._inductor.config.cpp.dynamic_threads = True  # compiled kernels follow training.Threads
    torch._dynamo.config.recompile_limit = 64  # one specialisation per shape
    for part in PARTS if args.part == "all" else [args.part]:
        run(part, args)


if __name__ == "__main__":
    main()
