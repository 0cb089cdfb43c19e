"""How well a map shows where an object is."""

import torch
from scipy.stats import rankdata
from torch import Tensor


def auc(maps: Tensor, masks: Tensor) -> Tensor:
    """The area under the ROC curve of each map's pixels against its mask; ties count half (Mann and Whitney 1947).

    Args:
        maps: [n, h, w].
        masks: [n, h, w], bool; each holds both values.

    Returns:
        [n], float64.
    """
    inside = masks.flatten(1)
    ranks = torch.from_numpy(rankdata(maps.flatten(1).float().numpy(), axis=1))
    hits = inside.sum(1).double()
    # The rank sum of the pixels inside, less the smallest that it can be, over its range: Mann and Whitney's U.
    return ((ranks * inside).sum(1) - hits * (hits + 1) / 2) / (hits * (inside.shape[1] - hits))


def pointing(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether the highest pixel of each map lies in its mask, [n] bool (the pointing game of Zhang et al. 2016)."""
    best = maps.flatten(1).argmax(1, keepdim=True)
    return masks.flatten(1).gather(1, best)[:, 0]
