"""The text encoder that ComfyUI has loaded."""

from typing import Any

import torch
from comfy.ldm.flux.model import FluxParams
from torch import Tensor

from ..concepts.pieces import pieces_of
from ..protocols import EncodedPrompt

OWN_CLIP = "connect Flux.1's own, clip_l and t5xxl, loaded as type flux"


class ComfyTextEncoder:
    """Prompts to what the transformer and the search for a word's tokens need; see `protocols.TextEncoder`.

    Args:
        clip: CLIP of the text encoder's loader.
        keep: encode each prompt once and keep the encoding.
        params: the shape of the model that the prompts are for; None where it is not known.
    """

    def __init__(self, clip: Any, keep: bool = True, params: FluxParams | None = None):
        self.clip = clip
        self.keep = keep
        self.params = params
        self.encodings: dict[str, EncodedPrompt] = {}

    def pieces(self, text: str) -> list[str]:
        """The T5 pieces of a prompt, one string a token of its encoding.

        Raises:
            ValueError: the CLIP has no T5.
        """
        rows = self.clip.tokenize(text)
        # Only T5's tokens are attended to in Flux; CLIP-L gives the pooled vector.
        if "t5xxl" not in rows:
            raise ValueError(f"the CLIP has no T5-XXL, only {', '.join(rows)}: {OWN_CLIP}")
        pieces = []
        for row in rows["t5xxl"]:  # a long prompt has several rows, which are encoded one after the other
            pieces += pieces_of(self.clip.tokenizer.t5xxl, row)
        return pieces

    def encode(self, text: str) -> EncodedPrompt:
        """context [1, tokens, features] and pooled [1, features], on the CPU.

        Raises:
            ValueError: the model takes other numbers of features.
        """
        # A run asks for the same prompts again and again, and T5-XXL costs an eighth of Flux's forward.
        if text in self.encodings:
            return self.encodings[text]
        with torch.inference_mode(False), torch.no_grad():
            context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)
            self.check_widths(context, pooled)
            # Other families' text encoders, which an attack may search in without a model, have no pooled vector.
            pooled = torch.zeros(1, 0) if pooled is None else pooled
            # Copies: what ComfyUI hands out may be an inference tensor, which autograd does not save for backward.
            encoded = EncodedPrompt(context.cpu().clone(), pooled.cpu().clone())
        if self.keep:
            self.encodings[text] = encoded
        return encoded

    def check_widths(self, context: Tensor | None, pooled: Tensor | None) -> None:
        """Raises ValueError when the model takes other numbers of features; a text encoder may give no pooled."""
        if self.params is None:
            return
        # Compared before training: Flux would fail in its first linear, with a message about matrices.
        features = 0 if context is None else context.shape[-1]
        pooled_features = 0 if pooled is None else pooled.shape[-1]
        if (features, pooled_features) != (self.params.context_in_dim, self.params.vec_in_dim):
            raise ValueError(
                f"the CLIP encodes a prompt in {features} and {pooled_features} features, "
                f"the MODEL takes {self.params.context_in_dim} and {self.params.vec_in_dim}: {OWN_CLIP}"
            )
