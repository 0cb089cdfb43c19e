"""UCE (Gandikota et al., 2024): a linear that reads the text is solved anew, so that a concept reads as its guide.

W' = argmin sum_e |W' c_e - W g_e|^2 + sum_p |W' c_p - W c_p|^2 + lam |W' - W|^2

That is W plus a matrix whose rank is the number of erased states:

W' - W = sum_e W (g_e - c_e) c_e^T M^-1, with M = sum_e c_e c_e^T + sum_p c_p c_p^T + lam I

So the edit is an exact LoRA. Biases cancel and are left out, which the official Flux script forgets.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LAYERS = ("context_embedder", "time_text_embed.text_embedder.linear_1")  # they read T5's states and the pooled vector


class LinearStates(NamedTuple):
    """A linear, and the inputs of it that an edit is about.

    Attributes:
        weight: W, [rows, columns].
        erased: c_e, [e, columns].
        guides: g_e, what each of them shall read as, [e, columns].
        kept: c_p, [p, columns].
    """

    weight: Tensor
    erased: Tensor
    guides: Tensor
    kept: Tensor


def edit(weight: Tensor, erased: Tensor, guides: Tensor, kept: Tensor, lam: float = 0.5) -> tuple[Tensor, Tensor]:
    """The LoRA of one linear.

    Args:
        weight, erased, guides, kept: see `LinearStates`.
        lam: how strongly W holds on to itself.

    Returns:
        A [e, columns] and B [rows, e], float32; W' = W + B A.
    """
    # Sums of squares of T5's states span many orders of magnitude: float32 loses the small ones in the inverse.
    weight = weight.double()
    erased = erased.double()
    guides = guides.double()
    kept = kept.double()
    identity = torch.eye(weight.shape[1], dtype=torch.float64)
    m = erased.T @ erased + kept.T @ kept + lam * identity
    down = torch.linalg.solve(m, erased.T).T  # rows c_e^T M^-1, as M is symmetric
    # Columns W (g_e - c_e), one for each erased state.
    up = weight @ (guides - erased).T
    return down.float(), up.float()


def lora(layers: dict[str, LinearStates], lam: float = 0.5) -> dict[str, Tensor]:
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
