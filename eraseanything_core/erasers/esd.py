"""ESD (Gandikota et al., 2023), with Flux's keys and values for the cross-attention that Flux does not have.

L = mean( v_student(x_t, c) - sg[ v(x_t, empty) - eta ( v(x_t, c) - v(x_t, empty) ) ] )^2, x_t on trajectories of c.

This is the paper's form; eta = 1 here is `negative_guidance` 2 in the official code. Whose trajectories is left as
configured: the share `on_policy_share` of them is the student's own, the rest the frozen model's. EraseAnything's loop
trains it, since this is the first of its losses alone.
"""

from typing import Any

ESD_TARGETS = "add_k+add_v+to_k+to_v"  # of text and image: what cross-attention reads its text with
# For `training.trainer`: one loss, plain sentences, nothing retained. What is not named here stays as configured.
ESD_SETTINGS: dict[str, Any] = {
    "eta": 1.0,
    "neutral": "",  # the null prompt
    "targets": ESD_TARGETS,
    "attn_weight": 0.0,
    "rsc_weight": 0.0,
    "retain_weight": 0.0,
    "synonym_rate": 0.0,
    "shuffle_rate": 0.0,
}
