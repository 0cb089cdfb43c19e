"""SPM, semi-permeable membranes (Lyu et al., CVPR 2024), for flow transformers, written from the paper.

L = L_esd + retain_weight mean( v_student(x_t, p) - sg v(x_t, p) )^2, with adapters of one dimension (rank 1)

Latent anchoring: p lies between two prompts that must stay, and is accepted with probability 1 - cos(p, c), of their
mean states about the centre of all such prompts. The paper draws Gaussian embeddings; those of a text of hundreds of
tokens are nothing that a model has ever read, so p is u p_i + (1 - u) p_j of real prompts here. Facilitated transport,
which makes an eraser as strong as a prompt is about its concept, is a mode of *Multi Erase LoRA*; see `lora.transport`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..protocols import EncodedPrompt, with_context
from ..training import losses
from ..training.draws import Draw
from ..training.method import Extra, Method, Pair, setting
from ..training.objective import Losses
from .esd import ESD_SETTINGS

SPM_SETTINGS: dict[str, Any] = ESD_SETTINGS | {
    "targets": "all",
    "rank": 1,
    "retain_weight": 10.0,
    "retain_loss": "teacher",
    # The anchors are asked at the concept's points, as in the paper.
    "shared_points": True,
}


@dataclass(frozen=True)
class SpmSettings:
    """What SPM has beside the settings of a run."""

    anchors: int = setting(4, "Anchors in one step.", 1, 256)
    tries: int = setting(8, "Anchors that are drawn at most for each one that is accepted.", 1, 100)


class Spm(Method):
    """SPM: ESD with adapters of rank 1 and latent anchoring."""

    name = "spm"
    label = "SPM"
    own_settings = SpmSettings
    needs_retained = True

    def __init__(self, own: Any = None, extras: Sequence[Extra] = ()) -> None:
        super().__init__(own, extras)
        self.centre: Tensor | None = None  # of the retained texts' mean states

    @classmethod
    def run_settings(cls, own: Any) -> dict[str, Any]:
        return SPM_SETTINGS

    def preserve(self, pair: Pair, draw: Draw) -> Iterator[Losses]:
        """`retain` at anchors, which the teacher answers here: nobody has asked it for them before."""
        model = pair.model
        anchors = self.anchors(pair, draw)
        row, step = draw.erase
        # The erasing points, in turn.
        chosen = torch.arange(len(anchors)) % len(row)
        x_t, sigma, _ = pair.epoch.concept.at(row[chosen], step[chosen], model.device)
        cond = model.conds(anchors, pair.config.guidance)
        teacher = model.velocity(x_t, sigma, cond, adapters=False)
        yield {"retain": losses.retain_loss(model.velocity(x_t, sigma, cond, adapters=True), teacher)}

    def anchors(self, pair: Pair, draw: Draw) -> list[EncodedPrompt]:
        """Texts that must stay, those that are unlike the concept more often."""
        if self.centre is None:
            # Most of a long text is padding: its mean state is nearly that of any other text.
            self.centre = torch.stack([mean_state(pair.plan.encode(p.text)) for p in pair.plan.retained]).mean(0)
        first = int(draw.erase[0][0])
        concept = mean_state(pair.plan.encode(pair.epoch.concept.sources[first].concept.text))
        return [self.anchor(pair, concept, self.centre) for _ in range(self.own.anchors)]

    def anchor(self, pair: Pair, concept: Tensor, centre: Tensor) -> EncodedPrompt:
        """The first text that is accepted; where none is, the least alike."""
        tried = []
        for _ in range(self.own.tries):
            text = between(pair)
            likeness = F.cosine_similarity(mean_state(text) - centre, concept - centre, dim=0).clamp(0, 1)
            if torch.rand((), generator=pair.rng) < 1 - likeness:
                return text
            tried.append((float(likeness), text))
        return min(tried, key=lambda each: each[0])[1]


def between(pair: Pair) -> EncodedPrompt:
    """A text between two retained prompts; where these are of unlike length, the first one."""
    retained = pair.plan.retained
    i, j = torch.randint(len(retained), (2,), generator=pair.rng).tolist()
    one, other = (pair.plan.encode(retained[k].text) for k in (i, j))
    u = torch.rand((), generator=pair.rng)
    if one.context.shape != other.context.shape:
        return one
    return with_context(one, torch.lerp(one.context, other.context, u.to(one.context)))


def mean_state(encoded: EncodedPrompt) -> Tensor:
    """The mean of a text's states, [features]."""
    return encoded.context[0].float().mean(0)
