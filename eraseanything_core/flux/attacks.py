"""The attacks that search, on what ComfyUI has loaded."""

from contextlib import contextmanager

import torch
from torch import Tensor

from ..evaluation import search, whitebox
from .loan import borrow, check_model
from .text import TextEncoder


def breed(clip, concept: str, templates, forbidden, config: search.GeneticConfig) -> tuple[str, list[float]]:
    """`search.genetic` with the words of the text encoder's own vocabulary."""
    text = TextEncoder(clip, once=False)  # thousands of prompts pass here

    def encode(prompts: list[str]) -> Tensor:
        return torch.cat([text.encode(prompt)[0] for prompt in prompts])

    words = search.words_of_pieces(clip.tokenizer.t5xxl.inv_vocab.values())
    with torch.inference_mode(False), torch.no_grad():
        return search.genetic(encode, concept, templates, words, forbidden, config)


@contextmanager
def _besieged(patcher, clip, lora: dict[str, Tensor], latents: Tensor, prompts):
    """The seam wearing an eraser, the encoded prompts, and the latents in the model's space."""
    check_model(patcher)
    text = TextEncoder(clip)
    for prompt in prompts:
        text.encode(prompt)
    with borrow(patcher) as model:
        model.wear(lora)
        yield model, text, patcher.model.process_latent_in(latents.clone()).float()


def invert(patcher, clip, lora, latents: Tensor, prompt: str, concept: str, config, progress=None):
    """`whitebox.invert` on a loaded Flux and an eraser's LoRA; latents as ComfyUI's LATENT holds them."""
    with _besieged(patcher, clip, lora, latents, [prompt]) as (model, text, x):
        return whitebox.invert(model, text, x, prompt, concept, config, progress)


def relearn(patcher, clip, lora, latents: Tensor, prompt: str, concept: str, config, progress=None):
    """`whitebox.relearn`, likewise."""
    with _besieged(patcher, clip, lora, latents, [prompt, ""]) as (model, text, x):
        return whitebox.relearn(model, text, x, prompt, concept, config, progress)
