"""Paths of modules in a diffusion model."""

from collections.abc import Sized


def module_paths(template: str, blocks: Sized) -> list[str]:
    """The template with `{}` replaced by the index of each block."""
    return [template.format(i) for i in range(len(blocks))]
