"""UCE (Gandikota et al., 2024): a linear that reads the text is solved anew, so that a concept reads as its guide.

W' = argmin sum_e |W' c_e - W g_e|^2 + sum_p |W' c_p - W c_p|^2 + lam |W' - W|^2

That is W plus a matrix whose rank is the number of erased states:

W' - W = W T, with T = sum_e (g_e - c_e) c_e^T M^-1 and M = sum_e c_e c_e^T + sum_p c_p c_p^T + lam I

So the edit is an exact LoRA, and T is the same for all linears that read these states. Biases cancel and are left
out, which the official Flux script forgets.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..lora.factors import Factors

LAYERS = ("context_embedder", "time_text_embed.text_embedder.linear_1")  # they read T5's states and the pooled vector
LAM = 0.5  # as published


class TextStates(NamedTuple):
    """The inputs of a linear that an edit is about.

    Attributes:
        erased: c_e, [e, columns].
        guides: g_e, what each of them shall read as, [e, columns].
        kept: c_p, [p, columns].
    """

    erased: Tensor
    guides: Tensor
    kept: Tensor


class LinearStates(NamedTuple):
    """A linear, and the inputs of it that an edit is about; see `TextStates`.

    Attributes:
        weight: W, [rows, columns].
        erased, guides, kept: c_e [e, columns], g_e [e, columns] and c_p [p, columns].
    """

    weight: Tensor
    erased: Tensor
    guides: Tensor
    kept: Tensor


def change(states: TextStates, lam: float = LAM) -> Factors:
    """T of the equation above, as W' = W (I + T).

    Args:
        states: of the concept, of its guide, and of what is kept.
        lam: how strongly W holds on to itself.

    Returns:
        up [columns, e] with g_e - c_e, down [e, columns] with c_e^T M^-1; float64.
    """
    # Sums of squares of T5's states span many orders of magnitude: float32 loses the small ones in the inverse.
    erased = states.erased.double()
    rows = torch.cat((erased, states.kept.double()))
    down = _first_rows_through_inverse(rows, len(erased), lam)
    return Factors((states.guides.double() - erased).T, down)


def _first_rows_through_inverse(rows: Tensor, count: int, lam: float) -> Tensor:
    """S (S^T S + lam I)^-1, the first rows of it.

    Args:
        rows: S, [n, columns], float64.
        count: of the rows that are wanted.
        lam: above 0.

    Returns:
        [count, columns].
    """
    number, columns = rows.shape
    if number < columns:
        # S (S^T S + lam I)^-1 = (S S^T + lam I)^-1 S, where the matrix to solve with is the smaller one.
        gram = rows @ rows.T
        gram.diagonal().add_(lam)
        wanted = torch.eye(number, count, dtype=rows.dtype)
        return torch.cholesky_solve(wanted, torch.linalg.cholesky(gram)).T @ rows
    m = rows.T @ rows
    m.diagonal().add_(lam)
    return torch.cholesky_solve(rows[:count].T, torch.linalg.cholesky(m)).T  # M is symmetric


def edit(weight: Tensor, erased: Tensor, guides: Tensor, kept: Tensor, lam: float = LAM) -> tuple[Tensor, Tensor]:
    """The LoRA of one linear.

    Args:
        weight, erased, guides, kept: see `LinearStates`.
        lam: how strongly W holds on to itself.

    Returns:
        A [e, columns] and B [rows, e], float32; W' = W + B A.
    """
    up, down = change(TextStates(erased, guides, kept), lam)
    return down.float(), (weight.double() @ up).float()


def lora(layers: dict[str, LinearStates], lam: float = LAM) -> dict[str, Tensor]:
    """The edits of several linears under their file keys.

    Args:
        layers: a layer's name in diffusers to its states.
        lam: see `edit`.
    """
    tensors = {}
    for name, states in layers.items():
        # diffusers' names for A and B, which the stock loader takes.
        down, up = edit(*states, lam)
        tensors[f"transformer.{name}.lora_A.weight"] = down
        tensors[f"transformer.{name}.lora_B.weight"] = up
    return tensors
