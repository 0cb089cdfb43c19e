"""The columns of a prompt's tokens in the attention of one forward."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.columns import attention_columns
from ...attention.erase import TextPosition
from ...attention.located_prompt import LocatedPrompt
from ...protocols import AttentionCapture, EncodedPrompt
from .table import Layout

Conditions = dict[str, Any]  # of a row, by name, as ComfyUI's classes for conditions hold them


def located_columns(
    layout: Layout,
    encodings: Sequence[EncodedPrompt],
    conditions: Sequence[Conditions],
    given: dict[str, Any],
    capture: AttentionCapture,
) -> list[Tensor]:
    """The columns of a request at the tokens that the forward is given: [b, tokens of all its texts] for each.

    A class may pad a text on its way into the forward, so a word's place there is looked up by the encoding itself.

    Args:
        layout: of the family.
        encodings: a prompt a row, as the text encoder made it.
        conditions: what the class made of each.
        given: the arguments of the forward, of all rows.
        capture: the request.

    Raises:
        ValueError: an encoding is not among the texts of the forward.
    """
    texts = layout.texts.of_forward(given.get("c_crossattn"), given)
    columns = []
    for number in range(capture.select.shape[2]):
        rows = []
        for row, (encoded, own) in enumerate(zip(encodings, conditions, strict=True)):
            select = capture.select[row, :, number]
            rows.append(_located(layout, encoded, own, [text[row : row + 1] for text in texts], select))
        columns.append(torch.cat(rows))
    return columns


def known_texts(layout: Layout, encoded: EncodedPrompt, own: Conditions) -> tuple[Any, ...]:
    """The encodings of a prompt as a forward will have them, padding apart."""
    context = encoded.context
    if layout.texts.prepared:
        # The class replaces the encoding by its own before the first forward.
        context = own["c_crossattn"].cond
    return layout.texts.with_second(context, getattr(encoded, "more", {}))


def _located(
    layout: Layout, encoded: EncodedPrompt, own: Conditions, texts: Sequence[Tensor], select: Tensor
) -> Tensor:
    """[1, tokens of the texts], one where a row's own selected tokens stand."""
    positions = select.nonzero()[:, 0].tolist()
    known = tuple(text.detach() for text in known_texts(layout, encoded, own))
    columns = LocatedPrompt([], {"": positions}, (), (known,)).columns(*(text.detach() for text in texts))
    if positions and not columns.any():
        raise ValueError("the text encoder's states do not reach the MODEL as they are: its words cannot be located")
    return columns


def heads_apart(x: Tensor, heads: int) -> Tensor:
    """[b, tokens, heads * d] to [b, heads, tokens, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2) if x.ndim == 3 else x.transpose(1, 2)


def read_columns(
    q: Tensor, k: Tensor, keys: Tensor, position: TextPosition, mask: Tensor | None, scale: float | None
) -> Tensor:
    """The post-softmax weight of the image's queries on the text's columns, [b, heads, image queries, columns].

    Args:
        q, k: [b, heads, tokens, d], after norms and RoPE; k may have fewer heads.
        keys: [b, text keys, columns], the weights with which keys are added up.
        position: where the text's keys and the image's queries are.
        mask: of the attention, as ComfyUI has it.
        scale: of the logits, None is 1 / sqrt(d).
    """
    if k.shape[1] < q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    if scale is not None:
        q = q * (scale * q.shape[-1] ** 0.5)
    behind = k.shape[2] - position.text - keys.shape[1]
    # The softmax goes over all keys, so the others are there too, with a weight of zero.
    select = F.pad(keys, (0, 0, position.text, behind))
    return attention_columns(q[:, :, position.image], k, select, _rows_of(mask, position.image, q.shape[2]))


def _rows_of(mask: Tensor | None, rows: slice, queries: int) -> Tensor | None:
    """The rows of an attention's mask, with axes for the batch and the heads."""
    if mask is None:
        return None
    while mask.ndim < 4:
        # [queries, keys] is for all of the batch, [b, queries, keys] for all heads.
        mask = mask[None] if mask.ndim == 2 else mask[:, None]
    return mask[:, :, rows] if mask.shape[2] == queries else mask
