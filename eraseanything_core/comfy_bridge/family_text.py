"""The text encoder of a model of any class; see `protocols.TextEncoder`."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..protocols import Conditioning
from .context_pieces import context_pieces
from .families import family
from .families.table import Layout


class FamilyTextEncoder:
    """Prompts to the CONDITIONING that the family's classes take; see `protocols.TextEncoder`.

    Args:
        clip: CLIP of the text encoder's loader.
        model: the MODEL that the prompts are for.
        layout: where the text stands in its attention.
        keep: encode each prompt once and keep the encoding.
    """

    any_length = True  # prompts of unlike length can stand in one batch

    def __init__(self, clip: Any, model: Any, layout: Layout, keep: bool = True) -> None:
        self.clip = clip
        self.model = model
        self.layout = layout
        self.keep = keep
        self.encodings: dict[str, Conditioning] = {}

    def pieces(self, text: str) -> list[str]:
        """The pieces of a prompt, one string a token of each of the encodings that the model takes, in their order.

        Raises:
            ValueError: see `context_pieces`.
        """
        return [piece for pieces in self.encoding_pieces(text) for piece in pieces]

    def encoding_pieces(self, text: str) -> list[list[str]]:
        """The same, each encoding by itself."""
        encoded = self.encode(text)
        # Some classes work on a text before sampling, and do so in inference mode alone.
        with torch.inference_mode():
            known = self.layout.texts.of_conditioning(self.model, encoded.context, encoded.entries())
        lengths = [states.shape[1] for states in known]
        return context_pieces(self.clip, text, encoded.context.shape[1], lengths)

    def encode(self, text: str) -> Conditioning:
        """The prompt with all that the text encoder gives, on the CPU.

        Raises:
            ValueError: the text encoder is of another family.
        """
        if text in self.encodings:
            return self.encodings[text]
        with torch.inference_mode(False), torch.no_grad():
            (context, entries), *others = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
            if others:
                raise ValueError("the CLIP changes while a picture is sampled (a hook): connect it from its loader")
            self.check_width(context)
            # Copies: what ComfyUI hands out may be an inference tensor, which autograd does not save for backward.
            more = tree_map(_copy, {name: value for name, value in entries.items() if name != "pooled_output"})
            pooled = entries.get("pooled_output")
            if pooled is None and "pooled_output" in entries:
                more["pooled_output"] = None  # HunyuanVideo 1.5 asks for the entry, of which there is nothing
            encoded = Conditioning(_copy(context), torch.zeros(1, 0) if pooled is None else _copy(pooled), more)
        if self.keep:
            self.encodings[text] = encoded
        return encoded

    def check_width(self, context: Tensor) -> None:
        """Raises ValueError when the model takes other numbers of features."""
        expected = self.layout.texts.features
        # A text that the class works on before sampling has the width of its own encoder there.
        if context.shape[2] != expected and not self.layout.texts.prepared:
            raise ValueError(
                f"this CLIP makes {context.shape[2]} features a token and the MODEL takes {expected}: connect the text "
                f"encoder of {family(self.model)}"
            )


def _copy(leaf: Any) -> Any:
    return leaf.cpu().clone() if isinstance(leaf, Tensor) else leaf
