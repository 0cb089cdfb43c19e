"""DynamicVRAM: sessions leave nothing behind, and a LoRA of a window leaves the resident weights alone."""

import gc
import hashlib
import weakref
from pathlib import Path
from typing import Any

import comfy.memory_management
import comfy.model_management as management
import comfy.model_patcher
import comfy.sample
import comfy.sd
import comfy_aimdo.control
import comfy_aimdo.host_buffer
import comfy_aimdo.model_vbar as vbar
import torch
from safetensors.torch import save_file
from torch import Tensor

from eraseanything_core.comfy_bridge.patch import with_lora, with_lora_between
from eraseanything_core.lora.factors import Eraser, add_to_weight
from eraseanything_core.lora.key_styles import read_eraser
from eraseanything_core.lora.keys import module_slice
from eraseanything_core.protocols import GIB
from lab.bench.true_size import DEV
from lab.gpu.card import Card
from lab.gpu.facts import STREAMS_FROM
from lab.gpu.hosts import LabHost, RandomText
from lab.gpu.outcome import Outcome, Skipped
from lab.gpu.small_model import SHAPE, inputs, random_flux
from lab.gpu.true_size import BF16, CASES, FP8, TINY_CASES, Pairs, config_of, filled_state
from lab.provenance import CACHE

LEFT = 0.3  # GiB that sessions may leave on the card
SESSIONS = 3
FOLDER = CACHE / "gpu"
# Blocks of FLUX.1's width: in fp8 one copy is 0.6 GiB, more than may be left.
WIDE = {**DEV, "depth": 1, "depth_single_blocks": 2}


def turn_on(card: Card) -> None:
    """DynamicVRAM, as ComfyUI's start turns it on; a process cannot turn it off again.

    Raises:
        Skipped: this card or PyTorch has none.
        RuntimeError: the process has not loaded the library in time; see `processes.WITH_LIBRARY`.
    """
    if card.device.type != "cuda" or torch.version.hip:
        raise Skipped("DynamicVRAM needs an Nvidia card.")
    if management.torch_version_numeric < STREAMS_FROM:
        raise Skipped("ComfyUI turns DynamicVRAM on from PyTorch 2.8 on.")
    if comfy_aimdo.control.lib is None:
        raise Skipped("DynamicVRAM does not start here: comfy-aimdo's library does not load.")
    if comfy_aimdo.host_buffer.lib is None:
        raise RuntimeError("comfy-aimdo's library was loaded after ComfyUI was imported: run the check by the command")
    if not comfy_aimdo.control.init_devices([(card.device.index or 0, 0)]):
        raise Skipped("DynamicVRAM does not start here: comfy-aimdo found no device.")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


def load(name: str, state: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """A MODEL that can be loaded again from its file, as DynamicVRAM needs."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path: Path = FOLDER / f"{name}.safetensors"
    save_file(state, path)
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype})


def small_model(card: Card, lora: Eraser | None = None) -> Any:
    """A small MODEL in bfloat16, or on a CPU, which computes in float32, in that; with a LoRA in its weights."""
    dtype = torch.float32 if card.tiny else BF16
    state = dict(random_flux(dtype).state_dict())
    if lora is not None:
        add_lora(card, state, lora)
    return load("small" if lora is None else "merged", state, dtype)


def add_lora(card: Card, state: dict[str, Tensor], lora: Eraser) -> None:
    """Adds a LoRA to weights, on the card: a sum in float32 there may round otherwise than here."""
    for key, factors in lora.items():
        module, start = module_slice(key, factors.down.shape[1])
        weight = state[f"{module}.weight"].to(card.device, copy=True)
        add_to_weight(weight, start, factors)
        state[f"{module}.weight"] = weight.cpu()


def eraser() -> dict[str, Tensor]:
    """A LoRA on one linear, large enough to see, under its file keys."""
    generator = torch.Generator().manual_seed(4)
    key = "transformer.transformer_blocks.0.attn.add_k_proj"
    width = SHAPE["hidden_size"]
    return {
        f"{key}.lora_A.weight": torch.randn(4, width, generator=generator) / 16,
        f"{key}.lora_B.weight": torch.randn(width, 4, generator=generator) / 16,
    }


def sampled(model: Any) -> Tensor:
    """Latents of three steps from one noise."""
    given = inputs()
    condition = [[given.context[:1], {"pooled_output": given.pooled[:1], "guidance": 2.0}]]
    latent = torch.zeros(1, 16, 12, 12)
    noise = comfy.sample.prepare_noise(latent, 7)
    with torch.inference_mode():
        latents: Tensor = comfy.sample.sample(
            model, noise, 3, 1.0, "euler", "simple", condition, condition, latent, disable_pbar=True, seed=7
        )
    return latents.float().cpu()


def checksums(model: Any) -> dict[str, str]:
    """Of each weight: those of the state dict, and under DynamicVRAM also those that are resident on the card."""
    module = model.model.diffusion_model
    sums = {name: checksum(tensor) for name, tensor in module.state_dict().items()}
    for name, layer in module.named_modules():
        for number, tensor in enumerate(resident_tensors(layer)):
            sums[f"{name} resident {number}"] = checksum(tensor)
    return sums


def checksum(tensor: Tensor) -> str:
    """Of the bytes of a tensor, wherever it lies."""
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def resident_tensors(layer: torch.nn.Module) -> list[Tensor]:
    """Copies of what DynamicVRAM holds of a layer on the card; nothing where it holds none."""
    place = getattr(layer, "_v", None)
    if place is None or getattr(layer, "_v_signature", None) is None:
        return []
    # What was evicted may not be touched. This holds it on the card, and tells whether it was away in between.
    signature = vbar.vbar_fault(place)
    try:
        if not vbar.vbar_signature_compare(signature, layer._v_signature):
            return []
        return [tensor.detach().cpu().clone() for tensor in (layer._v_weight, layer._v_bias) if tensor is not None]
    finally:
        if signature is not None:
            vbar.vbar_unpin(place)


def note_weights(outcome: Outcome, model: Any, before: dict[str, str]) -> None:
    """Notes whether the weights are as before, those that lay on the card then and now included."""
    now = checksums(model)
    common = before.keys() & now.keys()
    resident = sum(" resident " in name for name in common)
    outcome.figures["resident weights that were compared"] = resident
    outcome.must("the weights are as before", all(before[name] == now[name] for name in common))
    if comfy.memory_management.aimdo_enabled:
        outcome.must("weights were resident", resident > 0)


def session_of_pairs(host: LabHost, case: Any, pairs: int) -> tuple[set[torch.dtype], list[Any]]:
    """Runs pairs in a session of their own.

    Returns:
        The types of the linears' weights, and references that live as long as these weights do.
    """
    with host.session(BF16) as model:
        weights = [layer.weight for layer in model.module.modules() if isinstance(layer, torch.nn.Linear)]
        run = Pairs(model, host, config_of(case))
        while run.number < pairs:
            run.next()
        return {weight.dtype for weight in weights}, [weakref.ref(weight) for weight in weights]


def check_sessions(card: Card, patcher: Any = None) -> Outcome:
    """Check 9: three sessions and two pairs more, without the garbage collector; the types are those asked for.

    Args:
        card: the card.
        patcher: a MODEL of bf16 of which fp8 was asked; None loads one under DynamicVRAM.
    """
    if patcher is None:
        turn_on(card)
        patcher = load("wide", filled_state(WIDE, BF16), FP8)
    outcome = Outcome()
    outcome.must("the MODEL is streamed", patcher.is_dynamic())
    case = (TINY_CASES if card.tiny else CASES)[0]
    params = patcher.model.diffusion_model.params
    host = LabHost(patcher, RandomText(case.text, (params.context_in_dim, params.vec_in_dim)))
    card.collect()
    before = card.used()
    types: set[torch.dtype] = set()
    weights: list[Any] = []
    gc.disable()
    try:
        for pairs in (*[1] * SESSIONS, 2):
            found, references = session_of_pairs(host, case, pairs)
            types |= found
            weights += references
        outcome.must("no weight of a session outlives it", all(weight() is None for weight in weights))
        after = card.used()
        left = None if before is None or after is None else (after - before) / GIB
        outcome.at_most("GiB that are left on the card", left, LEFT)
    finally:
        gc.enable()
    outcome.must("the weights have the type that was asked for", types == {FP8})
    return outcome


def check_window(card: Card, patcher: Any = None) -> Outcome:
    """Check 10: a LoRA of a window twice, and a window that is always open.

    Args:
        card: the card.
        patcher: a `small_model`; None loads it under DynamicVRAM.
    """
    if patcher is None:
        turn_on(card)
        patcher = small_model(card)
    outcome = Outcome()
    lora = read_eraser(eraser(), {}, "the LoRA")
    plain = sampled(patcher)
    before = checksums(patcher)
    half = with_lora_between(patcher, lora, 1.0, 1.0, 0.7)
    first = sampled(half)
    second = sampled(half)
    outcome.must("the LoRA changes the latents", not torch.equal(plain, first))
    outcome.must("twice the same bits", torch.equal(first, second))
    note_weights(outcome, patcher, before)
    outcome.must("without it the latents are as before", torch.equal(sampled(patcher), plain))
    whole = sampled(with_lora_between(patcher, lora, 1.0, 1.0, 0.0))
    merged = sampled(small_model(card, lora))
    outcome.must("a window over all steps has the bits of the patched weights", torch.equal(whole, merged))
    # ComfyUI's own patch may add in bfloat16.
    patched = sampled(with_lora(patcher, lora, 1.0))
    outcome.at_most("from ComfyUI's patch, over what it changes", rms(whole - patched) / rms(patched - plain), 0.1)
    return outcome


def rms(difference: Tensor) -> float:
    """The root mean square."""
    return float(difference.square().mean().sqrt())
