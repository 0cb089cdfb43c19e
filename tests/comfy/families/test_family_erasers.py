"""Every method that a user can choose, on two families by ComfyUI's own road."""

import math

import pytest
import torch

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.erasers import registry
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.recipe import train_eraser
from tests.comfy.columns import new_family, sample
from tests.comfy.families.words import Words

BASE = {
    "concept": "red star",
    "irrelevant": ("tree", "house"),
    "retain": ("a green box", "two dogs"),
    "templates": ("a photo of {} at night", "{} on a table"),
    "neutral": "{thing}",
    "attn_weight": 0.0,
    "rsc_weight": 0.0,
    "steps": 3,
    "sampling_steps": 3,
    "alternate": False,
    "refresh_every": 2,
}
SMALL = {"cached_trajectories": 2, "cached_retain_trajectories": 2, "batch_size": 2, "rank": 2, "meta_weight": 0.1}


@pytest.mark.parametrize("method", registry.METHODS)
@pytest.mark.parametrize("name", ("Lumina2", "QwenImage"))
def test_every_method_trains_on_other_families(name, method):
    family = new_family(name)
    plain = sample(family, family.model)
    cell = family.model.model.latent_format.spacial_downscale_ratio
    height, width = (-(-cells * cell // 16) * 16 for cells in family.case.size[-2:])
    config = EraseConfig(**BASE | registry.settings_of(method) | SMALL | {"width": width, "height": height})
    host = ComfyHost(family.model, Words(family.case))
    result = train_eraser(host, config, method=registry.method_of(config))
    assert all(len(values) == 3 and all(map(math.isfinite, values)) for values in result.losses.values())
    assert "meta" in result.losses and result.losses["loss"][0] != 0
    ups = [tensor for key, tensor in result.lora.items() if "lora_B" in key]
    assert ups and any(tensor.any() for tensor in ups), "nothing was trained"
    assert torch.equal(sample(family, family.model), plain), "the caller's MODEL has changed"
