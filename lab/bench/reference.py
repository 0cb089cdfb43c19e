"""The schedule of the published code, for its cost alone: 145 forwards and three backwards a pair of steps.

Even step: a whole walk for the erasing loss's input, two predictions without a gradient, one with, and one whose
attention is read. Odd step: one prediction with its attention, and a whole walk for the synonym and for each
irrelevant word. See `eraseanything_core/erasers/published_code.py` for what it computes with them.
"""

import torch

from eraseanything_core.attention.columns import image_feature
from eraseanything_core.sampling import shifted_sigmas


def reference_pair(model, lora, shapes: tuple, steps: int, words: int):
    """One even and one odd step on the seam `model`, adapters on throughout.

    Args:
        model: has its slices attached.
        lora: those slices.
        shapes: of x_t, context and pooled, batch 1.
        steps: of a walk.
        words: irrelevant words (K).
    """
    g = torch.Generator().manual_seed(0)
    x, context, pooled = (torch.randn(shape, generator=g) for shape in shapes)
    cond = model.cond(context, pooled, 3.5)
    sigma = torch.tensor([0.5])
    sigmas = shifted_sigmas(steps, model.mu)
    last = len(sigmas) - 1

    def walk():
        return list(model.trajectory(cond, x, sigmas, adapters=True))[last][0]

    def look():
        select = torch.zeros(1, context.shape[1], 1)
        select[:, :2] = 1
        return model.capture(select.to(model.device), (-1,))

    at = walk()
    with torch.no_grad():
        targets = [model.velocity(at, sigma, cond, adapters=True) for _ in range(2)]
    student = model.velocity(at, sigma, cond, adapters=True)
    seen = look()
    model.velocity(at, sigma, cond, adapters=True, capture=seen)  # its velocity is not used
    ((student - 2 * targets[0] + targets[1]).pow(2).mean() + image_feature(seen.maps).sum()).backward()
    seen = look()
    student = model.velocity(at, sigma, cond, adapters=True, capture=seen)
    others = [walk() for _ in range(1 + words)]
    (student.pow(2).mean() + image_feature(seen.maps).mean() * sum(o.mean() for o in others)).backward()
    lora.zero_grad()
