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


def frozen_view(module: nn.Module, dtype: torch.dtype, device: torch.device | None = None) -> nn.Module:
    """A second module tree over the same weights, free to hook and to train adapters on.

    The caller's modules are not touched. Linears share their weights whatever these are (inference tensors,
    quantised, offloaded), also after ComfyUI has moved them. What is wider than `dtype` is cast once. The small scales
    of the norms are copied.

    Args:
        module: the caller's.
        dtype: in which the view computes.
        device: where it computes; None is where the norms lie.

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
        view._modules[name] = None if child is None else frozen_view(child, dtype, device)
    # GGUF's linears are of a class of their own.
    is_linear = isinstance(module, nn.Linear) or hasattr(module, "in_features")
    convolves = hasattr(module, "_conv_forward")
    if is_linear:
        view._parameters = _shared_weights(module, dtype)
    else:
        # Some classes pin a convolution to float32 and hand it float32, whatever they compute in.
        view._parameters = _copied_scales(module, None if convolves else dtype, device)
    if hasattr(module, "comfy_cast_weights"):
        # ComfyUI may move a linear's weight off the device in mid training, and casts it back only where this flag is
        # set. A copied scale is in its place and type already. Cast for each forward, it would lie in a buffer that
        # the next layer overwrites, and backward would read another layer's.
        view.comfy_cast_weights = is_linear
    if convolves:
        view._conv_forward = _casting_convolution(view._conv_forward)
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
        for name in ("forward", "_conv_forward"):
            module.__dict__.pop(name, None)
        module._parameters = {}
        module._buffers = {}


def _frozen_forward(view: nn.Module) -> Callable[[Tensor], Tensor]:
    run = view.forward

    def forward(x: Tensor) -> Tensor:
        return _FrozenLinear.apply(x, view, run) if x.requires_grad else run(x)

    return forward


def _casting_convolution(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A convolution whose weights take the type of what they are given, as ComfyUI casts them."""

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any, **rest: Any) -> Tensor:
        return run(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), *args, **rest)

    return forward


def _shared_weights(module: nn.Module, dtype: torch.dtype) -> dict[str, nn.Parameter | None]:
    """A linear's parameters: the caller's own dict, or copies where one of them cannot be used as it is."""
    kept = True
    for parameter in module._parameters.values():
        if parameter is not None and (parameter.requires_grad or _is_too_wide(parameter, dtype)):
            kept = False
    if kept:
        # The dict and not its entries: a quantised weight that ComfyUI moves is a new parameter in it.
        return module._parameters
    parameters: dict[str, nn.Parameter | None] = {}
    for name, parameter in module._parameters.items():
        if parameter is not None:
            data = parameter.detach()
            data = data.to(dtype) if _is_too_wide(parameter, dtype) else data
            parameter = nn.Parameter(data, requires_grad=False)
        parameters[name] = parameter
    return parameters


def _is_too_wide(parameter: nn.Parameter, dtype: torch.dtype) -> bool:
    return parameter.dtype.itemsize > dtype.itemsize


def _copied_scales(
    module: nn.Module, dtype: torch.dtype | None, device: torch.device | None
) -> dict[str, nn.Parameter | None]:
    """The other parameters, copied to the device in a type; None is the one that they have.

    Autograd saves the scales of norms, and refuses inference tensors; a copy made here is none.
    """
    parameters: dict[str, nn.Parameter | None] = {}
    for name, parameter in module._parameters.items():
        if parameter is not None:
            data = parameter.detach().to(device, dtype, copy=True)
            parameter = nn.Parameter(data, requires_grad=False)
        parameters[name] = parameter
    return parameters
