"""Borrowing the model that a loader node has made: what is refused, what it is named by, and how it is run."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_base
import comfy.model_management as model_management
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from .any_model import AnyModel, any_model
from .families import is_flux_1
from .families.refused import untrainable
from .frozen_view import dissolve, frozen_view
from .gradients import exact_gradients
from .model import FluxModel
from .static_copy import static_clone

TRANSFORMER_PREFIX = "diffusion_model."  # of the transformer's weights in ComfyUI's patcher
FINGERPRINT_VALUES = 64  # values of each tensor that are hashed


def check_model(patcher: Any) -> None:
    """Refuses what cannot be trained on exactly.

    Raises:
        ValueError: of a class that cannot be trained, compiled, changed by another node, or with weights that cannot
            be had.
    """
    base = patcher.model
    inner = getattr(base, "diffusion_model", None)
    replaced = [part for key, part in patcher.object_patches.items() if "diffusion_model" in key]
    is_compiled = any(hasattr(part, "_orig_mod") for part in (inner, *replaced))
    # First, since torch.compile's wrapper hides the class that the next check looks at.
    if is_compiled or "torch_compile_kwargs" in patcher.model_options:
        raise ValueError("the MODEL is compiled: connect it without the compile node")
    reason = untrainable(base)
    if reason:
        raise ValueError(f"the MODEL is a {_model_class(base)}: {reason}")
    if patcher.is_dynamic() and patcher.cached_patcher_init is None:
        raise ValueError(
            "DynamicVRAM streams the MODEL's weights, and its loader cannot load them for training: use Load Diffusion "
            "Model, or start ComfyUI with --disable-dynamic-vram"
        )
    if replaced or _is_patched(patcher):
        raise ValueError("the MODEL is already patched (a LoRA or another node): connect it straight from its loader")
    for module in base.diffusion_model.modules():
        if _hides_its_weight(module):
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            raise ValueError(f"{kind} does not say how it unpacks its weights: load the MODEL as bf16, fp8 or GGUF")


def _model_class(base: Any) -> str:
    """The class that names a model. Stable Diffusion and others are a plain BaseModel and differ by configuration."""
    named = base.model_config if type(base) is comfy.model_base.BaseModel else base
    return type(named).__name__


def _is_patched(patcher: Any) -> bool:
    """Whether another node changes what this MODEL computes."""
    if patcher.patches or patcher.weight_wrapper_patches or patcher.injections or patcher.hook_patches:
        return True
    if "model_function_wrapper" in patcher.model_options:
        return True
    # Core leaves empty dicts and lists behind in both of these.
    options = patcher.model_options.get("transformer_options", {})
    if any(options.values()):
        return True
    return any(wrappers for by_key in patcher.wrappers.values() for wrappers in by_key.values())


def _hides_its_weight(module: nn.Module) -> bool:
    """A linear whose packed weight neither ComfyUI nor the layer itself hands out; backward would need it."""
    # GGUF's layers have `cast_bias_weight`, with which `frozen_view` unpacks them.
    if not hasattr(module, "in_features") or hasattr(module, "cast_bias_weight"):
        return False
    return module.weight.shape != (module.out_features, module.in_features)


@contextmanager
def training_session(
    patcher: Any, dtype: torch.dtype | None = None, gradient_checkpointing: bool = False, memory: int = 0
) -> Iterator[FluxModel | AnyModel]:
    """Runs a loaded model through a second tree of its modules; the caller's MODEL stays as it is.

    Args:
        patcher: the MODEL of a loader node.
        dtype: precision of the transformer; None is the one that ComfyUI would use.
        gradient_checkpointing: see `exact_gradients`.
        memory: bytes to keep free for activations.

    Yields:
        The model, to be used only inside the context.

    Raises:
        ValueError: see `check_model`.
    """
    check_model(patcher)
    # The executor runs nodes in inference mode, where no graph is built; enable_grad alone does not lift it.
    with torch.inference_mode(False), torch.enable_grad():
        static = static_clone(patcher)
        # Loading a clone without patches also takes those of other clones out of the shared weights.
        model_management.load_models_gpu([static], memory_required=memory)
        dtype = dtype or static.model.get_dtype_inference()
        module = frozen_view(static.model.diffusion_model, dtype, static.load_device)
        try:
            model = _on_its_road(static, module, dtype)
            device = model_management.cuda_device_context(static.load_device)
            # Kernels for quantised weights run on the current card, which need not be that of the weights.
            with device, exact_gradients(module, gradient_checkpointing, model.remembering):
                yield model
        finally:
            dissolve(module)
            if patcher.is_dynamic():
                # PyTorch keeps the memory of the copy, and DynamicVRAM takes only what is free for every process.
                del static
                model_management.soft_empty_cache()


def _on_its_road(static: Any, module: Any, dtype: torch.dtype) -> FluxModel | AnyModel:
    """A view of a loaded MODEL's diffusion model as everything above the bridge sees it."""
    model_sampling = static.get_model_object("model_sampling")
    if not is_flux_1(static.model):
        return any_model(static.model, module, model_sampling, static.load_device, dtype)
    downscale = static.model.latent_format.spacial_downscale_ratio
    return FluxModel(module, static.load_device, dtype, model_sampling.shift, downscale)


def fingerprint(patcher: Any) -> str:
    """Names a set of weights: SHA-256 over the names, shapes and 64 values of every tensor of the transformer.

    The weights are those of the file, whatever LoRA of another clone is patched into them at the time.
    """
    # A sample of each tensor: hashing all 24 GB would take minutes, and another model differs nearly everywhere.
    digest = hashlib.sha256()
    for name, tensor in _original_weights(patcher).items():
        flat = tensor.detach().flatten()
        # float64: float32 cannot tell neighbouring indices above 2^24 apart.
        places = torch.linspace(0, flat.numel() - 1, FINGERPRINT_VALUES, dtype=torch.float64).long().to(flat.device)
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + flat[places].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _original_weights(patcher: Any) -> dict[str, Tensor]:
    """The transformer's state dict without any patch."""
    module = patcher.model.diffusion_model
    parameters = dict(module.named_parameters())
    weights = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_meta:
            weights[name] = tensor
        elif name in parameters:
            weights[name] = parameters[name]
        # What else is on `meta` stands in GGUF's state dict only to count bytes.
    # Clones of a MODEL share their weights and these backups: where a LoRA is patched in, the original lies here. A
    # hook's LoRA comes on top of the others, so the backup of the others is the older one.
    for key, (weight, _) in patcher.hook_backup.items():
        weights.update(_named_tensors(key, weight))
    for key, backup in patcher.backup.items():
        weights.update(_named_tensors(key, backup.weight))
    return weights


def _named_tensors(key: str, weight: Tensor) -> dict[str, Tensor]:
    """A weight of the patcher as a state dict has it: a quantised one is several tensors."""
    if not key.startswith(TRANSFORMER_PREFIX):
        return {}
    name = key.removeprefix(TRANSFORMER_PREFIX)
    if isinstance(weight, QuantizedTensor):
        return weight.state_dict(name)
    return {name: weight}
