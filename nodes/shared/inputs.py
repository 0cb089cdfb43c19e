"""Inputs that several nodes have, and the checks of what is typed into them."""

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ...eraseanything_core import files
from ...eraseanything_core.quoting import quoted
from .types import ERASE_CONCEPTS

CATEGORY_TRAINING = "EraseAnything/training"
CATEGORY_CONCEPTS = "EraseAnything/concepts"
CATEGORY_LORAS = "EraseAnything/lora"
CATEGORY_ATTENTION = "EraseAnything/attention"
CATEGORY_EVALUATION = "EraseAnything/evaluation"
CATEGORY_ATTACKS = "EraseAnything/attacks"

NOT_LINKED = object()  # ComfyUI gives None for a linked input, and nothing for one that is not
EMPTY_CONCEPT = "`concept` is empty: type the word to erase, or connect `concepts`"
DEFAULT_PRESET = "balanced"
SAVE_EVERY = 25  # training steps between two saved states, where no settings say otherwise
MAX_SEED = 2**31 - 1  # what torch, NumPy and the samplers all take


def check_concept(concept: str | None, linked: Any) -> bool | str:
    """The answer of a node's `validate_inputs`: True, or what is wrong with the typed concept.

    Args:
        concept: None where it is linked, and is known only when the graph runs.
        linked: the input `concepts`, `NOT_LINKED` where nothing is connected.
    """
    if linked is NOT_LINKED and concept is not None and not concept.strip():
        return EMPTY_CONCEPT
    return True


def concepts(use: str) -> io.Input:
    """A concept set that replaces typed words.

    Args:
        use: what the node does with it, for the tooltip.
    """
    return ERASE_CONCEPTS.Input("concepts", optional=True, tooltip=f"From Concept Sampler: {use}")


def seed(tooltip: str = "The same seed gives the same result: on a CPU exactly, on a GPU up to rounding.") -> io.Input:
    """A seed that stays as it is from run to run."""
    return io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=False, tooltip=tooltip)


def pictures(of: str = "") -> list[io.Input]:
    """Pictures of the same prompts and seeds from both models; `of` says of which prompts."""
    return [
        io.Image.Input("before", tooltip=f"Pictures of the un-erased model{of}."),
        io.Image.Input("after", tooltip="Pictures of the erased model, same prompts and seeds, same order."),
    ]


def check_range(field: io.Input, value: Any) -> None:
    """Raises ValueError when a typed value is none of a list, or is outside the range of a number.

    ComfyUI does so for inputs that the check of the node's own does not name.

    Args:
        field: the input.
        value: as typed; None where it comes by a link. A list is of a node that takes lists, and passes.
    """
    if value is None or isinstance(value, (list, tuple)):
        return
    if isinstance(field, io.Combo.Input) and value not in field.options:
        raise ValueError(f"`{field.id}` is {quoted(value)}: choose one of {', '.join(field.options)}")
    # Written so that NaN fails too.
    if isinstance(field, (io.Int.Input, io.Float.Input)) and not field.min <= value <= field.max:
        raise ValueError(f"`{field.id}` is {value}: type {field.min} to {field.max}")


def valid_name(name: str | None, ending: str = ".safetensors") -> bool | str:
    """The answer of `validate_inputs` for a typed file name; None stands for a linked one."""
    return True if name is None else accepted(files.check_name, name, ending)


def accepted(check: Callable[..., Any], *args: Any, **kwargs: Any) -> bool | str:
    """The answer of `validate_inputs`: True, or the message of the ValueError that a check raises."""
    try:
        check(*args, **kwargs)
    except ValueError as error:
        return str(error)
    return True
