"""The encodings of a prompt that a model takes, and which keys of its attention they become."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management as model_management
from torch import Tensor

Arguments = dict[str, Any]  # of a forward, by name


def same_keys(select: Tensor, arguments: Arguments) -> Tensor:
    """Every token of the encodings is one key, in the same order."""
    return select


@dataclass(frozen=True)
class Texts:
    """What a model takes of a prompt.

    Attributes:
        features: of a token of the first encoding.
        context: the argument of a forward that holds it; "" is ComfyUI's usual one, `c_crossattn`.
        second: names of a further encoding: in the CONDITIONING, and among the arguments of a forward.
        quoted: whether the second encoding holds only the words in quotation marks. It is missing where there are none.
        prepared: whether the model works on the encoding once before sampling.
        keys: turns columns of the encodings, [b, tokens], into columns of the text's keys, [b, keys], by the
            arguments of a forward.
    """

    features: int
    context: str = ""
    second: tuple[str, str] | None = None
    quoted: bool = False
    prepared: bool = False
    keys: Callable[[Tensor, Arguments], Tensor] = same_keys

    def of_forward(self, context: Tensor | None, arguments: Arguments) -> tuple[Any, ...]:
        """The encodings [b, tokens, features] among the arguments of a forward."""
        first = arguments[self.context] if self.context else context
        return self.with_second(first, arguments, 1)

    def of_conditioning(self, patcher: Any, context: Tensor, entries: Arguments) -> tuple[Any, ...]:
        """The encodings of one entry of a CONDITIONING, as `of_forward` will see them."""
        if self.prepared:
            # The model replaces the encoding by its own, and only that one is seen in a forward.
            model_management.load_models_gpu([patcher])
            conds = patcher.model.extra_conds(cross_attn=context, device=patcher.load_device, **entries)
            context = conds["c_crossattn"].cond
        return self.with_second(context, entries, 0)

    def with_second(self, first: Tensor | None, values: Arguments, where: int = 0) -> tuple[Any, ...]:
        """The first encoding, and the second where there is one; `where` chooses between its two names."""
        if self.second is None:
            return (first,)
        name = self.second[where]
        if self.quoted and values.get(name) is None:
            return (first,)
        # The rows of a prompt are recognised by its encoding, and one layer is enough for that.
        return first, _last_layer(values[name])


def _last_layer(encoding: Tensor) -> Tensor:
    """[b, tokens, features]; of all layers of a language model, [b, layers, tokens, features], the last one."""
    return encoding[:, -1] if encoding.ndim == 4 else encoding
