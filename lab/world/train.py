"""Trains the models of the world of real pictures: `python -m lab.world.train STAGE [STAGE ...]`.

Each stage goes on from its checkpoint in `.cache/world`, or from the committed one in `lab/world/weights`, writes lines
of JSON beside it, and can be stopped at any time. One process a stage and one thread a process is fastest
where others compute too: threads wait for the slowest of them.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch

from lab.world import pictures
from lab.world.run import Pace

PICTURES = 24_000
PACES = {
    "autoencoder": Pace(steps=3000, lr=1e-3, ema=0.995),
    "text": Pace(steps=3000, lr=1.5e-3),
    "judge-plain": Pace(steps=4000, lr=2e-3),
    "judge-residual": Pace(steps=4000, lr=2e-3),
    "tinyflux": Pace(steps=17_500, lr=1.5e-3, warmup=200, falls=0.4),
    "tinyz": Pace(steps=12_000, lr=1.5e-3, warmup=200),
    "guidance": Pace(steps=800, lr=5e-4, ema=0.99),
}


def stage_pictures(args: argparse.Namespace) -> None:
    """Renders the artwork and draws the training pictures."""
    pictures.draw_all(args.pictures)


def stage_autoencoder(args: argparse.Namespace) -> None:
    """The autoencoder; once latents are kept, its decoder only."""
    from lab.world import autoencoder

    autoencoder.train(pictures.mapped(args.pictures), args.minutes, pace_of("autoencoder", args))


def stage_latents(args: argparse.Namespace) -> None:
    """Latents of all pictures; from then on the encoder is fixed."""
    _latents(args)


def stage_text(args: argparse.Namespace) -> None:
    """The text encoder, by matching captions and pictures."""
    from lab.world import text

    text.train(pictures.mapped(args.pictures), pictures.scenes(args.pictures), args.minutes, pace_of("text", args))


def stage_judge(body: str, seed: int):
    """The stage of a judge; each learns from pictures of its own."""

    def run(args: argparse.Namespace) -> None:
        from lab.world import judge_training

        shown = pictures.mapped(args.pictures, seed)
        scenes = pictures.scenes(args.pictures, seed)
        judge_training.train(body, shown, scenes, args.minutes, pace_of(f"judge-{body}", args))

    return run


def stage_generator(name: str):
    """The stage of a generator."""

    def run(args: argparse.Namespace) -> None:
        from lab.world import flow

        scenes = pictures.scenes(args.pictures)
        flow.train(name, _latents(args), scenes, args.minutes, pace_of(name, args), compiled=not args.plain)

    return run


def stage_guidance(args: argparse.Namespace) -> None:
    """Guidance, distilled into TinyFlux."""
    from lab.world import flow

    scenes = pictures.scenes(args.pictures)
    flow.distil(_latents(args), scenes, args.minutes, pace_of("guidance", args), compiled=not args.plain)


def _latents(args: argparse.Namespace) -> np.ndarray:
    from lab.world import latents

    return np.load(latents.encode_all(pictures.mapped(args.pictures)), mmap_mode="r")


def pace_of(name: str, args: argparse.Namespace) -> Pace:
    """The stage's own pace, or with another number of steps."""
    return replace(PACES[name], steps=args.steps) if args.steps else PACES[name]


STAGES = {
    "pictures": stage_pictures,
    "autoencoder": stage_autoencoder,
    "latents": stage_latents,
    "text": stage_text,
    "judge-plain": stage_judge("plain", seed=1),
    "judge-residual": stage_judge("residual", seed=2),
    "tinyflux": stage_generator("tinyflux"),
    "guidance": stage_guidance,
    "tinyz": stage_generator("tinyz"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=list(STAGES))
    parser.add_argument("--minutes", type=float, default=1e6, help="a limit on the wall time of each stage")
    parser.add_argument("--steps", type=int, help="of the whole training, over all sessions")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="without torch.compile")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.stages:
        print(f"stage {name}", flush=True)
        STAGES[name](args)


if __name__ == "__main__":
    main()
