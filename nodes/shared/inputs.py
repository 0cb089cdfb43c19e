"""Inputs that several nodes have, and the check of a typed file name."""

from collections.abc import Callable

from comfy_api.latest import io

from ...eraseanything_core import files

ERASE_CONCEPTS, LORA_MODEL = io.Custom("ERASE_CONCEPTS"), io.Custom("LORA_MODEL")


def concepts(use: str):
    """A concept set beside typed words, which may be left out; it stands last, so that saved workflows go on."""
    return ERASE_CONCEPTS.Input("concepts", optional=True, tooltip=f"From Concept Sampler: {use}")


def seed(tooltip: str = "Equal seeds give equal results."):
    """A seed that stays as it is from run to run."""
    return io.Int.Input("seed", default=0, min=0, max=2**31 - 1, control_after_generate=False, tooltip=tooltip)


def pictures(of: str = "") -> list:
    """Pictures of the same prompts and seeds from both models; `of` says of which prompts."""
    return [
        io.Image.Input("before", tooltip=f"Pictures of the un-erased model{of}."),
        io.Image.Input("after", tooltip="Pictures of the erased model, same prompts and seeds, same order."),
    ]


def checked(name: str | None, ending: str = ".safetensors") -> bool | str:
    """True, or what is wrong with a typed file name; None stands for a linked one."""
    return True if name is None else accepted(files.check_name, name, ending)


def accepted(check: Callable, *given, **named) -> bool | str:
    """True, or what a check raises ValueError for: the answer of `validate_inputs`."""
    try:
        check(*given, **named)
    except ValueError as error:
        return str(error)
    return True
