"""What the cheap pools of the presets do to an eraser of TinyFlux: the same concept, prompts and seeds."""

from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.tinyflux.erase import train_eraser
from eraseanything_core.tinyflux.measure import merged, read_cell
from eraseanything_core.tinyflux.pipeline import Pipeline, flux, judge_net
from eraseanything_core.tinyflux.recipe import VALIDATION, cells, erase_config

SHORT = {"steps": 60, "batch": 4, "retain_batch": 8, "refresh": 30}  # a quarter of the recipe's work
CHEAP = {"sampling_steps": 12, "pool": 8, "retain_pool": 6, "rsc_points": 16, "on_policy": 0.25}
CHANGES = {"as in the recipe": {}, "cheap": CHEAP}


def effect(change: str, images: int = 40, concept: str = VALIDATION[0]) -> dict:
    """Trains with these pools; the share of pictures that still show what was asked, by the CNN judge."""
    before, net, asked = Pipeline(flux()), judge_net(), cells(concept, images, seed=1)
    result = train_eraser(before, erase_config(concept, **SHORT | CHANGES[change]))
    after = Pipeline(merged(before.module, result.lora), before.encoder, before.decode)
    read = {cell: rate(read_cell(after, net, asked[cell])[0]["cnn"]) for cell in asked}
    return {"change": change, "settings": CHANGES[change], "cells": read}


def effects(concept: str = VALIDATION[0]) -> dict:
    """A row for every kind of pools."""
    rows = [effect(change, concept=concept) for change in CHANGES]
    return {"effects": {"concept": concept, "settings": SHORT, "judge": "cnn", "rows": rows}}
