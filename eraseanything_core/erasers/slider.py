"""Concept sliders and LECO (Gandikota et al., 2023): one LoRA that erases at strength 1 and exaggerates at -1.

L = 1/2 sum over s in {1, -1} of mean( v_s(x_t, c) - sg[ v(x_t, c) - s (1 + eta) ( v(x_t, c) - v(x_t, n) ) ] )^2

v_s is the model with the LoRA at strength s. For s = 1 the target is ESD's and LECO's `erase`, v_n - eta (v_c - v_n);
for s = -1 it is LECO's `enhance` by the same way. A slider's c+ and c- are n and c.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F

from ..protocols import TrainableLora
from ..training.draws import Draw
from ..training.method import Method, Pair
from ..training.objective import Losses, erasing_points
from ..training.plan import conds

STRENGTHS = (1.0, -1.0)
SLIDER_SETTINGS: dict[str, Any] = {
    "targets": "all",
    "rank": 4,
    "eta": 1.0,
    "on_policy_share": 0.0,
    "attn_weight": 0.0,
    "rsc_weight": 0.0,
    "retain_weight": 0.0,
    "synonym_rate": 0.0,
    "shuffle_rate": 0.0,
}


class Slider(Method):
    """A slider, trained in both directions."""

    name = "slider"
    label = "Slider (LECO)"
    reads_attention = False
    takes_divergence = False

    @classmethod
    def run_settings(cls, own: Any) -> dict[str, Any]:
        return SLIDER_SETTINGS

    def erase(self, pair: Pair, draw: Draw) -> Iterator[Losses]:
        """`slider`, in two graphs of half the weight."""
        x_t, sigma, concept, neutral = erasing_points(pair.model, pair.epoch, draw)
        sources = pair.epoch.concept.sources
        prompts = conds(pair.model, pair.plan, [sources[i].concept for i in draw.erase[0]])
        way = (1 + pair.config.eta) * (concept - neutral)
        for strength in STRENGTHS:
            with at_strength(pair.lora, strength):
                student = pair.model.velocity(x_t, sigma, prompts, adapters=True)
                # The caller goes backward before it comes back here: recomputed blocks have this strength as well.
                yield {"slider": F.mse_loss(student, concept - strength * way) / len(STRENGTHS)}


@contextmanager
def at_strength(lora: TrainableLora, strength: float) -> Iterator[None]:
    """Inside, the LoRA takes part at another strength."""
    before = lora.scale
    lora.scale = strength
    try:
        yield
    finally:
        lora.scale = before
