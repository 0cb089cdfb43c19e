"""Erasers on a MODEL, each as strong in every row of a batch as the conditioning of that row is about its concept."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import comfy.conds
import comfy.patcher_extension
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..lora.apply import LoraScale, lora_applied
from ..lora.factors import Eraser, Factors
from ..lora.gate import PromptGate

NEGATIVE = "eraseanything_negative"  # 1 in the rows of a forward that are negative, an argument of the forward


def with_gated_loras(
    patcher: ModelPatcher, erasers: Sequence[Eraser], weights: Sequence[float], gate: PromptGate
) -> ModelPatcher:
    """A clone of the MODEL that adds sum_i gamma_i W_i B_i A_i x to every row; its weights stay as they are.

    Args:
        patcher: a Flux.1.
        erasers: the LoRAs, which fit the MODEL.
        weights: W_i of each.
        gate: gives gamma_i for the text states of a row.
    """
    gated = GatedLoras(erasers, weights, gate)
    clone = patcher.clone()
    wrappers = comfy.patcher_extension.WrappersMP
    clone.add_wrapper_with_key(wrappers.OUTER_SAMPLE, "eraseanything", gated.outer_sample)
    clone.add_wrapper_with_key(wrappers.APPLY_MODEL, "eraseanything", gated.apply_model)
    return clone


class GatedLoras:
    """Wrappers of a sampling and of its forwards; see `with_gated_loras`."""

    def __init__(self, erasers: Sequence[Eraser], weights: Sequence[float], gate: PromptGate) -> None:
        self.erasers = [_scaled(eraser, weight) for eraser, weight in zip(erasers, weights, strict=True)]
        self.gate = gate
        self.on_device: dict[torch.device, list[Eraser]] = {}  # copies of the erasers, while something is sampled

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Wraps one sampling.

        Raises:
            ValueError: a conditioning that would be drawn has no text states to read a gate from.
        """
        for name, rows in executor.class_obj.conds.items():
            # ComfyUI's guiders name them `negative` and `empty_negative_prompt`; every other one is drawn.
            is_negative = "negative" in name
            for row in rows:
                if not is_negative:
                    self.check(row.get("cross_attn"))
                # Among the conditions of the model: ComfyUI copies these from row to row where areas overlap, and
                # joins them in a batch in the order of its rows.
                mark = comfy.conds.CONDRegular(torch.tensor([[float(is_negative)]]))
                row["model_conds"] = {**row["model_conds"], NEGATIVE: mark}
        try:
            samples: Tensor = executor(*args, **kwargs)
        finally:
            self.on_device.clear()
        return samples

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        *args: Any,
        **rest: Any,
    ) -> Tensor:
        """Wraps one forward; the names of the arguments are those of ComfyUI's `BaseModel.apply_model`."""
        gates = self.gates(x, c_crossattn, rest.get(NEGATIVE))
        is_on = gates.any(0).tolist()
        with ExitStack() as applied:
            for i, eraser in enumerate(self.loaded(x.device)):
                # A prompt about none of the concepts is computed as without erasers.
                if is_on[i]:
                    scale = LoraScale(gates[:, i : i + 1])
                    applied.enter_context(lora_applied(executor.class_obj.diffusion_model, eraser, scale))
            return executor(x, t, c_concat, c_crossattn, *args, **rest)

    def gates(self, x: Tensor, context: Tensor | None, negative: Tensor | None) -> Tensor:
        """gamma of every row of a forward and every eraser, [b, erasers]; 0 in negative rows.

        Args:
            x: latents [b, ...].
            context: the text states of the rows, [b, tokens, features].
            negative: [b, 1], or None where no guider says what is negative.
        """
        if negative is not None:
            negative = negative.to(x.device)
            if negative.all():
                return torch.zeros(len(x), len(self.erasers), device=x.device)
        gates = self.gate(self.check(context).to(x.device))
        return gates if negative is None else gates * (1 - negative)

    def check(self, context: Tensor | None) -> Tensor:
        """Returns text states that a gate can be read from; ValueError if there are none, or of another encoder."""
        if context is None:
            raise ValueError(
                "a positive conditioning has no text states, so Multi Erase LoRA cannot gate its erasers: encode a "
                "prompt for it, or choose another mode there"
            )
        if context.shape[-1] != self.gate.features:
            raise ValueError(
                f"a positive conditioning has {context.shape[-1]} features a token and the CLIP of Multi Erase LoRA "
                f"makes {self.gate.features}: connect the CLIP that encodes the prompts"
            )
        return context

    def loaded(self, device: torch.device) -> list[Eraser]:
        """The erasers on a device."""
        # Once for a sampling: copying them in every forward would take as long as their products.
        if device not in self.on_device:
            self.on_device[device] = [_moved(eraser, device) for eraser in self.erasers]
        return self.on_device[device]


def _scaled(eraser: Eraser, weight: float) -> Eraser:
    return {key: Factors(weight * up, down) for key, (up, down) in eraser.items()}


def _moved(eraser: Eraser, device: torch.device) -> Eraser:
    return {key: Factors(up.to(device), down.to(device)) for key, (up, down) in eraser.items()}
