"""The attacks that search, on what ComfyUI has loaded."""

import logging
from contextlib import contextmanager

import torch
from torch import Tensor

from ..evaluation import genetic_attack, weight_attacks
from .memory import fit
from .text import TextEncoder
from .training import lora_weights, release_others
from .training_session import check_model, training_session

ADAMW = 16  # bytes a float32 weight that is trained: itself, its gradient, and two that AdamW keeps


def breed(clip, concept: str, templates, forbidden, config: genetic_attack.GeneticConfig) -> tuple[str, list[float]]:
    """`genetic_attack.genetic` with the words of the text encoder's own vocabulary."""
    text = TextEncoder(clip, once=False)  # thousands of prompts pass here

    def encode(prompts: list[str]) -> Tensor:
        return torch.cat([text.encode(prompt)[0] for prompt in prompts])

    words = genetic_attack.words_of_pieces(clip.tokenizer.t5xxl.inv_vocab.values())
    with torch.inference_mode(False), torch.no_grad():
        return genetic_attack.genetic(encode, concept, templates, words, forbidden, config)


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
    with training_session(patcher, checkpoint=found.checkpoint, memory=max(least, found.activations)) as model:
        model.attach_frozen_lora(lora)
        yield model, text, patcher.model.process_latent_in(latents.clone()).float()


def invert(patcher, clip, lora, latents: Tensor, prompt: str, concept: str, config, progress=None):
    """`weight_attacks.invert` on a loaded Flux and an eraser's LoRA; latents as ComfyUI's LATENT holds them."""
    with _besieged(patcher, clip, lora, latents, [prompt], config.batch_size, 0) as (model, text, x):
        return weight_attacks.invert(model, text, x, prompt, concept, config, progress)


def relearn(patcher, clip, lora, latents: Tensor, prompt: str, concept: str, config, progress=None):
    """`weight_attacks.relearn`, likewise."""
    check_model(patcher)  # before its shape is read
    graphs = 2 if config.keep else 1
    held = ADAMW * lora_weights(patcher.model.diffusion_model.params, config.targets, config.rank)
    with _besieged(patcher, clip, lora, latents, [prompt, ""], graphs * config.batch_size, held) as (model, text, x):
        return weight_attacks.relearn(model, text, x, prompt, concept, config, progress)
