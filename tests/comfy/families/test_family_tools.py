"""Combining and attacking erasers on a cross-attention, on two streams and on a single one."""

import comfy.sd
import pytest
import torch

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.evaluation.attack_runs import run_inversion, run_relearning
from eraseanything_core.evaluation.weight_attacks import ConceptExamples, InversionConfig, RelearnConfig
from tests.comfy.columns import new_family, sample
from tests.comfy.families.words import Words
from tests.comfy.training.loras.cases import chosen
from tests.comfy.training.node_runs import execute

SOME = ("SDXL", "QwenImage", "Lumina2")
CONCEPTS = ("star", "tree")


@pytest.fixture(params=SOME)
def family(request):
    family = new_family(request.param)
    family.clip = Words(family.case)
    return family


@pytest.fixture
def erasers(family):
    """Two erasers with the header of the trainer, as linked LORA_MODELs."""
    loras = {}
    with training_session(family.model, torch.float32) as model:
        for i, concept in enumerate(CONCEPTS):
            made = model.attach("text k,v", 2, torch.Generator().manual_seed(i))
            for up in made.up:
                up.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(10 + i))
            loras[concept] = made.tensors(torch.float32)
    return loras


@pytest.fixture
def combined(pack, family, erasers, tmp_path, monkeypatch):
    """Runs Multi Erase LoRA on both erasers; returns the MODEL and the LORA_MODEL."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_system_user_directory", lambda name: str(tmp_path / "user"))
    from pack_under_test.eraseanything_core.lora.files import LoraModel

    linked = {}
    for i, (concept, tensors) in enumerate(erasers.items()):
        header = {"concept": concept, "irrelevant": '["box"]', "width": "96", "height": "96", "family": family.name}
        linked[f"lora{i}"] = LoraModel(tensors, {f"eraseanything.{key}": value for key, value in header.items()})
    values = {"model": family.model, "clip": family.clip, "loras": linked, "weights": "1, 0.5", "preserve": ""}
    values |= {"concepts": "", "rank": 0, "energy": 1.0, "density": 0.5, "seed": 0} | chosen()
    return lambda mode: execute(pack["EraseAnything_MultiEraseLoRA"], values | {"mode": mode}).args


def chained(family, erasers):
    model = family.model
    for tensors, weight in zip(erasers.values(), (1.0, 0.5), strict=True):
        model, _ = comfy.sd.load_lora_for_models(model, None, tensors, weight, 0.0)
    return sample(family, model)


@pytest.mark.parametrize("mode", ("sum", "concatenate"))
def test_the_sum_is_that_of_chained_stock_loaders(family, erasers, combined, mode):
    plain, expected = sample(family, family.model), chained(family, erasers)
    model, one, _ = combined(mode)
    moved = (expected - plain).abs().max()
    assert moved > 1e-3 * plain.abs().max()
    assert (sample(family, model) - expected).abs().max() < 2e-2 * moved
    stock, _ = comfy.sd.load_lora_for_models(family.model, None, one, 1.0, 0.0)
    assert (sample(family, stock) - expected).abs().max() < 2e-2 * moved
    assert one.header["modelspec.architecture"] == f"{family.name}/lora"
    assert torch.equal(sample(family, family.model), plain)


@pytest.mark.parametrize("mode", ("closed-form fusion", "prompt-gated"))
def test_modes_that_read_text_states(family, combined, mode):
    plain = sample(family, family.model)
    model = combined(mode)[0]
    family.positive = family.clip.encode_from_tokens_scheduled(family.clip.tokenize("a photo of a star"))
    own_plain = sample(family, family.model)
    changed = sample(family, model)
    assert changed.isfinite().all() and not torch.equal(changed, own_plain)
    family.positive = new_family(family.name).positive
    assert torch.equal(sample(family, family.model), plain)


@pytest.mark.parametrize("attack", ("inversion", "relearning"))
def test_attacks_run(family, erasers, attack):
    plain = sample(family, family.model)
    latents = torch.randn(2, *family.case.size, generator=torch.Generator().manual_seed(5))
    examples = ConceptExamples(latents, "a photo of a star", "star")
    host = ComfyHost(family.model, family.clip)
    if attack == "inversion":
        config = InversionConfig(steps=3, batch_size=2)
        found, losses = run_inversion(host, erasers["star"], examples, config)
        moved = (found.context - host.text_encoder().encode(examples.prompt).context).abs().amax(-1)[0]
        assert 0 < int((moved > 0).sum()) < 6, "the states of the word alone are searched"
    else:
        config = RelearnConfig(steps=3, batch_size=2, targets="text k,v", attn_weight=0.1, retain_weight=1.0)
        tensors, losses = run_relearning(host, erasers["star"], examples, config)
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert len(losses) == 3 and all(loss > 0 for loss in losses)
    assert torch.equal(sample(family, family.model), plain), "the caller's MODEL has changed"
