"""What makes backpropagation through ComfyUI's Flux exact."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as model_management
from comfy.ldm.flux.model import Flux
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute
from torch.utils.hooks import RemovableHandle


@contextmanager
def exact_gradients(flux: Flux, gradient_checkpointing: bool = False) -> Iterator[None]:
    """Makes backpropagation through ComfyUI's Flux exact.

    Without it most gradients raise an error, and some are wrong without one: recomputed blocks start from streams
    that later blocks have changed in place, which autograd does not notice.

    Args:
        flux: the module; it is as before when the context ends.
        gradient_checkpointing: recompute each block in backward instead of keeping its activations.
    """
    recomputed_blocks = [*flux.double_blocks, *flux.single_blocks] if gradient_checkpointing else []
    handles = _copying_hooks(flux)
    # ComfyUI's fused RoPE kernel has no backward. This flag makes it take the plain one.
    in_training = model_management.in_training
    model_management.in_training = True
    try:
        for block in recomputed_blocks:
            block.forward = _recomputed(block.forward)
        yield
    finally:
        model_management.in_training = in_training
        for handle in handles:
            handle.remove()
        for block in recomputed_blocks:
            # Deleting uncovers the class's own method; assigning the old bound one would make a reference cycle.
            block.__dict__.pop("forward", None)


def _copying_hooks(flux: Flux) -> list[RemovableHandle]:
    """Hooks that keep in-place steps away from what autograd has saved."""
    norms: list[nn.Module] = []
    for block in flux.double_blocks:
        norms += [block.img_norm1, block.img_norm2, block.txt_norm1, block.txt_norm2]
    for block in flux.single_blocks:
        norms.append(block.pre_norm)
    # The blocks add residuals in place (`img += ...`), which overwrites the input that LayerNorm saved for backward.
    handles = [norm.register_forward_pre_hook(_copy_input) for norm in norms]
    # The first block adds to the projected text itself. Where the text is searched, this is a view that a function of
    # our own returned (see `frozen_view`), and autograd refuses to change such a view in place.
    handles.append(flux.txt_in.register_forward_hook(_copy_trained_output))
    return handles


def _copy_input(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (args[0].clone(),)


def _copy_trained_output(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.clone() if output.requires_grad else output


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward that keeps only its inputs and is run again in backward."""

    def run(*args: Tensor, transformer_options: dict[str, Any], **rest: Any) -> Any:
        streams = {}
        for name in ("img", "txt"):
            if name in rest:
                streams[name] = rest.pop(name)
        # The model writes the next block's index into one and the same dict. A recomputed block has to see its own.
        rest["transformer_options"] = dict(transformer_options)

        def on_copies(*args: Tensor, **streams: Tensor) -> Any:
            # The block overwrites its streams; the second run must start from what the first one got.
            copied_args = [x.clone() for x in args]
            copied_streams = {name: x.clone() for name, x in streams.items()}
            return forward(*copied_args, **copied_streams, **rest)

        # Nothing in a block draws random numbers, so their state need not be saved.
        return recompute(on_copies, *args, use_reentrant=False, preserve_rng_state=False, **streams)

    return run
