"""TinyFlux erased on the card by the default preset, from one typed word, and judged as the demo is."""

import time

import torch
from torch import Tensor

from eraseanything_core.lora.apply import LoraScale, lora_applied
from eraseanything_core.lora.key_styles import read_eraser
from eraseanything_core.training.recipe import train_eraser
from lab.gpu.card import Card
from lab.gpu.hosts import short_config, tinyflux_config, tinyflux_host
from lab.gpu.outcome import Outcome
from lab.tinyflux.pipeline import Pipeline, flux, judge_net, readers
from lab.tinyflux.recipe import Cell, cells

CONCEPT = "moon"  # the demo's
SECONDS = 60.0
PICTURES = 20  # of each question
# The demo has none of the concept left and all of the others; with 20 pictures one in ten may be read wrongly.
LEFT = 0.1
KEPT = 0.9
ASKED = ("acc_e", "acc_g")  # by its name, and by a synonym that the training never saw


def check(card: Card) -> Outcome:
    """Check 14: the marks of the demo, and the seconds of the run."""
    outcome = Outcome()
    host = tinyflux_host(dtype=torch.float32 if card.tiny else torch.bfloat16)
    config = short_config(2, monitor_every=2, look_pictures=2, look_steps=2) if card.tiny else tinyflux_config(CONCEPT)
    begun = time.monotonic()
    result = train_eraser(host, config, auto=True)
    outcome.at_most("seconds", time.monotonic() - begun, SECONDS)
    assert result.verdict is not None, "the run looks at its pictures"
    outcome.figures["verdict"] = result.verdict.text()
    outcome.figures["pairs"] = result.steps
    marks = marks_of(result.lora, 2 if card.tiny else PICTURES)
    outcome.figures.update(marks)
    if not card.tiny:
        # A few pairs on a CPU erase nothing.
        judge(outcome, marks)
    return outcome


def marks_of(lora: dict[str, Tensor], count: int) -> dict[str, float]:
    """The share of pictures that show what was asked, by question and judge. They are drawn on the CPU."""
    pipeline = Pipeline(flux())
    marks = {}
    with lora_applied(pipeline.module, read_eraser(lora, {}, "the LoRA"), LoraScale(1.0)):
        for name, cell in cells(CONCEPT, count).items():
            pictures = pipeline.pictures(cell.prompts, cell.seeds)
            for reader in ("oracle", "cnn"):
                marks[f"{name}, {reader}"] = shown(cell, pictures, reader)
    return marks


def shown(cell: Cell, pictures: Tensor, reader: str) -> float:
    """The share of the pictures in which a judge sees what was asked."""
    read = readers(judge_net())[reader]
    right = 0
    for kind, concept, picture in zip(cell.kinds, cell.concepts, pictures, strict=True):
        right += getattr(read(picture[None], kind)[0], kind) == concept
    return right / len(pictures)


def judge(outcome: Outcome, marks: dict[str, float]) -> None:
    """Notes whether the concept is gone and the others are there."""
    for name, share in marks.items():
        if name.startswith(ASKED):
            outcome.at_most(f"{name}: pictures that show the concept", share, LEFT)
        else:
            outcome.at_least(f"{name}: pictures that show another one", share, KEPT)
