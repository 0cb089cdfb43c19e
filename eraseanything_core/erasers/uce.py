"""UCE (Gandikota et al., 2024): a linear that reads the text is solved anew, so that a concept reads as its guide.

W' = argmin sum_e |W' c_e - W g_e|^2 + sum_p |W' c_p - W c_p|^2 + lam |W' - W|^2, which is W plus a matrix whose rank
is the number of erased states: W' - W = sum_e W (g_e - c_e) c_e^T M^-1, M = sum_e c_e c_e^T + sum_p c_p c_p^T + lam I.
So the edit is an exact LoRA. Biases cancel and are left out, which the official Flux script forgets.
"""

import torch
from torch import Tensor

LAYERS = ("context_embedder", "time_text_embed.text_embedder.linear_1")  # what reads T5's states and the pooled vector


def edit(weight: Tensor, erased: Tensor, guides: Tensor, kept: Tensor, lam: float = 0.5) -> tuple[Tensor, Tensor]:
    """The LoRA of one linear.

    Args:
        weight: W, [rows, columns].
        erased: c_e, [e, columns].
        guides: g_e, what each shall read as, [e, columns].
        kept: c_p, [p, columns].
        lam: how strongly W holds on to itself.

    Returns:
        A [e, columns] and B [rows, e], float32; W' = W + B A.
    """
    weight, erased, guides, kept = (x.double() for x in (weight, erased, guides, kept))
    m = erased.T @ erased + kept.T @ kept + lam * torch.eye(weight.shape[1], dtype=torch.float64)
    down = torch.linalg.solve(m, erased.T).T  # rows c_e^T M^-1
    return down.float(), (weight @ (guides - erased).T).float()


def lora(layers: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]], lam: float = 0.5) -> dict[str, Tensor]:
    """The edits of several linears under their file keys; a layer's name to the arguments of `edit`."""
    found = {}
    for name, states in layers.items():
        found[f"transformer.{name}.lora_A.weight"], found[f"transformer.{name}.lora_B.weight"] = edit(*states, lam)
    return found
