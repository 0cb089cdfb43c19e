"""Formulas that make one LoRA of many; W_i is the weight of eraser i, and dW_i = B_i A_i.

None of them adds the factors themselves: sum(B_i) sum(A_i) has the cross terms B_i A_j, and factors of LoRAs that
were trained apart share no basis (B R and R^-1 A are the same LoRA for every R).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..quoting import quoted
from .factors import Eraser, Factors

NEGLIGIBLE = 1e-6  # singular values below this part of the largest are the rounding of float32
MODES = ("normalised sum", "sum", "concatenate", "truncated", "ties_svd", "dare_ties_svd", "magnitude_prune_svd")
# Modes of Multi Erase LoRA that are no merge of factors alone.
FUSION = "closed-form fusion"
GATED = "prompt-gated"
TRANSPORT = "facilitated transport"  # of one prompt; see lora.transport
UNGATED = "concatenate"  # what a gated combination is in a file
SPARSE_MODES = ("ties_svd", "dare_ties_svd", "magnitude_prune_svd")
MAX_COMPARED_ENTRIES = 100 * 256**2  # that these compare a linear, of all erasers together: about a second's work


def concatenated(erasers: Sequence[Eraser], weights: Sequence[float]) -> Eraser:
    """sum_i W_i dW_i, exactly: B = [W_1 B_1, W_2 B_2, ...], A = [A_1; A_2; ...]. The rank is the sum of the ranks."""
    parts: dict[str, list[Factors]] = {}
    for eraser, weight in zip(erasers, weights, strict=True):
        for key, (up, down) in eraser.items():
            # The weight goes into one factor only: in both it would count squared.
            parts.setdefault(key, []).append(Factors(weight * up, down))
    return {key: stack(factors) for key, factors in parts.items()}


def stack(parts: Sequence[Factors]) -> Factors:
    """The sum of several changes of one linear: their factors side by side."""
    ups = [part.up for part in parts]
    downs = [part.down for part in parts]
    return Factors(torch.cat(ups, dim=1), torch.cat(downs))


def averaged(erasers: Sequence[Eraser], weights: Sequence[float]) -> Eraser:
    """The paper's normalised sum (Eq. 12): sum_i (W_i / N) dW_i."""
    return concatenated(erasers, [weight / len(erasers) for weight in weights])


def summed(erasers: Sequence[Eraser], weights: Sequence[float]) -> Eraser:
    """sum_i W_i dW_i at its own rank: what erasers share is stored once."""
    return truncated(concatenated(erasers, weights))


def truncated(eraser: Eraser, rank: int = 0, energy: float = 1.0) -> Eraser:
    """The nearest LoRA of a smaller rank (Eckart and Young 1936).

    Args:
        eraser: a LoRA.
        rank: the largest of a linear; 0 is no limit.
        energy: the share of the sum of squared singular values that a linear keeps at least.
    """
    return {key: _truncated_factors(factors, rank, energy) for key, factors in eraser.items()}


def _truncated_factors(factors: Factors, rank: int, energy: float) -> Factors:
    # B A is as large as the weight, and never made: B A = Q_b (R_b R_a^T) Q_a^T by QR of both factors, and the
    # singular values are those of the small core in the middle.
    q_up, r_up = torch.linalg.qr(factors.up)
    q_down, r_down = torch.linalg.qr(factors.down.T)
    u, s, v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    count = kept_rank(s, rank, energy)
    # Both factors get the root of each singular value, so that their entries are of like size in a file of bf16.
    root = s[:count].sqrt()
    up = q_up @ (u[:, :count] * root)
    down = (root[:, None] * v[:count]) @ q_down.T
    return Factors(up, down)


def kept_rank(s: Tensor, rank: int, energy: float) -> int:
    """How many of the singular values s, the largest first, are kept; at least one."""
    squares = s.square()
    # A LoRA of zeros has no energy to share out.
    total = squares.sum().clamp(min=torch.finfo(s.dtype).tiny)
    share = squares.cumsum(0) / total
    if energy < 1:
        # Those before which the share is short, and the one that fills it.
        enough = int((share < energy).sum()) + 1
    else:
        enough = int((s > NEGLIGIBLE * s[0]).sum())
    return max(1, min(enough, rank or len(s), len(s)))


def sparse(
    erasers: Sequence[Eraser], weights: Sequence[float], mode: str, density: float, rank: int, seed: int
) -> Eraser:
    """TIES, DARE-TIES or pruning by magnitude, by peft, in directions that the erasers share.

    dW = U f(U^T dW_1 V, .., U^T dW_N V) V^T with peft's f. U are the left singular vectors of [dW_1, .., dW_N] and V
    the right ones of [dW_1; ..; dW_N], after KnOTS (Stoica et al. 2024). Erasers that have no direction in common are
    added as they are, where the entries of the weights themselves would always collide.

    That departs from peft's `add_weighted_adapter`, whose f works on those entries, with every dW_i whole in memory.
    The two agree where U and V are axes.

    Args:
        erasers, weights: the LoRAs, and how much of each.
        mode: of `SPARSE_MODES`.
        density: the share of entries of each U^T dW_i V that survives.
        rank: the most directions of U and of V, the strongest first; 0 is all, which loses nothing.
        seed: of DARE's random choice.

    Raises:
        ValueError: more than `MAX_COMPARED_ENTRIES` entries are to be compared.
        ImportError: peft is not installed.
    """
    merge = _peft_function(mode)
    combined_eraser = {}
    # DARE draws from torch's global generator; the caller's numbers stay as they are.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for key in all_keys(erasers):
            parts = []
            part_weights = []
            for eraser, weight in zip(erasers, weights, strict=True):
                if key in eraser:
                    parts.append(eraser[key])
                    part_weights.append(weight)
            u = directions(parts, rank)
            # The right singular vectors are the left ones of the transposes, (B A)^T = A^T B^T.
            v = directions([Factors(down.T, up.T) for up, down in parts], rank)
            _check_entries(len(parts), u.shape[1], v.shape[1], mode)
            cores = [rounded_product(u.T @ up, down @ v) for up, down in parts]
            # f compares entries. In shared directions these are few, and mean the same thing in every eraser.
            core = merge(cores, torch.tensor(part_weights), density)
            combined_eraser[key] = Factors(u @ core, v.T)
    return combined_eraser


def _peft_function(mode: str) -> Callable[[list[Tensor], Tensor, float], Tensor]:
    try:
        from peft.utils import merge_utils  # takes seconds, and only these modes need it
    except ImportError as error:
        raise ImportError(f"the mode {mode} needs peft: run `pip install peft`, or choose another mode") from error
    function: Callable[[list[Tensor], Tensor, float], Tensor] = getattr(merge_utils, mode.removesuffix("_svd"))
    return function


def all_keys(erasers: Sequence[Eraser]) -> list[str]:
    """Every linear that one of the erasers changes, in the order in which they come up."""
    keys: dict[str, None] = {}  # a set would lose the order, and DARE's draws depend on it
    for eraser in erasers:
        keys |= dict.fromkeys(eraser)
    return list(keys)


def _check_entries(count: int, rows: int, columns: int, mode: str) -> None:
    if count * rows * columns > MAX_COMPARED_ENTRIES:
        highest = int((MAX_COMPARED_ENTRIES / count) ** 0.5)
        raise ValueError(
            f"{mode} of {count} erasers in {max(rows, columns)} directions takes minutes: set rank to 1 to {highest}"
        )


def directions(parts: Sequence[Factors], rank: int) -> Tensor:
    """The left singular vectors of [B_1 A_1, .., B_N A_N], the strongest first, [rows, at most `rank`]."""
    # A_i = R^T Q^T by QR, and an orthogonal Q^T changes no left singular vector: the rows of B_i R^T do as well.
    columns = [up @ torch.linalg.qr(down.T).R.T for up, down in parts]
    u, s, _ = torch.linalg.svd(torch.cat(columns, dim=1), full_matrices=False)
    return u[:, : kept_rank(s, rank, 1.0)]


def rounded_product(up: Tensor, down: Tensor) -> Tensor:
    """up @ down with 0 for what is only rounding: TIES elects a sign among all entries that are not 0."""
    product = up @ down
    return product.masked_fill_(product.abs() < NEGLIGIBLE * product.abs().max(), 0)


def combined(
    erasers: Sequence[Eraser],
    weights: Sequence[float],
    mode: str,
    rank: int = 0,
    energy: float = 1.0,
    density: float = 0.5,
    seed: int = 0,
) -> Eraser:
    """Any mode that needs no model; the functions of this module have the formulas and the other arguments.

    Raises:
        ValueError: a mode that is not of `MODES`.
    """
    if mode in SPARSE_MODES:
        return sparse(erasers, weights, mode, density, rank, seed)
    if mode == "truncated":
        return truncated(concatenated(erasers, weights), rank, energy)
    sums: dict[str, Any] = {"normalised sum": averaged, "sum": summed, "concatenate": concatenated}
    if mode not in sums:
        raise ValueError(f"there is no mode {quoted(mode)}; known: {', '.join(MODES)}")
    eraser: Eraser = sums[mode](erasers, weights)
    return eraser
