"""What a linear does with the text, in the same words for every family of models.

A role names linears by the tokens that they read (text, image or both) and by what they make of them (q, k or v).
Which linears these are in a family is in `comfy_bridge.families.linears`.
"""

from dataclasses import dataclass
from typing import Literal

from ..quoting import quoted

Tokens = Literal["text", "image", "shared", "cross", "refiner", "embedder", "unconditional"]


@dataclass(frozen=True)
class Role:
    """Which linears can be trained under one name.

    Attributes:
        tokens: what the linears read; the first of these that a family has is taken.
        parts: which of q, k and v; empty is the whole linear.
        every: all of these kinds of tokens are taken.
    """

    tokens: tuple[Tokens, ...]
    parts: str = ""
    every: bool = False


# The text's own stream where a family has one, else the linears of its cross-attention or its refiner: these read text
# alone as well. Single streams have one set of linears for both, which is found under the image's name.
TEXT: tuple[Tokens, ...] = ("text", "cross", "refiner")
ROLES = {
    "text k,v": Role(TEXT, "kv"),
    "text q,k": Role(("text", "refiner"), "qk"),
    "text q,k,v": Role(("text", "refiner"), "qkv"),
    "image k,v": Role(("image", "shared"), "kv"),
    "refiner": Role(("refiner",), "qkv"),
    "embedder": Role(("embedder",)),
    "cross k,v": Role(("cross",), "kv"),
    "all": Role(("text", "image", "shared", "cross", "refiner", "embedder"), "qkv", every=True),
    "text and image k,v": Role(("text", "image", "shared", "cross"), "kv", every=True),
    "text and image q,k": Role(("text", "image", "shared"), "qk", every=True),
    # Outside of every attention that reads text; ESD-u trains these.
    "unconditional": Role(("unconditional",)),
}
# What these were called when FLUX.1 alone could be trained.
OLDER_NAMES = {"paper": "text q,k", "text_qkv": "text q,k,v", "text_kv": "text k,v", "all_kv": "all", "all_qkv": "all"}


def role_name(targets: str) -> str:
    """The name of a role, also by its older name.

    Raises:
        ValueError: there is no such role.
    """
    name = OLDER_NAMES.get(targets, targets)
    if name not in ROLES:
        raise ValueError(f"there is no role {quoted(targets)}: take one of {'; '.join(ROLES)}")
    return name
