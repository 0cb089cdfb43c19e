"""Borrowing the model that a loader node has made: what is refused, what it is named by, and how it is run."""

import hashlib
from contextlib import contextmanager

import comfy.model_base
import comfy.model_management
import torch
from comfy.ldm.flux.model import Flux

from .frozen_view import frozen_view
from .gradients import exact_gradients
from .model import FluxModel


def check_model(patcher):
    """Refuses what cannot be trained on exactly.

    Raises:
        ValueError: no text-to-image Flux.1, compiled, changed by another node, or with weights that cannot be had.
    """
    base = patcher.model
    inner = getattr(base, "diffusion_model", None)
    placed = [part for key, part in patcher.object_patches.items() if "diffusion_model" in key]
    if "torch_compile_kwargs" in patcher.model_options or any(hasattr(part, "_orig_mod") for part in (inner, *placed)):
        raise ValueError("the MODEL is compiled: connect it without the compile node")
    if type(base) is not comfy.model_base.Flux or not isinstance(inner, Flux):
        raise ValueError(f"the MODEL is a {type(base).__name__}: only a text-to-image Flux.1 can be trained here")
    if inner.in_channels != inner.out_channels:
        raise ValueError(
            "the MODEL is a Flux.1 that paints from an image (Fill, Canny, Depth): load a text-to-image one"
        )
    if patcher.is_dynamic() and patcher.cached_patcher_init is None:
        told = "use Load Diffusion Model, or start ComfyUI with --disable-dynamic-vram"
        raise ValueError(
            f"DynamicVRAM streams the MODEL's weights, and its loader cannot load them for training: {told}"
        )
    options = {k: v for k, v in patcher.model_options.get("transformer_options", {}).items() if v}
    changes = placed or patcher.patches or patcher.weight_wrapper_patches or patcher.injections or patcher.hook_patches
    wrapped = any(found for kind in patcher.wrappers.values() for found in kind.values())
    if changes or options or wrapped or "model_function_wrapper" in patcher.model_options:
        raise ValueError("the MODEL is already patched (a LoRA or another node): connect it straight from its loader")
    if packed := [module for module in inner.modules() if _unknown(module)]:
        kind = f"{type(packed[0]).__module__}.{type(packed[0]).__qualname__}"
        raise ValueError(f"{kind} does not say how it unpacks its weights: load the MODEL as bf16, fp8 or GGUF")


def _unknown(module) -> bool:
    """A linear whose packed weight neither ComfyUI nor the layer itself hands out; backward would need it."""
    if not hasattr(module, "in_features") or hasattr(module, "cast_bias_weight"):
        return False
    return module.weight.shape != (module.out_features, module.in_features)


@contextmanager
def training_session(patcher, dtype: torch.dtype | None = None, checkpoint: bool = False, memory: int = 0):
    """Runs a loaded Flux through a private copy of its modules; the caller's MODEL stays as it is.

    Args:
        patcher: the MODEL of a loader node.
        dtype: precision of the transformer; None is the one that ComfyUI would use.
        checkpoint: see `exact_gradients`.
        memory: bytes to keep free for activations.

    Yields:
        A FluxModel, to be used only inside the context.

    Raises:
        ValueError: see `check_model`.
    """
    check_model(patcher)
    with torch.inference_mode(False), torch.enable_grad():
        # Streamed weights live in buffers of their own; a static copy is read from the file instead.
        static = patcher.clone(disable_dynamic=True)
        comfy.model_management.load_models_gpu([static], memory_required=memory)
        dtype = dtype or static.model.get_dtype_inference()
        module = frozen_view(static.model.diffusion_model, dtype)
        with exact_gradients(module, checkpoint):
            mu = static.get_model_object("model_sampling").shift
            downscale = static.model.latent_format.spacial_downscale_ratio
            yield FluxModel(module, static.load_device, dtype, mu, downscale)


def fingerprint(patcher) -> str:
    """Names a set of weights: SHA-256 over the names, shapes and 64 values of every tensor of the transformer."""
    digest, module = hashlib.sha256(), patcher.model.diffusion_model
    held = dict(module.named_parameters())
    for name, tensor in module.state_dict().items():
        if tensor.is_meta and name not in held:  # GGUF's state dict is for counting bytes
            continue
        flat = (held[name] if tensor.is_meta else tensor).detach().flatten()
        places = torch.linspace(0, flat.numel() - 1, 64, dtype=torch.float64).long().to(flat.device)
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + flat[places].float().cpu().numpy().tobytes())
    return digest.hexdigest()
