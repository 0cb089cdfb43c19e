"""Is It Gone? on a cross-attention, two streams and a single one: the original model reads another one's pictures."""

import pytest

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.gone_check import Erased, check_gone
from tests.comfy.columns import new_family
from tests.comfy.families.test_family_training import random_lora
from tests.comfy.families.words import Words


@pytest.mark.parametrize("name", ("SDXL", "QwenImage"))
def test_another_model_and_a_lora_are_looked_at(name):
    family = new_family(name)
    words = Words(family.case)
    cell = family.model.model.latent_format.spacial_downscale_ratio
    height, width = (-(-cells * cell // 16) * 16 for cells in family.case.size[-2:])
    config = EraseConfig(
        concept="red star",
        irrelevant=("tree", "house", "dog"),
        width=width,
        height=height,
        look_pictures=3,
        look_steps=2,
        monitor_every=1,
    )
    host = ComfyHost(family.model, words)
    told = []
    same = check_gone(host, Erased(ComfyHost(new_family(name).model, words)), config, told.append)
    assert same.readable > 0 and same.shown == same.readable and same.drift < 1e-3 and not same.gone
    assert told[0] == "looking at 5 pictures: 120 forwards of the model"
    erased = check_gone(host, Erased(host, random_lora(family.model)), config, told.append)
    assert erased.drift > 10 * same.drift
