"""What makes backpropagation through ComfyUI's Flux exact."""

from contextlib import contextmanager

import comfy.model_management
from comfy.ldm.flux.model import Flux
from torch.utils.checkpoint import checkpoint as recompute


@contextmanager
def exact_gradients(flux: Flux, checkpoint: bool = False):
    """Makes backpropagation through ComfyUI's Flux exact.

    Its blocks add residuals in place, which overwrites what LayerNorm saved for backward; so every LayerNorm
    works on a copy of its input here. The first block adds to the projected text itself: text that is searched
    is copied too, for autograd refuses to change a view that a function of its own returns. `in_training` makes
    RoPE differentiable.

    Args:
        flux: the module; it is as before when the context ends.
        checkpoint: recompute each block in backward instead of keeping its activations.
    """
    norms, blocks = [], [*flux.double_blocks, *flux.single_blocks]
    for block in flux.double_blocks:
        norms += [block.img_norm1, block.img_norm2, block.txt_norm1, block.txt_norm2]
    norms += [block.pre_norm for block in flux.single_blocks]
    handles = [norm.register_forward_pre_hook(lambda _, args: (args[0].clone(),)) for norm in norms]
    handles.append(flux.txt_in.register_forward_hook(lambda _, args, x: x.clone() if x.requires_grad else x))
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        for block in blocks if checkpoint else ():
            block.forward = _recomputed(block.forward)
        yield
    finally:
        comfy.model_management.in_training = before
        for handle in handles:
            handle.remove()
        for block in blocks if checkpoint else ():
            block.__dict__.pop("forward", None)


def _recomputed(forward):
    """A block's forward, recomputed in backward on copies: it overwrites its streams, and the caller its options."""

    def run(*args, transformer_options, **rest):
        streams = {name: rest.pop(name) for name in ("img", "txt") if name in rest}
        rest["transformer_options"] = dict(transformer_options)

        def on_copies(*args, **streams):
            return forward(*(x.clone() for x in args), **{name: x.clone() for name, x in streams.items()}, **rest)

        return recompute(on_copies, *args, use_reentrant=False, preserve_rng_state=False, **streams)

    return run
