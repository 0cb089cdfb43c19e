"""The gradient on weights as ComfyUI stores them, against the same weights unpacked, in float64 on the CPU."""

import json

import comfy.model_management as management
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor, nn

from eraseanything_core.comfy_bridge.training_session import training_session
from lab.gpu import gguf_file
from lab.gpu.card import Card
from lab.gpu.gradients import CPU, compare, gradients
from lab.gpu.outcome import Outcome
from lab.gpu.small_model import load, on_card, random_flux

COSINE = 0.999
# Where a card's own kernels round the inputs of each linear as well, float64 with such inputs is as far away: rounding
# them in bfloat16 here gave 0.998 at fp8 and 0.989 at 4 bits, the lowest of four losses.
ROUNDED = {"fp8 fast": 0.995, "fp8 scaled": 0.995, "mxfp8": 0.995, "nvfp4": 0.98}
FP8 = torch.float8_e4m3fn
# ComfyUI's algorithm and its options. What a card has no kernel for, ComfyUI unpacks.
QUANTISED = {
    "fp8 scaled": ("float8_e4m3fn", {}),
    "int8 convrot": ("int8_tensorwise", {"per_channel": True, "convrot": True}),
}
NATIVE = ("nvfp4", "mxfp8")  # where the card has kernels for them


def is_quantised(name: str, tensor: Tensor) -> bool:
    """Whether a quantised checkpoint would hold this weight in few bits."""
    return name.endswith(".weight") and tensor.ndim == 2 and "blocks" in name and "modulation" not in name


def quantised(state: dict[str, Tensor], form: str, options: dict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict as ComfyUI's quantised checkpoints hold it, and the same with the weights unpacked again."""
    packed = dict(state)
    plain = dict(state)
    for name, tensor in state.items():
        if is_quantised(name, tensor):
            held = QuantizedTensor.from_float(tensor.float(), QUANT_ALGOS[form]["comfy_tensor_layout"], **options)
            del packed[name]
            packed.update(held.state_dict(name))
            told = json.dumps({"format": form, **options}).encode()
            packed[name.removesuffix("weight") + "comfy_quant"] = torch.tensor(list(told), dtype=torch.uint8)
            plain[name] = held.dequantize()
    return packed, plain


def expected(plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients with these weights in float64."""
    module: nn.Module = random_flux()
    module.load_state_dict({name: tensor.float() for name, tensor in plain.items()})
    with on_card(module, torch.float64, CPU) as model:
        return gradients(model)


def compare_form(outcome: Outcome, name: str, patcher: object, true: dict[str, Tensor], bound: float = COSINE) -> None:
    """Notes the cosine of a MODEL's gradients as it is trained, in bfloat16, with blocks kept and recomputed."""
    for recompute in (False, True):
        with training_session(patcher, torch.bfloat16, recompute) as model:
            compare(outcome, f"{name}{', recomputed' * recompute}", gradients(model), true, bound)


def bound_of(card: Card, name: str) -> float:
    """The lowest cosine that is right: a card without kernels for a format unpacks it and rounds no inputs."""
    if card.device.type != "cuda" or name not in ROUNDED:
        return COSINE
    kernels = {"nvfp4": management.supports_nvfp4_compute, "mxfp8": management.supports_mxfp8_compute}
    has_kernel = kernels.get(name, management.supports_fp8_compute)
    return ROUNDED[name] if has_kernel(card.device) else COSINE


def check(card: Card) -> Outcome:
    """Check 2."""
    outcome = Outcome()
    state = dict(random_flux(torch.bfloat16).state_dict())
    rounded = {name: tensor.to(FP8).float() for name, tensor in state.items()}
    true = expected(rounded)
    compare_form(outcome, "fp8", load(state, dtype=FP8), true)
    fast = load(state, dtype=FP8, fp8_optimizations=True)
    compare_form(outcome, "fp8 fast", fast, true, bound_of(card, "fp8 fast"))
    forms = dict(QUANTISED)
    forms.update({name: (name, {}) for name in NATIVE if name in QUANT_ALGOS and card.device.type == "cuda"})
    for name, (form, options) in forms.items():
        packed, plain = quantised(state, form, options)
        compare_form(outcome, name, load(packed), expected(plain), bound_of(card, name))
    check_gguf(outcome, state)
    return outcome


def check_gguf(outcome: Outcome, state: dict[str, Tensor]) -> None:
    """The same for ComfyUI-GGUF's loader, if it is among the custom nodes."""
    node = gguf_file.gguf_node()
    if node is None:
        outcome.figures["GGUF"] = "ComfyUI-GGUF is not installed"
        return
    plain = gguf_file.written(state, is_quantised)
    compare_form(outcome, "GGUF", gguf_file.loaded(node), expected(plain))
