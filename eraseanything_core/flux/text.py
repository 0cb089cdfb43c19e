"""The text encoder that ComfyUI has loaded."""

import torch
from torch import Tensor

from ..tokens import pieces_of


class TextEncoder:
    """Prompts to what the transformer and the span search need, each prompt encoded once."""

    def __init__(self, clip):
        self.clip, self.cache = clip, {}

    def pieces(self, text: str) -> list[str]:
        """The T5 pieces of a prompt as it is encoded."""
        rows = self.clip.tokenize(text)["t5xxl"]
        return [piece for row in rows for piece in pieces_of(self.clip.tokenizer.t5xxl, row)]

    def encode(self, text: str) -> tuple[Tensor, Tensor]:
        """context [1, tokens, features] and pooled [1, features], on the CPU and free of inference mode."""
        if text not in self.cache:
            with torch.inference_mode(False), torch.no_grad():
                context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)
                self.cache[text] = context.cpu().clone(), pooled.cpu().clone()
        return self.cache[text]
