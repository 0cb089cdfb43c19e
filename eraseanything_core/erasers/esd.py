"""ESD (Gandikota et al., 2023), with Flux's keys and values for the cross-attention that Flux does not have.

L = mean( v_student(x_t, c) - sg[ v(x_t, empty) - eta ( v(x_t, c) - v(x_t, empty) ) ] )^2, x_t on trajectories of c.

This is the paper's form; eta = 1 here is `negative_guidance` 2 in the official code. It is the first of EraseAnything's
losses alone, so EraseAnything's graphs are its own. Whose trajectories is left as configured: the share
`on_policy_share` of them is the student's own, the rest the frozen model's.
"""

from dataclasses import dataclass
from typing import Any

from ..training.method import Method, setting

VARIANTS = {
    # Keys and values of text and image: what cross-attention reads its text with.
    "strict": "text and image k,v",
    "x": "all",
    "u": "unconditional",
}
# One loss, plain sentences, nothing retained.
ESD_SETTINGS: dict[str, Any] = {
    "eta": 1.0,
    "neutral": "",  # the null prompt
    "other_neutrals": (),
    "attn_weight": 0.0,
    "rsc_weight": 0.0,
    "retain_weight": 0.0,
    "synonym_rate": 0.0,
    "shuffle_rate": 0.0,
}


@dataclass(frozen=True)
class EsdSettings:
    """What ESD has beside the settings of a run."""

    variant: str = setting(
        "strict",
        "What is trained. strict: keys and values; x: all of the attention; u: what lies outside of every attention "
        "that reads text.",
        choices=tuple(VARIANTS),
    )


class Esd(Method):
    """ESD: EraseAnything with its first loss alone."""

    name = "esd"
    label = "ESD"
    own_settings = EsdSettings

    @classmethod
    def run_settings(cls, own: Any) -> dict[str, Any]:
        return ESD_SETTINGS | {"targets": VARIANTS[own.variant]}
