"""The estimate for any family, held against what was measured for FLUX.1, and asked for on every family."""

import comfy.model_management as management
import pytest
import torch

from eraseanything_core.comfy_bridge.family_memory import count_activations
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.memory import KEPT_PER_BLOCK, RECOMPUTED_BLOCK
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.recipe import train_eraser
from lab.bench.true_size import DEV, true_flux
from tests.comfy.columns import new_family, sample
from tests.comfy.families.small import FAMILIES
from tests.comfy.families.test_family_training import targets_of
from tests.comfy.families.words import Words

SOME = ("Flux2", "Chroma", "Lumina2", "QwenImage", "SD3", "SDXL", "WAN21_T2V")
ROOM = 2**40
RUN = {
    "concept": "red star", "irrelevant": ("tree", "house"), "retain": ("a green box", "two dogs"), "neutral": "{thing}",
    "steps": 2, "sampling_steps": 2, "cached_trajectories": 2, "cached_retain_trajectories": 2, "rsc_weight": 0.0,
}  # fmt: skip


def test_flux_1_keeps_what_was_measured():
    counted = count_activations(true_flux().module, tokens=1, batch=1, itemsize=2)
    blocks = DEV["depth"] + DEV["depth_single_blocks"]
    unit = 2 * DEV["hidden_size"]
    assert counted.kept == pytest.approx(KEPT_PER_BLOCK * blocks * unit, rel=0.06)
    assert counted.recomputed == pytest.approx((blocks + RECOMPUTED_BLOCK) * unit, rel=0.06)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_an_estimate(name):
    patcher = new_family(name).model
    host = ComfyHost(patcher, None)
    small, large = (host.estimate(77, side, side, 1, 0, torch.float32) for side in (256, 1024))
    assert 0 < small.activations < large.activations and small.forward <= large.forward
    batch = host.estimate(77, 256, 256, 4, 0, torch.float32)
    assert batch.activations > 2 * small.activations


@pytest.fixture
def free(monkeypatch):
    """Sets what ComfyUI finds free on what it takes for a card, in bytes; nothing is kept for a forward of its own."""
    monkeypatch.setattr(management, "minimum_inference_memory", management.extra_reserved_memory)
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    monkeypatch.setattr(management, "MIN_WEIGHT_MEMORY_RATIO", 0.0)

    def set_free(size):
        found = lambda _=None, torch_free_too=False: (size, 0) if torch_free_too else size  # noqa: E731
        monkeypatch.setattr(management, "get_free_memory", found)
        management.unload_all_models()

    return set_free


@pytest.mark.parametrize("name", SOME)
def test_auto_recomputes_and_leaves_weights_in_main_memory(name, free):
    """Where half of the weights find no room beside the graph; the LoRA is that of a run with room."""
    family = new_family(name)
    family.model.model.memory_usage_factor = 0.0
    plain = sample(family, family.model)
    cell = family.model.model.latent_format.spacial_downscale_ratio
    height, width = (-(-cells * cell // 16) * 16 for cells in family.case.size[-2:])
    config = EraseConfig(**RUN, width=width, height=height, targets=targets_of(name))
    host = ComfyHost(family.model, Words(family.case))
    free(ROOM)
    whole = train_eraser(host, config, auto=True)
    free(family.model.model_size() // 2)
    tight = train_eraser(host, config, auto=True)
    assert "kept for backward" in whole.notes[0] and not whole.config.gradient_checkpointing
    assert tight.config.gradient_checkpointing and "stay in main memory" in tight.notes[0]
    assert all(torch.allclose(whole.lora[key], tight.lora[key], atol=1e-5) for key in whole.lora)
    free(ROOM)
    assert torch.equal(sample(family, family.model), plain), "the caller's MODEL has changed"
