"""Formulas that make one LoRA of many, W_i the weight of eraser i and dW_i = B_i A_i.

None of them adds the factors themselves: sum(B_i) sum(A_i) has the cross terms B_i A_j, and factors of LoRAs that
were trained apart share no basis (B R and R^-1 A are the same LoRA for every R).
"""

import torch
from torch import Tensor

from .keys import Eraser, Factors

NEGLIGIBLE = 1e-6  # singular values below this part of the largest are the rounding of float32
MODES = ("normalised sum", "sum", "concatenate", "truncated", "ties_svd", "dare_ties_svd", "magnitude_prune_svd")
SPARSE = ("ties_svd", "dare_ties_svd", "magnitude_prune_svd")
ENTRIES = 100 * 256**2  # that these compare at most, of all erasers, a linear: about a second's work


def concatenated(erasers: list[Eraser], weights: list[float]) -> Eraser:
    """sum_i W_i dW_i, exactly: B = [W_1 B_1, W_2 B_2, ...], A = [A_1; A_2; ...]. The rank is the sum of the ranks."""
    parts: dict[str, list[Factors]] = {}
    for eraser, weight in zip(erasers, weights, strict=True):
        for key, (up, down) in eraser.items():
            parts.setdefault(key, []).append(Factors(weight * up, down))
    return {key: stack(found) for key, found in parts.items()}


def stack(parts: list[Factors]) -> Factors:
    """The sum of several factors, side by side."""
    return Factors(torch.cat([p.up for p in parts], dim=1), torch.cat([p.down for p in parts]))


def averaged(erasers: list[Eraser], weights: list[float]) -> Eraser:
    """The paper's normalised sum (Eq. 12): sum_i (W_i / N) dW_i."""
    return concatenated(erasers, [weight / len(erasers) for weight in weights])


def summed(erasers: list[Eraser], weights: list[float]) -> Eraser:
    """sum_i W_i dW_i at its own rank: what erasers share is stored once."""
    return truncated(concatenated(erasers, weights))


def truncated(eraser: Eraser, rank: int = 0, energy: float = 1.0) -> Eraser:
    """The nearest LoRA of a smaller rank (Eckart and Young 1936).

    Args:
        rank: the largest that is kept; 0 is no limit.
        energy: the share of the sum of squared singular values that is kept at least, a linear.
    """
    return {key: _truncate(factors, rank, energy) for key, factors in eraser.items()}


def _truncate(factors: Factors, rank: int, energy: float) -> Factors:
    """QR of both factors, then the SVD of their small core: B A = Q_b (R_b R_a^T) Q_a^T."""
    q_up, r_up = torch.linalg.qr(factors.up)
    q_down, r_down = torch.linalg.qr(factors.down.T)
    u, s, v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    kept = keep(s, rank, energy)
    root = s[:kept].sqrt()
    return Factors(q_up @ (u[:, :kept] * root), (root[:, None] * v[:kept]) @ q_down.T)


def keep(s: Tensor, rank: int, energy: float) -> int:
    """How many of the singular values s, largest first, are kept; at least one."""
    share = s.square().cumsum(0) / s.square().sum().clamp(min=torch.finfo(s.dtype).tiny)
    enough = int((share < energy).sum()) + 1 if energy < 1 else int((s > NEGLIGIBLE * s[0]).sum())
    return max(1, min(enough, rank or len(s), len(s)))


def sparse(erasers: list[Eraser], weights: list[float], mode: str, density: float, rank: int, seed: int) -> Eraser:
    """TIES, DARE-TIES or pruning by magnitude, by peft, in directions that the erasers share.

    dW = U f(U^T dW_1 V, .., U^T dW_N V) V^T with peft's f. U are the left singular vectors of [dW_1, .., dW_N] and V
    the right ones of [dW_1; ..; dW_N], after KnOTS (Stoica et al. 2024): erasers that have no direction in common are
    added as they are, where entries of the weights themselves would always collide. That departs from peft's
    `add_weighted_adapter`, whose f works on those entries, with every dW_i whole in memory; the two agree where U and V
    are axes.

    Args:
        mode: of `SPARSE`.
        density: the share of entries of each U^T dW_i V that survives.
        rank: the most directions of U and of V, the strongest first; 0 is all, which loses nothing.
        seed: of DARE's random choice.

    Raises:
        ValueError: more than `ENTRIES` entries are to be compared.
    """
    from peft.utils import merge_utils  # takes seconds to import

    combine = getattr(merge_utils, mode.removesuffix("_svd"))
    made = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for key in dict.fromkeys(key for eraser in erasers for key in eraser):
            having = [(e[key], w) for e, w in zip(erasers, weights, strict=True) if key in e]
            u = directions([factors for factors, _ in having], rank)
            v = directions([Factors(down.T, up.T) for (up, down), _ in having], rank)
            _check_entries(len(having), u.shape[1], v.shape[1], mode)
            cores = [core(u.T @ up, down @ v) for (up, down), _ in having]
            made[key] = Factors(u @ combine(cores, torch.tensor([w for _, w in having]), density), v.T)
    return made


def _check_entries(count: int, rows: int, columns: int, mode: str):
    if count * rows * columns > ENTRIES:
        most = int((ENTRIES / count) ** 0.5)
        raise ValueError(
            f"{mode} of {count} erasers in {max(rows, columns)} directions takes minutes: set rank to 1 to {most}"
        )


def directions(parts: list[Factors], rank: int) -> Tensor:
    """The left singular vectors of [B_1 A_1, .., B_N A_N], strongest first, [rows, at most `rank`].

    A_i = R^T Q^T by QR, and the Q^T have no part in them: rows of B_i R^T do as well.
    """
    u, s, _ = torch.linalg.svd(torch.cat([up @ torch.linalg.qr(down.T).R.T for up, down in parts], 1), False)
    return u[:, : keep(s, rank, 1.0)]


def core(up: Tensor, down: Tensor) -> Tensor:
    """up @ down with 0 for what is rounding: a sign is elected among all entries that are not 0."""
    product = up @ down
    return product.masked_fill_(product.abs() < NEGLIGIBLE * product.abs().max(), 0)


def combined(erasers: list[Eraser], weights: list[float], mode: str, rank=0, energy=1.0, density=0.5, seed=0) -> Eraser:
    """Any mode that needs no model; see the functions of this module for the formulas and the other arguments.

    Raises:
        ValueError: a mode that is not of `MODES`.
    """
    if mode in SPARSE:
        return sparse(erasers, weights, mode, density, rank, seed)
    if mode == "truncated":
        return truncated(concatenated(erasers, weights), rank, energy)
    simple = {"normalised sum": averaged, "sum": summed, "concatenate": concatenated}
    if mode not in simple:
        raise ValueError(f"there is no mode {mode!r}; known: {', '.join(MODES)}")
    return simple[mode](erasers, weights)
