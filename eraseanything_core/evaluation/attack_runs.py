"""The attacks that search, on the model of a host: memory is estimated, the model is lent, the eraser is put on.

The attacks themselves are in `genetic_attack` and `weight_attacks`.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..protocols import EncodedPrompt, ErasableModel, ModelHost, TextEncoder, with_context
from . import genetic_attack, weight_attacks
from .genetic_attack import GenerationDone, GeneticConfig
from .weight_attacks import ConceptExamples, InversionConfig, RelearnConfig, StepDone

ADAMW_BYTES = 16  # of a trained float32 weight: itself, its gradient, and the two moments that AdamW keeps


def run_genetic_attack(
    host: ModelHost,
    concept: str,
    templates: Sequence[str],
    forbidden: Sequence[str],
    config: GeneticConfig,
    progress: GenerationDone | None = None,
    check_interrupt: Callable[[], None] | None = None,
) -> tuple[str, list[float]]:
    """`genetic_attack.genetic_search` with the words of the text encoder's own vocabulary.

    `check_interrupt` is called before every prompt that is encoded; what it raises ends the search.

    Raises:
        ValueError: the text encoder gives no states, or does not tell where words begin.
    """
    text = host.text_encoder(keep=False)  # thousands of prompts pass here, none of them twice

    def encode(prompts: list[str]) -> Tensor:
        contexts = []
        for prompt in prompts:
            # A generation may be thousands of prompts, which a large text encoder needs minutes for.
            if check_interrupt:
                check_interrupt()
            # The mean of its states, which the search compares: prompts may differ in length.
            contexts.append(states_of(text, prompt).mean(1, keepdim=True))
        return torch.cat(contexts)

    words = genetic_attack.words_of_pieces(host.vocabulary())
    # ComfyUI runs nodes in inference mode; encodings are made outside of it, as everywhere in the core.
    with torch.inference_mode(False), torch.no_grad():
        return genetic_attack.genetic_search(encode, concept, templates, words, forbidden, config, progress)


def states_of(text: TextEncoder, prompt: str) -> Tensor:
    """The states [1, tokens, features] of a prompt.

    Raises:
        ValueError: the text encoder gives none, as HiDream-O1's.
    """
    context = text.encode(prompt).context
    if context.shape[2] == 1:
        raise ValueError("this CLIP hands over tokens, which say nothing before a model has read them")
    return context


@contextmanager
def _erased_model(
    host: ModelHost,
    lora: Mapping[str, Tensor],
    examples: ConceptExamples,
    other_prompts: Sequence[str],
    batch_size: int,
    trained_bytes: int,
) -> Iterator[tuple[ErasableModel, TextEncoder, ConceptExamples]]:
    """The model with an eraser on it, its text encoder, and the examples with their latents in the model's space.

    Blocks are recomputed and weights left in main memory where that is needed, as in a training.

    Args:
        host: holds the un-erased model.
        lora: the eraser, under its file keys; an empty one leaves the model as it is.
        examples: with latents as the host's users have them.
        other_prompts: all that will be encoded besides the examples' own.
        batch_size: sequences of one graph.
        trained_bytes: of what is searched or trained.
    """
    text = host.text_encoder()
    # Encoded before the text encoder leaves the device; from here on every encoding is a kept one.
    length = text.encode(examples.prompt).context.shape[1]
    for prompt in other_prompts:
        text.encode(prompt)
    host.release_others()
    height = examples.latents.shape[-2] * host.downscale
    width = examples.latents.shape[-1] * host.downscale
    estimate = host.estimate(length, width, height, batch_size, trained_bytes, None)
    logging.info("EraseAnything: %s", estimate)
    memory = max(estimate.forward, estimate.activations)
    with host.session(gradient_checkpointing=estimate.gradient_checkpointing, memory=memory) as model:
        # Under both student and teacher, so that the erased model is attacked; without factors, the un-erased one.
        if lora:
            model.attach_frozen_lora(dict(lora))
        latents = host.to_model_space(examples.latents)
        yield model, text, dataclasses.replace(examples, latents=latents)


def run_inversion(
    host: ModelHost,
    lora: Mapping[str, Tensor],
    examples: ConceptExamples,
    config: InversionConfig,
    progress: StepDone | None = None,
) -> tuple[EncodedPrompt, list[float]]:
    """`weight_attacks.invert` on the model of a host.

    Args:
        host: holds the un-erased model; it is as before afterwards.
        lora: the eraser, under its file keys.
        examples: with latents as the host's users have them.
        config, progress: see `weight_attacks.invert`.

    Returns:
        The examples' prompt with the states that were found, all else as its text encoder gave it, and the losses.

    Raises:
        ValueError: the model cannot be trained exactly, the eraser is of another one, the prompt does not hold the
            concept, or the text encoder gives no states.
    """
    host.check()
    states_of(host.text_encoder(), examples.prompt)
    with _erased_model(host, lora, examples, [], config.batch_size, 0) as (model, text, moved):
        context, _, losses = weight_attacks.invert(model, text, moved, config, progress)
        return with_context(text.encode(examples.prompt), context), losses


def run_relearning(
    host: ModelHost,
    lora: Mapping[str, Tensor],
    examples: ConceptExamples,
    config: RelearnConfig,
    progress: StepDone | None = None,
) -> tuple[dict[str, Tensor], list[float]]:
    """`weight_attacks.relearn` on the model of a host; arguments and errors as for `run_inversion`."""
    host.check()  # before the size of a LoRA on it is asked for
    # The retain loss has a graph of its own, which is alive together with that of the concept.
    graphs = 2 if config.retain_weight else 1
    trained_bytes = ADAMW_BYTES * host.lora_size(config.targets, config.rank)
    sequences = graphs * config.batch_size
    with _erased_model(host, lora, examples, [""], sequences, trained_bytes) as (model, text, moved):
        return weight_attacks.relearn(model, text, moved, config, progress)
