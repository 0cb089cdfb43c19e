"""The text encoder that ComfyUI has loaded."""

import torch
from comfy.text_encoders.qwen_image import QwenImageTokenizer
from torch import Tensor

from ..tokens import own_pieces, pieces_of


class TextEncoder:
    """Prompts to what the transformer and the span search need.

    Args:
        clip: CLIP of the text encoder's loader.
        once: keep what was encoded, so that each prompt is encoded once.
    """

    def __init__(self, clip, once: bool = True):
        self.clip, self.once, self.cache = clip, once, {}

    def pieces(self, text: str) -> list[str]:
        """The T5 pieces of a prompt as it is encoded."""
        rows = self.clip.tokenize(text)["t5xxl"]
        return [piece for row in rows for piece in pieces_of(self.clip.tokenizer.t5xxl, row)]

    def encode(self, text: str) -> tuple[Tensor, Tensor]:
        """context [1, tokens, features] and pooled [1, features], on the CPU and free of inference mode."""
        if text in self.cache:
            return self.cache[text]
        with torch.inference_mode(False), torch.no_grad():
            context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)
            found = context.cpu().clone(), pooled.cpu().clone()
        if self.once:
            self.cache[text] = found
        return found


def context_pieces(clip, prompt: str, length: int) -> list[str]:
    """The pieces of a prompt at their places in the context that a CLIP encodes it to; "" where none stands.

    Args:
        length: tokens of that context.

    Raises:
        ValueError: how this CLIP's context is made of its tokens is not known.
    """
    rows, template = clip.tokenize(prompt), clip.tokenize("")
    pieces = []
    for names in _contributing(clip, set(rows)):
        read = [own_pieces(*(_pieces(clip, name, tokens[name]) for tokens in (rows, template))) for name in names]
        if read[0] != read[-1]:
            raise ValueError("the two text encoders split this prompt differently: use a prompt without embeddings")
        pieces += read[0]
    if type(clip.tokenizer) is QwenImageTokenizer:
        pieces = pieces[-length:]  # its encoder drops the template's beginning
    if len(pieces) != length:
        raise ValueError(
            f"this CLIP makes {length} encodings of {len(pieces)} tokens: where a word stands is not known"
        )
    return pieces


def _contributing(clip, names: set[str]) -> list[tuple[str, ...]]:
    """The tokenizers whose tokens stand after each other in the context; those in one tuple share their places."""
    if names in ({"t5xxl"}, {"l", "t5xxl"}):
        return [("t5xxl",)]
    if names == {"l", "g"}:
        return [("l", "g")]
    if names == {"l", "g", "t5xxl"}:  # Stable Diffusion 3, where either may be missing
        parts = {("l", "g"): ("clip_l", "clip_g"), ("t5xxl",): ("t5xxl",)}
        loaded = {name for name, module in clip.cond_stage_model.named_children() if module is not None}
        return [names for names, encoders in parts.items() if loaded & {*encoders}]
    if len(names) == 1:
        return [tuple(names)]
    raise ValueError(f"how this CLIP puts {', '.join(sorted(names))} together is not known: use the model's own CLIP")


def _pieces(clip, name: str, rows: list) -> list[str]:
    tokenizer = getattr(clip.tokenizer, name, None) or getattr(clip.tokenizer, f"clip_{name}")
    return [piece for row in rows for piece in pieces_of(tokenizer, row)]
