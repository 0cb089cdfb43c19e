"""What a family's smallest model is and where the text stands in it."""

from dataclasses import dataclass, field

import torch

TOKENS = 21  # of a made-up context
PLACES = (4, 5, 9)  # of the concept among them


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@dataclass(frozen=True)
class Case:
    """One family.

    Attributes:
        config: of the model.
        size: of the latents.
        width: features of a token.
        text: the keys that the text's tokens are; one range a copy of them.
        keys: of an attention with text among them, all others have another number.
        image: the queries that are the image's.
        attentions: with text among their keys.
        calls: of each of them in one forward.
        steps: of sampling; where one does not show much, two.
        more: further entries of the CONDITIONING.
        attention_module: where the attention takes no options: the Python module that calls ComfyUI's.
        features: of the pooled text.
        sound: size of the latents of the sound, where there are any.
        state: what the family reads of a checkpoint besides the model's weights.
    """

    config: dict
    size: tuple[int, ...] = (16, 12, 16)
    width: int = 32
    text: tuple[int, ...] = (0,)
    keys: int = TOKENS
    image: tuple[int | None, int | None] = (0, None)
    attentions: int = 2
    calls: int = 1
    steps: int = 1
    more: dict = field(default_factory=dict)
    attention_module: object = None
    features: int = 16
    sound: tuple[int, ...] = ()
    state: dict = field(default_factory=dict)

    @property
    def columns(self) -> list[int]:
        return [first + place for first in self.text for place in PLACES]
