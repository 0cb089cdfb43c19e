"""A second module tree over the weights that ComfyUI has loaded."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn


class _FrozenLinear(torch.autograd.Function):
    """A linear whose weight needs no gradient: backward asks the module for the weight again.

    Autograd would save the weight. It refuses to do so for the inference tensors that ComfyUI's loaders make, and it
    would keep a cast copy of every quantised or offloaded layer alive until backward. This saves no tensor at all.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, run: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.module = module
        return run(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """y = W x gives dL/dx = dL/dy W."""
        module = ctx.module
        unpack = getattr(module, "cast_bias_weight", None)
        if unpack is not None:  # GGUF's layers unpack themselves
            return grad @ unpack(grad)[0], None, None
        weight, _, offload_stream = comfy.ops.cast_bias_weight(module, grad, offloadable=True)
        # A product with a quantised tensor may round `grad`, or may not exist: unpack first.
        x_grad = grad @ _dequantized(weight).to(grad)
        comfy.ops.uncast_bias_weight(module, weight, None, offload_stream)
        # ModelOpt's checkpoints have a scale that the forward multiplies its input with.
        input_scale = getattr(module, "pre_quant_scale", None)
        if input_scale is not None:
            x_grad = x_grad * input_scale.to(x_grad)
        return x_grad, None, None


def _dequantized(weight: Tensor) -> Tensor:
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


def frozen_view(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A second module tree over the same weights, free to hook and to train adapters on.

    The caller's modules are not touched. Linears share their weights whatever these are (inference tensors,
    quantised, offloaded). What is wider than `dtype` is cast once. The small scales of the norms are copied.

    Args:
        module: the caller's.
        dtype: in which the view computes.

    Returns:
        The view. Call `dissolve` on it when it is no longer used.
    """
    view: Any = copy.copy(module)
    view.__dict__.pop("forward", None)  # ComfyUI's own training leaves one behind
    # `copy.copy` shares these dicts with the caller's module, so each is replaced before anything is put in.
    view._forward_pre_hooks = OrderedDict()
    view._forward_hooks = OrderedDict()
    view._modules = {}
    for name, child in module._modules.items():
        view._modules[name] = None if child is None else frozen_view(child, dtype)
    # GGUF's linears are of a class of their own.
    is_linear = isinstance(module, nn.Linear) or hasattr(module, "in_features")
    view._parameters = {}
    for name, parameter in module._parameters.items():
        view._parameters[name] = _frozen(parameter, dtype, is_linear)
    if hasattr(module, "comfy_cast_weights") and _has_other_dtype(module, dtype):
        # ComfyUI's layers cast their weights to the input's type only where this flag is set.
        view.comfy_cast_weights = True
    if is_linear:
        # Only linears: the norms have small scales, which autograd may save as they are.
        view.forward = _frozen_forward(view)
    return view


def dissolve(view: nn.Module) -> None:
    """Lets go of the weights of a view.

    A view's linears and its adapters hold closures over the modules that hold them. Without this the weights would
    live until the garbage collector runs: 24 GB of them where the model was loaded for the session alone.
    """
    for module in view.modules():
        module.__dict__.pop("forward", None)
        module._parameters = {}
        module._buffers = {}


def _frozen_forward(view: nn.Module) -> Callable[[Tensor], Tensor]:
    run = view.forward

    def forward(x: Tensor) -> Tensor:
        return _FrozenLinear.apply(x, view, run) if x.requires_grad else run(x)

    return forward


def _has_other_dtype(module: nn.Module, dtype: torch.dtype) -> bool:
    return any(parameter.dtype != dtype for parameter in module.parameters(recurse=False))


def _frozen(parameter: nn.Parameter | None, dtype: torch.dtype, share: bool) -> nn.Parameter | None:
    """A parameter of the view: the caller's own, a view of its data, or a copy."""
    if parameter is None:
        return None
    too_wide = parameter.dtype.itemsize > dtype.itemsize
    if share and not parameter.requires_grad and not too_wide:
        return parameter
    data = parameter.detach()
    if too_wide:
        data = data.to(dtype)
    elif not share:
        # Autograd saves the scales of norms, and refuses inference tensors; a copy made here is none.
        data = data.clone()
    return nn.Parameter(data, requires_grad=False)
