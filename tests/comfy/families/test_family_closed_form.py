"""Erase Now on every family: its linears read the text alone, and the stock loader takes its LoRA."""

import comfy.sd
import pytest
import torch

from eraseanything_core.comfy_bridge.text_linears import TextLinears
from eraseanything_core.erasers.erase_now import ClosedFormConfig, erase_now
from eraseanything_core.lora.key_styles import eraser_tensors
from tests.comfy.columns import new_family, sample
from tests.comfy.families.small import FAMILIES
from tests.comfy.families.words import Words

REFUSED = {  # families that have no place for a closed form, or none that is known, and what the node says
    "HiDreamO1": "every linear reads the image",
}
UNKNOWN = {"HiDream": "which word each is of is not known"}  # it is given two encodings
CONFIG = ClosedFormConfig(
    "red star", synonyms=("crimson star",), irrelevant=("tree", "house"), neutral="{thing}", sentences=4, kept=4
)


def reader_of(family):
    return TextLinears(family.model, Words(family.case))


@pytest.mark.parametrize("name", FAMILIES)
def test_erase_now(name):
    family = new_family(name)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            reader_of(family)
        return
    reader = reader_of(family)
    if name in UNKNOWN:
        with pytest.raises(ValueError, match=UNKNOWN[name]), torch.no_grad():
            erase_now(CONFIG, reader, lambda done: None)
        return
    with torch.no_grad():
        result = erase_now(CONFIG, reader, lambda done: None)
    print(name, len(reader.keys), len(reader.pooled), result.text().splitlines()[1])
    for key, linear in result.linears.items():
        assert linear.effect.left < 0.9, f"{key} reads as before"
        assert linear.truncation == 0
    tensors = eraser_tensors(result.eraser, torch.float32)
    stock, _ = comfy.sd.load_lora_for_models(family.model, None, tensors, 1.0, 0.0)
    assert sum(len(patches) for patches in stock.patches.values()) == len(result.eraser) == len(tensors) // 2
    plain = sample(family, family.model)
    assert not torch.equal(sample(family, stock), plain), "the LoRA changes nothing"
