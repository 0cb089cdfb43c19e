"""A LoRA on the linears of a loaded Flux without touching their weights: y + scale B A x on its rows."""

from contextlib import contextmanager

from torch import Tensor, nn

from .keys import Eraser, Factors, place


class Dial:
    """The scale that applied factors have at the moment: one number, or one for every image and rank."""

    def __init__(self, scale: float | Tensor = 1.0):
        self.scale = scale  # or [b, rank]; [b, 1] is one for all ranks of an image

    def of(self, hidden: Tensor) -> float | Tensor:
        """The scale for hidden states [b, rank] or [b, l, rank]."""
        if not isinstance(self.scale, Tensor):
            return self.scale
        return self.scale.to(hidden) if hidden.ndim == 2 else self.scale.to(hidden)[:, None]


@contextmanager
def applied(module: nn.Module, eraser: Eraser, dial: Dial):
    """Adds the factors to the outputs of a Flux's linears inside the context.

    Args:
        module: ComfyUI's Flux, or a private copy of it.
        eraser: what to add.
        dial: how much of it; may be turned between forwards.
    """
    by_module: dict[str, list[tuple[int, Factors]]] = {}
    for key, factors in eraser.items():
        name, start = place(key, factors.down.shape[1])
        by_module.setdefault(name, []).append((start, factors))
    handles = [
        module.get_submodule(name).register_forward_hook(_hook(parts, dial)) for name, parts in by_module.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(parts: list[tuple[int, Factors]], dial: Dial):
    def add(_, args, y):
        x, y = args[0], y.clone()
        for start, (up, down) in parts:
            hidden = x @ down.to(x).T
            y[..., start : start + len(up)] += (hidden * dial.of(hidden)) @ up.to(x).T
        return y

    return add
