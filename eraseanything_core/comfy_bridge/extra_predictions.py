"""Two more predictions in some steps of a sampling, and what is made of them in the place of the prompt's own.

They are asked for in one call of ComfyUI's, apart from the prompt's: a batch of other size would round the prompt's own
prediction otherwise, and a picture in which nothing is to be changed would not be the same any more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.patcher_extension
import comfy.sampler_helpers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

NAMES = ("eraseanything_concept", "eraseanything_neutral")  # of the conditions that a guider is given besides
KEY = "eraseanything_at_sampling"
LOOKS = 3  # steps of a sampling after which it is left alone, if none of them had anything to change
# What of a drawn CONDITIONING is not taken over: where and when it acts, and how ComfyUI tells it from others.
OWN = ("area", "mask", "mask_strength", "set_area_to_bounds", "strength", "start_percent", "end_percent", "default",
       "hooks", "uuid", "model_conds", "cross_attn", "pooled_output")  # fmt: skip

# p, c and a [b, ...] to p' and how present the concept is [b]; see `erasers.at_sampling.Projection`.
Correct = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Sampling:
    """What is known while one sampling runs.

    Attributes:
        guider: ComfyUI's, which holds the conditions.
        negative: ids of the conditions that are not drawn.
        calls: steps in which the two predictions were asked for.
        present: the presence of the concept in each of them, [b].
        acted: in how many of them a prediction was changed.
    """

    guider: Any
    negative: set[Any]
    calls: int = 0
    acted: int = 0
    present: list[Tensor] = field(default_factory=list)


class ExtraPredictions:
    """Wrappers of a sampling and of its predictions.

    Args:
        concept, neutral: CONDITIONINGs of the two predictions.
        highest, lowest: sigmas between which they are asked for.
        correct: makes the new prediction.
        finished: called with a sampling that has ended.
    """

    def __init__(
        self,
        concept: list,
        neutral: list,
        highest: float,
        lowest: float,
        correct: Correct,
        finished: Callable[[Sampling], None],
    ) -> None:
        self.conditions = dict(zip(NAMES, (concept, neutral), strict=True))
        self.highest = highest
        self.lowest = lowest
        self.correct = correct
        self.finished = finished
        self.running: list[Sampling] = []  # a stack: a node inside a sampling may start another one

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Wraps one sampling: its guider gets both conditions, which ComfyUI then prepares with the others."""
        guider = executor.class_obj
        negative = {row["uuid"] for name, rows in guider.conds.items() if "negative" in name for row in rows}
        drawn = [row for name, rows in guider.conds.items() if "negative" not in name for row in rows]
        for name, conditioning in self.conditions.items():
            rows = comfy.sampler_helpers.convert_cond(conditioning)
            # Guidance, ControlNets and pictures to edit are those of the prompt: only the words differ.
            guider.conds[name] = [_like(drawn[0], row) for row in rows] if drawn else rows
        self.running.append(Sampling(guider, negative))
        try:
            samples: Tensor = executor(*args, **kwargs)
        finally:
            sampling = self.running.pop()
            for name in NAMES:
                guider.conds.pop(name, None)
        self.finished(sampling)
        return samples

    def calc_cond_batch(
        self, executor: Any, model: Any, conds: list[list[dict] | None], x: Tensor, sigma: Tensor, options: dict
    ) -> list[Tensor]:
        """Wraps the predictions [b, ...] of one step, one for each of `conds`."""
        predictions: list[Tensor] = executor(model, conds, x, sigma, options)
        drawn = [i for i, rows in enumerate(conds) if self._is_drawn(rows)]
        # Compared as the sampler's own sigmas: they are of float32.
        if not drawn or not self.lowest <= float(sigma[0]) <= self.highest:
            return predictions
        sampling = self.running[-1]
        if sampling.calls >= LOOKS and not sampling.acted:
            return predictions
        concept, neutral = executor(model, [sampling.guider.conds[name] for name in NAMES], x, sigma, options)
        sampling.calls += 1
        for i in drawn:
            corrected, present = self.correct(predictions[i], concept, neutral)
            sampling.acted += corrected is not predictions[i]
            sampling.present.append(present.cpu())
            predictions[i] = corrected
        return predictions

    def _is_drawn(self, rows: list[dict] | None) -> bool:
        """Whether a prediction is one that is drawn, and not the one that guidance leads away from."""
        if not self.running or not rows:
            return False
        return not any(row.get("uuid") in self.running[-1].negative for row in rows)


def _like(drawn: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A condition with its own words, and what else the prompt's has."""
    return {name: value for name, value in drawn.items() if name not in OWN} | row


def with_extra_predictions(patcher: ModelPatcher, extra: ExtraPredictions) -> ModelPatcher:
    """A clone of the MODEL that is sampled with them; the MODEL itself stays as it is."""
    clone = patcher.clone()
    wrappers = comfy.patcher_extension.WrappersMP
    clone.add_wrapper_with_key(wrappers.OUTER_SAMPLE, KEY, extra.outer_sample)
    clone.add_wrapper_with_key(wrappers.CALC_COND_BATCH, KEY, extra.calc_cond_batch)
    return clone


def encoded(clip: Any, prompt: str) -> list:
    """The CONDITIONING of a prompt."""
    with torch.inference_mode(False), torch.no_grad():
        conditioning: list = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    return conditioning
