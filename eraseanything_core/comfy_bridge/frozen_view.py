"""A second module tree over the weights that ComfyUI has loaded."""

import copy
from collections import OrderedDict

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import nn


class _FrozenLinear(torch.autograd.Function):
    """A linear whose weight needs no gradient: backward asks the module for the weight again.

    Autograd would save the weight, which it refuses for the inference tensors that ComfyUI's loaders make, and
    which keeps a cast copy alive for every quantised or offloaded layer. This saves nothing.
    """

    @staticmethod
    def forward(ctx, x, module, run):
        ctx.module = module
        return run(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        module, own = ctx.module, getattr(ctx.module, "cast_bias_weight", None)
        if own:  # GGUF's layers unpack themselves
            return grad @ own(grad)[0], None, None
        weight, _, offload = comfy.ops.cast_bias_weight(module, grad, offloadable=True)
        x_grad = grad @ _plain(weight).to(grad)  # a product with a quantised tensor may round `grad`, or be unknown
        comfy.ops.uncast_bias_weight(module, weight, None, offload)
        smooth = getattr(module, "pre_quant_scale", None)  # ModelOpt's, which the forward multiplies its input with
        return x_grad if smooth is None else x_grad * smooth.to(x_grad), None, None


def _plain(weight: torch.Tensor) -> torch.Tensor:
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


def frozen_view(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A second module tree over the same weights, free to hook and to train adapters on.

    The caller's modules are not touched. Linears share their weights whatever these are (inference tensors,
    quantised, offloaded); what is wider than `dtype` is cast once; the small scales of the norms are copied.
    """
    twin = copy.copy(module)
    twin.__dict__.pop("forward", None)  # core's own training leaves one behind
    twin._forward_pre_hooks, twin._forward_hooks = OrderedDict(), OrderedDict()
    twin._modules = {name: frozen_view(child, dtype) for name, child in module._modules.items()}
    linear = isinstance(module, nn.Linear) or hasattr(module, "in_features")
    twin._parameters = {name: _frozen(p, dtype, linear) for name, p in module._parameters.items()}
    if hasattr(module, "comfy_cast_weights") and any(p.dtype != dtype for p in module.parameters(recurse=False)):
        twin.comfy_cast_weights = True
    if linear:
        run = twin.forward
        twin.forward = lambda x: _FrozenLinear.apply(x, twin, run) if x.requires_grad else run(x)
    return twin


def _frozen(parameter: nn.Parameter | None, dtype: torch.dtype, share: bool) -> nn.Parameter | None:
    if parameter is None or (share and not parameter.requires_grad and parameter.dtype.itemsize <= dtype.itemsize):
        return parameter
    kept = parameter.detach()
    wide = kept.dtype.itemsize > dtype.itemsize
    return nn.Parameter(kept.to(dtype) if wide else kept if share else kept.clone(), requires_grad=False)
