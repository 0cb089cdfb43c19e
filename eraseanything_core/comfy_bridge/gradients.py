"""What makes backpropagation through ComfyUI's models exact."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import comfy.ldm.flux.math as flux_math
import comfy.model_management as model_management
import comfy_kitchen
import torch
import torch.nn.functional as F
from comfy.ldm.flux.model import Flux
from comfy_kitchen.backends.eager import rope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint as recompute
from torch.utils.hooks import RemovableHandle

from .families import class_name
from .families.slices import embedders

# Classes that normalise by a function and change its input in place.
NORMALISED_BY_FUNCTIONS = ("lightricks.model.LTXVModel", "pixeldit.model.PixDiT_T2I", "pixeldit.pid.PidNet")
UNCHANGED = ("vec", "pe", "attn_mask")  # arguments of blocks that no class changes in place
SAVING = (F.rms_norm, torch.rms_norm, F.layer_norm, torch.layer_norm)
# Kernels that some classes call whatever ComfyUI's flag for training says.
KERNELS = (
    "apply_rope",
    "apply_rope1",
    "apply_rope_split_half",
    "apply_rope_split_half1",
    "rms_rope",
    "rms_rope_split_half",
)


Rotate = Callable[[Tensor, Tensor], Tensor]  # (x [..., channels], matrices [..., channels / 2, 2, 2])


class Remembering(Protocol):
    """Something that keeps the transformer options of the forward that runs; a recomputed block has to see its own."""

    options: dict[str, Any] | None


@contextmanager
def exact_gradients(
    module: nn.Module, gradient_checkpointing: bool = False, remembering: Remembering | None = None
) -> Iterator[None]:
    """Makes backpropagation through ComfyUI's code exact.

    Without it most gradients raise an error, and some are wrong without one: recomputed blocks start from streams
    that later blocks have changed in place, which autograd does not notice.

    Args:
        module: the diffusion model; it is as before when the context ends.
        gradient_checkpointing: recompute each block in backward instead of keeping its activations.
        remembering: what keeps the options of a forward outside of its arguments, if anything does.
    """
    recomputed_blocks = recomputable_blocks(module) if gradient_checkpointing else []
    handles = _copying_hooks(module) if isinstance(module, Flux) else _copies_for_every_norm(module)
    copies_what_is_saved = class_name(module) in NORMALISED_BY_FUNCTIONS
    # ComfyUI's fused kernels have no backward. This flag makes most classes take plain ones.
    in_training = model_management.in_training
    model_management.in_training = True
    try:
        for block in recomputed_blocks:
            block.forward = _recomputed(block.forward, remembering, copies_what_is_saved)
        with plain_kernels(), short_rotations(), SavedInputs() if copies_what_is_saved else nullcontext():
            yield
    finally:
        model_management.in_training = in_training
        for handle in handles:
            handle.remove()
        for block in recomputed_blocks:
            # Deleting uncovers the class's own method; assigning the old bound one would make a reference cycle.
            block.__dict__.pop("forward", None)


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Inside, the kernels of RoPE that some classes call in training as well are PyTorch's operations."""
    kept = {name: getattr(comfy_kitchen, name) for name in KERNELS}
    for name in KERNELS:
        setattr(comfy_kitchen, name, getattr(rope, name))
    try:
        yield
    finally:
        for name, kernel in kept.items():
            setattr(comfy_kitchen, name, kernel)


class _Rotation(torch.autograd.Function):
    """RoPE whose backward is the rotation by the transposed matrices.

    Autograd goes back through each step of it, with float32 tensors of zeros on the way; this takes four operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor, rotate: Rotate) -> Tensor:
        ctx.save_for_backward(matrices)
        ctx.rotate = rotate
        return rotate(x, matrices)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """y = R x gives dL/dx = R^T dL/dy, for each pair of channels."""
        (matrices,) = ctx.saved_tensors
        return ctx.rotate(grad, matrices.transpose(-1, -2)), None, None


@contextmanager
def short_rotations() -> Iterator[None]:
    """Inside, the RoPE that ComfyUI's classes share has a backward of its own; its result has the same bits."""
    rotate = flux_math._apply_rope1

    def rotated(x: Tensor, matrices: Tensor) -> Tensor:
        return _Rotation.apply(x, matrices, rotate) if x.requires_grad else rotate(x, matrices)

    flux_math._apply_rope1 = rotated
    try:
        yield
    finally:
        flux_math._apply_rope1 = rotate


class SavedInputs(TorchFunctionMode):
    """Copies what autograd saves for backward where a class changes it in place afterwards.

    These classes normalise by functions, which have no hooks as modules do, and modulate by `x.addcmul_(x, scale)`.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in SAVING and args[0].requires_grad:
            args = (args[0].clone(), *args[1:])
        elif func is torch.Tensor.addcmul_ and any(other is args[0] for other in args[1:]):
            args = (args[0], *(other.clone() if other is args[0] else other for other in args[1:]))
        return func(*args, **(kwargs or {}))


def recomputable_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a model: what its lists of modules hold and calls as one, the outermost of them."""
    if isinstance(module, Flux):
        return [*module.double_blocks, *module.single_blocks]
    candidates: dict[nn.Module, None] = {}  # a set in order
    for group in module.modules():
        if isinstance(group, (nn.ModuleList, nn.ModuleDict)):
            for block in group.children():
                candidates |= dict.fromkeys(_called_as_one(block))
    inner = {part for block in candidates for part in block.modules() if part is not block}
    return [block for block in candidates if block not in inner]


def _called_as_one(block: nn.Module) -> Iterator[nn.Module]:
    """The block, or its parts where the model itself goes through them; nothing where it has no linear."""
    # A U-Net takes the layers of its blocks one by one.
    if isinstance(block, nn.Sequential):
        for part in block.children():
            yield from _called_as_one(part)
    elif not isinstance(block, (nn.ModuleList, nn.ModuleDict)) and not hasattr(block, "in_features"):
        if any(hasattr(part, "in_features") for part in block.modules()):
            yield block


def _copies_for_every_norm(module: nn.Module) -> list[RemovableHandle]:
    """Hooks that keep in-place steps away from what autograd has saved, in a model of any class."""
    handles = []
    for layer in module.modules():
        if "norm" in type(layer).__name__.lower():
            handles.append(layer.register_forward_pre_hook(_copy_inputs))
    for name in embedders(module):
        handles.append(module.get_submodule(name).register_forward_hook(_copy_output))
    return handles


def _copy_inputs(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.clone() if isinstance(x, Tensor) and x.requires_grad else x for x in args)


def _copying_hooks(flux: Flux) -> list[RemovableHandle]:
    """Hooks that keep in-place steps away from what autograd has saved."""
    norms: list[nn.Module] = []
    for block in flux.double_blocks:
        norms += [block.img_norm1, block.img_norm2, block.txt_norm1, block.txt_norm2]
    for block in flux.single_blocks:
        norms.append(block.pre_norm)
    # The blocks add residuals in place (`img += ...`), which overwrites the input that LayerNorm saved for backward.
    handles = [norm.register_forward_pre_hook(_copy_input) for norm in norms]
    # The first block adds to the projected streams themselves. A linear's output is a view: autograd refuses to change
    # it in place where a function of our own returned it (see `frozen_view`), and elsewhere it copies the whole
    # stream's gradient at every such step from there on.
    for embedder in (flux.img_in, flux.txt_in):
        handles.append(embedder.register_forward_hook(_copy_output))
    return handles


def _copy_input(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (args[0].clone(),)


def _copy_output(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.clone() if torch.is_grad_enabled() else output


def _recomputed(
    forward: Callable[..., Any], remembering: Remembering | None, copies_what_is_saved: bool
) -> Callable[..., Any]:
    """A block's forward that keeps only its inputs and is run again in backward."""

    def run(*args: Any, **rest: Any) -> Any:
        # The model writes the next block's index into one and the same dict. A recomputed block has to see its own.
        args, rest = tree_map(lambda leaf: leaf, (args, rest))
        options = remembering.options if remembering else None

        def on_copies(args: Any, rest: Any) -> Any:
            # The block overwrites its streams; the second run must start from what the first one got.
            own_args, own_rest = tree_map(_copy, (args, {name: rest[name] for name in rest if name not in UNCHANGED}))
            own_rest |= {name: rest[name] for name in rest if name in UNCHANGED}
            present = remembering.options if remembering else None
            if remembering:
                remembering.options = options
            try:
                # Backward runs outside of the mode in which the forward ran.
                with SavedInputs() if copies_what_is_saved else nullcontext():
                    return forward(*own_args, **own_rest)
            finally:
                if remembering:
                    remembering.options = present

        # Nothing in a block draws random numbers, so their state need not be saved.
        return recompute(on_copies, args, rest, use_reentrant=False, preserve_rng_state=False)

    return run


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
