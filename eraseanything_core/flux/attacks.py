"""The attacks that search, on what ComfyUI has loaded."""

import logging
from contextlib import contextmanager

import torch
from torch import Tensor

from ..evaluation import search, whitebox
from .fit import fit
from .loan import borrow, check_model
from .text import TextEncoder
from .training import lora_weights, release_others

ADAMW = 16  # bytes a float32 weight that is trained: itself, its gradient, and two that AdamW keeps


def breed(clip, concept: str, templates, forbidden, config: search.GeneticConfig) -> tuple[str, list[float]]:
    """`search.genetic` with the words of the text encoder's own vocabulary."""
    text = TextEncoder(clip, once=False)  # thousands of prompts pass here

    def encode(prompts: list[str]) -> Tensor:
        return torch.cat([text.encode(prompt)[0] for prompt in prompts])

    words = search.words_of_pieces(clip.tokenizer.t5xxl.inv_vocab.values())
    with torch.inference_mode(False), torch.no_grad():
        return search.genetic(encode, concept, templates, words, forbidden, config)


@contextmanager
def _besieged(patcher, clip, lora: dict[str, Tensor], latents: Tensor, prompts, batch: int, held: int):
    """The seam wearing an eraser, the encoded prompts, and the latents in the model's space.

    Blocks are recomputed and weights left in main memory where that is needed, as in a training.

    Args:
        batch: sequences of one graph.
        held: bytes of what is searched or trained.
    """
    check_model(patcher)
    text = TextEncoder(clip)
    tokens = [text.encode(prompt)[0].shape[1] for prompt in prompts]
    release_others(patcher)
    cells = latents.shape[-2] * latents.shape[-1] // patcher.model.diffusion_model.patch_size**2
    least = int(patcher.model.memory_required([batch, *latents.shape[1:]]))
    found = fit(patcher, tokens[0] + cells, batch, patcher.model.get_dtype_inference().itemsize, held, least)
    logging.info("EraseAnything: %s", found)
    with borrow(patcher, checkpoint=found.checkpoint, memory=max(least, found.activations)) as model:
        model.wear(lora)
        yield model, text, patcher.model.process_latent_in(latents.clone()).float()


def invert(patcher, clip, lora, latents: Tensor, prompt: str, concept: str, config, progress=None):
    """`whitebox.invert` on a loaded Flux and an eraser's LoRA; latents as ComfyUI's LATENT holds them."""
    with _besieged(patcher, clip, lora, latents, [prompt], config.batch, 0) as (model, text, x):
        return whitebox.invert(model, text, x, prompt, concept, config, progress)


def relearn(patcher, clip, lora, latents: Tensor, prompt: str, concept: str, config, progress=None):
    """`whitebox.relearn`, likewise."""
    check_model(patcher)  # before its shape is read
    graphs = 2 if config.keep else 1
    held = ADAMW * lora_weights(patcher.model.diffusion_model.params, config.targets, config.rank)
    with _besieged(patcher, clip, lora, latents, [prompt, ""], graphs * config.batch, held) as (model, text, x):
        return whitebox.relearn(model, text, x, prompt, concept, config, progress)
