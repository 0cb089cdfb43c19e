"""Writes what is trained: `python -m lab.world.export` for ComfyUI, `--resume` for a fresh checkout to go on from.

Both in bf16. The headers name the artists whose pictures were learned from, as their licences ask.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from lab.world.artwork import SETS
from lab.world.files import CACHE, RESUME, load, newest, save
from lab.world.generators import GENERATORS
from lab.world.judge import BODIES
from lab.world.latents import space

EXPORT = CACHE / "export"
CHECKPOINTS = ("autoencoder", "match", "tinyflux", "tinyz", *(f"judge-{body}" for body in BODIES))
ARTISTS = {
    "noto": "Noto Emoji by Google",
    "blob": "Noto Emoji (first form) by Google",
    "glossy": "Fluent Emoji by Microsoft",
    "flat": "Fluent Emoji Flat by Microsoft",
    "twemoji": "Twemoji by Twitter and contributors",
    "emojione": "EmojiOne 2 by Ranks.com",
}


def attribution() -> str:
    """Who drew what the weights learned from, under which licence."""
    return "; ".join(f"{ARTISTS[name]} ({art.licence})" for name, art in SETS.items())


def average(saved: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The averaged weights of a checkpoint under a prefix."""
    start = f"ema.{prefix}"
    return {key.removeprefix(start): value for key, value in saved.items() if key.startswith(start)}


def export(folder: Path = EXPORT) -> list[Path]:
    """Files that ComfyUI loads: generators, autoencoder and text encoder; and the judges."""
    written = []

    def write(tensors: dict[str, Tensor], name: str, title: str) -> None:
        path = folder / f"{name}.safetensors"
        save(tensors, path, torch.bfloat16, **{"modelspec.title": title, "modelspec.author": attribution()})
        written.append(path)

    for name in GENERATORS:
        path = newest(f"{name}-guided") or newest(name)
        if path:
            write(average(load(path), "net."), name, name)
    text = newest("tinyflux") or newest("match")
    if text:
        write(average(load(text), "encoder."), "text", "text encoder of TinyFlux and TinyZ")
    if newest("autoencoder"):
        write(space().file(), "autoencoder", "autoencoder of TinyFlux and TinyZ")
    for body in BODIES:
        path = newest(f"judge-{body}")
        if path:
            write(average(load(path)), f"judge-{body}", f"judge, {body}")
    return written


def resume(folder: Path = RESUME) -> list[Path]:
    """Checkpoints without what can be made again: the averages, in bf16, and the number of steps; no guidance."""
    written = []
    for name in CHECKPOINTS:
        path = newest(name)
        if path is None or path.parent == folder:
            continue
        if name == "match" and newest("tinyflux"):
            continue  # TinyFlux went on with its text encoder
        # TinyZ has its text encoder from TinyFlux too.
        left_out = ("now.", "ema.encoder.") if name == "tinyz" else ("now.",)
        kept = {key: value for key, value in load(path).items() if not key.startswith(left_out)}
        target = folder / f"{name}.safetensors"
        save(kept, target, torch.bfloat16, **{"modelspec.author": attribution()})
        written.append(target)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", action="store_true", help="write lab/world/weights instead")
    args = parser.parse_args()
    paths = resume() if args.resume else export()
    for path in paths:
        print(f"{path.stat().st_size / 1e6:7.2f} MB  {path}")
    print(f"{sum(path.stat().st_size for path in paths) / 1e6:7.2f} MB  together")


if __name__ == "__main__":
    main()
