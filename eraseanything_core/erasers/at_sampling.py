"""Erases while a picture is sampled: what the prediction has of the concept is projected off, and no weight changes.

With the predictions p for the prompt, c for a sentence of the concept and a for the same sentence with its neutral
words, all at the same x_t, the direction of the concept and how present it is in p are

    d = c - a        s = <p - a, d> / <d, d>

Where s is above a threshold, the nearest prediction without any of it takes its place:

    p' = argmin |p' - p|^2  with  <p' - a, d> <= 0        p' = p - s d

Elsewhere p stays as it is, bit for bit. `strength` times s d is taken off; over 1 goes past the neutral words. Formulas
after DVE (projection of the velocity) and CRG (presence from predictions); only their abstracts were at hand.

ComfyUI predicts pictures x_0. A flow model's velocity is v = (x_t - x_0) / t, so with x_0 in the place of v the sign
of d turns, s is the same, and so is what is sampled. The same holds for models that predict noise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """How much is projected off.

    Attributes:
        threshold: presence up to which a prediction stays as it is.
        strength: of what is taken off; 1 is the projection.
    """

    threshold: float
    strength: float

    def __call__(self, prompt: Tensor, concept: Tensor, neutral: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions without the concept.

        Args:
            prompt: p, one a picture, [b, ...].
            concept, neutral: c and a at the same x_t, [b, ...].

        Returns:
            p' like p, the very tensor where no picture shows the concept; and s [b].
        """
        present = presence(prompt, concept, neutral)
        acts = present > self.threshold
        if not acts.any():
            return prompt, present
        taken = (self.strength * present).to(prompt).view(-1, *[1] * (prompt.ndim - 1))
        erased = prompt - taken * (concept - neutral)
        return torch.where(acts.view_as(taken), erased, prompt), present


def presence(prompt: Tensor, concept: Tensor, neutral: Tensor) -> Tensor:
    """s of the equation above, [b], float32; 0 where concept and neutral words predict the same."""
    direction = (concept - neutral).float().flatten(1)
    along = ((prompt - neutral).float().flatten(1) * direction).sum(1)
    length = direction.square().sum(1)
    return torch.where(length > 0, along / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
