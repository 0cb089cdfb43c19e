"""Closed-form erasing by two projections (Zhang et al., CVPR 2026, arXiv 2604.10032), the successor of UCE.

1. Each state c of the concept gets a proxy: its projection onto the span of states that are safe, g = S^+ S c.
2. W changes only in the left null space of what is kept, so that W' c_p = W c_p holds and is not only aimed at:

W' = argmin sum_e |W' c_e - W g_e|^2 + lam |W' - W|^2  with  (W' - W) N = W' - W
W' - W = W T, T = sum_e (g_e - c_e) [(C N C^T + lam I)^-1 C N]_e

N = I - V V^T with the directions V of the kept states, and C has the rows c_e^T. Only the abstract and summaries of the
paper were at hand. Two things are taken: that the safe states are those of the kept words, and that V holds all but a
part `slack` of the kept states' energy. With more kept states than columns nothing but such a part is left to change.
"""

import torch
from torch import Tensor

from ..lora.factors import Factors
from .uce import TextStates

SLACK = 1e-4  # of the kept states' energy, which may change
RIDGE = 1e-3  # of the mean square of the concept's states
SAFE = 0.99  # of the energy of the safe states, which their span holds


def proxies(erased: Tensor, safe: Tensor, energy: float = SAFE) -> Tensor:
    """What the states of a concept have in common with safe ones.

    Args:
        erased: [e, columns].
        safe: [s, columns].
        energy: the share of the safe states' squares that their span must hold.

    Returns:
        The projections, [e, columns], float64.
    """
    span = directions(safe, 1 - energy)
    return erased.double() @ span.T @ span


def directions(rows: Tensor, slack: float) -> Tensor:
    """The fewest orthonormal directions outside of which a part `slack` of the rows' energy lies at most.

    Args:
        rows: [n, columns].
        slack: 0 keeps all that is not rounding.

    Returns:
        [directions, columns], float64.
    """
    rows = rows.double()
    columns = rows.shape[1]
    # Of the smaller Gram matrix: the rows' singular values are the roots of its eigenvalues.
    is_wide = len(rows) < columns
    gram = rows @ rows.T if is_wide else rows.T @ rows
    values, vectors = torch.linalg.eigh(gram)
    values = values.flip(0).clamp(min=0)
    vectors = vectors.flip(1)
    outside = 1 - values.cumsum(0) / values.sum()
    count = 1 + int((outside > slack).sum())
    count = min(count, int((values > torch.finfo(rows.dtype).eps * columns * values[0]).sum()))
    if not is_wide:
        return vectors[:, :count].T
    return (vectors[:, :count] / values[:count].sqrt()).T @ rows


def change(states: TextStates, slack: float = SLACK, ridge: float = RIDGE) -> Factors:
    """T of the equation above, as W' = W (I + T); see `uce.change` for what comes back.

    Args:
        states: of the concept, of its proxy or guide, and of what is kept.
        slack: see the module.
        ridge: lam, as a part of the mean square of the concept's states.
    """
    erased = states.erased.double()
    kept = directions(states.kept, slack)
    free = erased - erased @ kept.T @ kept  # C N
    gram = free @ free.T  # N is symmetric and its own square
    # Of C and not of C N: a concept that lies wholly among the kept states has no part that is free but rounding.
    gram.diagonal().add_(ridge * erased.square().sum(1).mean())
    down = torch.linalg.solve(gram, free)
    return Factors((states.guides.double() - erased).T, down)
