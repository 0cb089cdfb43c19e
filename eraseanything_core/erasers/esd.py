"""ESD (Gandikota et al., 2023), with Flux's keys and values for the cross-attention that Flux does not have.

L = mean( v_student(x_t, c) - sg[ v(x_t, empty) - eta ( v(x_t, c) - v(x_t, empty) ) ] )^2, x_t on trajectories of c.
This is the paper's form; eta = 1 here is `negative_guidance` 2 in the official code. Whose trajectories is left as
configured: the share `on_policy_share` of them is the student's own, the rest the frozen model's (TinyFlux's recipe: 0.75).
"""

import dataclasses

from ..training.config import EraseConfig

TARGETS = "add_k+add_v+to_k+to_v"


def esd(config: EraseConfig, **settings) -> EraseConfig:
    """A configuration of `trainer.train` that is ESD: the null prompt, the plain sentences, nothing retained."""
    alone = {"attn_weight": 0.0, "rsc_weight": 0.0, "retain_weight": 0.0, "synonym_rate": 0.0, "shuffle_rate": 0.0}
    published = {"eta": 1.0, "neutral": "", "targets": TARGETS}
    return dataclasses.replace(config, **alone | published | settings)
