"""Attention features: the attention that a word of a prompt gets from each image query, F in Eq. 5 of the paper."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attention.columns import image_feature
from ..concepts import prompts
from ..protocols import ErasableModel
from .plan import BATCH_WORDS, STOP_EARLY, TEACHER_BATCHES, Plan, conds, select_words


def word_feature(
    model: ErasableModel, plan: Plan, chosen: Sequence[prompts.Prompt], x_t: Tensor, sigma: Tensor, adapters: bool
) -> Tensor:
    """The attention that each prompt's own word gets, [b, queries]; for the arguments see `word_maps`."""
    return image_feature(word_maps(model, plan, chosen, x_t, sigma, adapters))


def word_maps(
    model: ErasableModel, plan: Plan, chosen: Sequence[prompts.Prompt], x_t: Tensor, sigma: Tensor, adapters: bool
) -> dict[int, Tensor]:
    """The attention that each prompt's own word gets in every block that is read.

    Args:
        model: the student with adapters, the teacher without.
        plan: the run's.
        chosen: b prompts.
        x_t: [b, c, h, w].
        sigma: [b].
        adapters: whether the LoRA takes part.

    Returns:
        A block's index to [b, heads, queries, 1].
    """
    # A word is one column, the sum over its tokens, so words of unlike length have features of one shape.
    capture = model.capture(select_words(model, plan, chosen), plan.config.attention_blocks)
    cond = conds(model, plan, chosen)
    # Both fill the capture; `columns` leaves out the single blocks, which are two thirds of Flux's compute.
    if STOP_EARLY in plan.shortcuts:
        model.columns(x_t, sigma, cond, adapters=adapters, capture=capture)
    else:
        model.velocity(x_t, sigma, cond, adapters=adapters, capture=capture)
    return capture.maps


def teacher_features(
    model: ErasableModel, plan: Plan, sentences: Sequence[prompts.Sentence], x_t: Tensor, sigma: Tensor
) -> Tensor:
    """F_syn and F_ir of the teacher: every word in its own prompt with its own tokens, all at the same x_t.

    Args:
        model: its adapters stay off.
        plan: the run's.
        sentences: b sentences with a synonym and K irrelevant words each.
        x_t: [b, c, h, w].
        sigma: [b].

    Returns:
        [b, 1 + K, queries], the synonym first.
    """
    words: list[prompts.Prompt] = []
    for sentence in sentences:
        if sentence.synonym is not None:
            words.append(sentence.synonym)
        words.extend(sentence.irrelevant)
    words_per_sentence = len(words) // len(sentences)
    # The words of a sentence differ from its concept only in the text: all are read at the concept's own x_t and t.
    x_t = x_t.repeat_interleave(words_per_sentence, 0)
    sigma = sigma.repeat_interleave(words_per_sentence, 0)
    # The memory for a forward of the teacher is reserved for so many sequences, however many words there are.
    size = TEACHER_BATCHES * plan.config.batch_size if BATCH_WORDS in plan.shortcuts else 1
    features = []
    for start in range(0, len(words), size):
        part = slice(start, start + size)
        features.append(word_feature(model, plan, words[part], x_t[part], sigma[part], adapters=False))
    return torch.cat(features).unflatten(0, (len(sentences), -1))
