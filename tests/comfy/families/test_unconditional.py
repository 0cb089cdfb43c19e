"""What ESD-u trains on every family: nothing of an attention that reads text, and the stock loader takes it."""

import comfy.sd
import pytest
import torch

from eraseanything_core.comfy_bridge.families import class_name
from eraseanything_core.comfy_bridge.families.linears import TRAINED
from eraseanything_core.comfy_bridge.families.slices import linears_at, role_slices
from eraseanything_core.comfy_bridge.families.unconditional import UNCONDITIONAL
from eraseanything_core.comfy_bridge.training_session import training_session
from tests.comfy.columns import new_family, sample
from tests.comfy.families.small import FAMILIES
from tests.comfy.families.test_family_training import adapted_sample

ROLE = "unconditional"
WITHOUT = {"cascade.stage_c.StageC"}
# A fused MLP, a gated one, one in a list; a cross-attention in a U-Net and in a transformer.
KINDS = ("HunyuanVideo", "Lumina2", "QwenImage", "SD15", "WAN21_T2V")


def test_every_class_has_its_linears_or_is_known_to_have_none():
    assert set(TRAINED) == set(UNCONDITIONAL) | WITHOUT


@pytest.mark.parametrize("name", KINDS)
def test_rows_that_read_text_in_an_attention_are_not_among_them(name):
    """Every entry is found in the model, and no slice shares rows with one of the other roles."""
    base = new_family(name).model.model
    module = base.diffusion_model
    modules = dict(module.named_modules())
    taken = {}
    for part in role_slices(base, module, "all"):
        taken.setdefault(part.module, set()).update(range(part.start, part.start + part.rows))
    chosen = role_slices(base, module, ROLE)
    for part in chosen:
        own = set(range(part.start, part.start + part.rows))
        assert not own & taken.get(part.module, set()), part
        assert part.start + part.rows == modules[part.module].out_features, "up to the last row of its linear"
    assert chosen


@pytest.mark.parametrize("name", KINDS)
def test_the_stock_loader_gives_what_the_adapters_give(name):
    family = new_family(name)
    with training_session(family.model, torch.float32) as model:
        lora = model.attach(ROLE, 2, torch.Generator().manual_seed(0))
        for up in lora.up:
            up.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        tensors = lora.tensors(torch.float32)
    stock, _ = comfy.sd.load_lora_for_models(family.model, None, tensors, 1.0, 0.0)
    assert sum(map(len, stock.patches.values())) == len(tensors) // 2, "the stock loader does not take every key"
    plain, expected = sample(family, family.model), sample(family, stock)
    moved = (expected - plain).abs().max()
    assert moved > 1e-4 * plain.abs().max(), "the LoRA changes nothing"
    assert (adapted_sample(family, family.model, tensors) - expected).abs().max() < 2e-2 * moved


def test_a_family_without_such_linears_is_refused_by_name():
    base = new_family("Stable_Cascade_C").model.model
    assert class_name(base.diffusion_model) in WITHOUT
    with pytest.raises(ValueError, match="a MODEL of Stable_Cascade_C has no linears for 'unconditional': take one of"):
        role_slices(base, base.diffusion_model, ROLE)


def test_every_entry_names_linears():
    """A path with a mistake would name nothing, and nobody would see it; some small models lack a kind of block."""
    missing = {(name, entry.path) for name, entries in UNCONDITIONAL.items() for entry in entries}
    for family in FAMILIES:
        module = new_family(family).model.model.diffusion_model
        name = class_name(module)
        for entry in UNCONDITIONAL.get(name, ()):
            found = linears_at(module, entry.path)
            assert all(hasattr(linear, "in_features") for _, linear in found), entry.path
            if found:
                missing.discard((name, entry.path))
    assert not missing
