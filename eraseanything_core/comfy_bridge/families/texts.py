"""The encodings of a prompt that a model takes, and which keys they become."""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
from torch import Tensor


def alone(select: Tensor, given: dict) -> Tensor:
    """Every token of the encodings is one key."""
    return select


@dataclass(frozen=True)
class Texts:
    """What a model takes of a prompt.

    Attributes:
        features: of a token of the first encoding.
        context: argument of a forward that holds it, when not the usual one.
        second: names of a further encoding, in the CONDITIONING and among the arguments of a forward.
        quoted: whether that holds only the words in quotation marks, and is missing where there are none.
        prepared: whether the model works on the encoding once before sampling.
        keys: the columns [b, keys] of the text's keys, of those of the encodings [b, tokens] and a forward's arguments.
    """

    features: int
    context: str = ""
    second: tuple[str, str] | None = None
    quoted: bool = False
    prepared: bool = False
    keys: Callable[[Tensor, dict], Tensor] = alone

    def given(self, context: Tensor | None, given: dict) -> tuple[Tensor | None, ...]:
        """The encodings [b, tokens, features] in the arguments of a forward."""
        first = given[self.context] if self.context else context
        return self._with(first, given, 1)

    def known(self, patcher, context: Tensor, more: dict) -> tuple[Tensor, ...]:
        """The same of one entry of a CONDITIONING."""
        if self.prepared:
            comfy.model_management.load_models_gpu([patcher])
            conds = patcher.model.extra_conds(cross_attn=context, device=patcher.load_device, **more)
            context = conds["c_crossattn"].cond
        return self._with(context, more, 0)

    def _with(self, first: Tensor | None, found: dict, place: int) -> tuple[Tensor | None, ...]:
        if not self.second or self.quoted and found.get(self.second[place]) is None:
            return (first,)
        return first, _tokens(found[self.second[place]])


def _tokens(encoding: Tensor) -> Tensor:
    return encoding[:, -1] if encoding.ndim == 4 else encoding  # of all layers of a language model, the last
