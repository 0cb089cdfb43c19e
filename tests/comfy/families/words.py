"""A text encoder for the small models that have none: a fixed random vector a piece, over the real T5 tokenizer."""

from types import SimpleNamespace

import torch

from eraseanything_core.comfy_bridge.architecture import t5_tokenizer
from tests.comfy.case import TOKENS


class Words:
    """CLIP of a family's small model.

    Args:
        case: of the family; what its CONDITIONING holds besides comes along.
        tokens: shortest encoding.
    """

    def __init__(self, case, tokens: int = TOKENS) -> None:
        self.case = case
        self.tokenizer = SimpleNamespace(t5xxl=t5_tokenizer(tokens))
        generator = torch.Generator().manual_seed(1)
        self.table = torch.randn(512, case.width, generator=generator)
        self.pool = torch.randn(case.width, case.features, generator=generator) / case.width**0.5

    def tokenize(self, text):
        return {"t5xxl": self.tokenizer.t5xxl.tokenize_with_weights(text)}

    def encode_from_tokens_scheduled(self, tokens):
        ids = torch.tensor([token[0] for token in tokens["t5xxl"][0]])
        context = self.table[ids % len(self.table)] + 0.1 * torch.sin(torch.arange(len(ids)))[:, None]
        return [[context[None], {"pooled_output": (context.mean(0) @ self.pool)[None], **self.case.more}]]
