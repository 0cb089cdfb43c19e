"""The nodes that apply, combine and attack erasers, and the pictures that they show, on every family."""

import dataclasses
from types import SimpleNamespace

import comfy.sample
import comfy.sd
import pytest
import torch

from eraseanything_core.comfy_bridge.previews import small_pictures
from eraseanything_core.comfy_bridge.text_linears import TextLinears
from eraseanything_core.erasers.erase_now import ClosedFormConfig, erase_now
from eraseanything_core.evaluation.weight_attacks import InversionConfig, RelearnConfig
from eraseanything_core.lora.headers import FIELD
from eraseanything_core.lora.key_styles import eraser_tensors
from eraseanything_core.lora.merge import FUSION, GATED, MODES, TRANSPORT
from eraseanything_core.lora.strength import GONE_READER, HEADER_KEY, StrengthCurve
from tests.comfy.columns import new_family, sample
from tests.comfy.families.small import FAMILIES
from tests.comfy.families.test_family_training import random_lora, targets_of
from tests.comfy.families.words import Words
from tests.comfy.training.loras.cases import chosen
from tests.comfy.training.node_runs import execute

# The families whose nodes are held in every mode: two streams, a single one, and a cross-attention.
SOME = ("Flux2", "Chroma", "Lumina2", "QwenImage", "SD3", "SDXL", "WAN21_T2V")
WHOLE_RANGE = {"images": 1, "start_percent": 0.0, "end_percent": 1.0}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A model of two steps of sampling, an eraser of it, and what both give."""
    family = new_family(request.param)
    family.case = dataclasses.replace(family.case, steps=2)
    family.clip = Words(family.case)
    family.plain = sample(family, family.model)
    family.eraser = random_lora(family.model, targets_of(family.name))
    stock, _ = comfy.sd.load_lora_for_models(family.model, None, family.eraser, 1.0, 0.0)
    family.stock = stock
    family.erased = sample(family, stock)
    return family


@pytest.fixture(autouse=True)
def as_before(family):
    """Every test leaves the MODEL as it was, bit for bit."""
    yield
    assert torch.equal(sample(family, family.model), family.plain)


@pytest.fixture
def linked(pack, family, tmp_path, monkeypatch):
    """The eraser as a LORA_MODEL, with the header of the trainer."""
    import folder_paths
    from pack_under_test.eraseanything_core.lora.files import LoraModel

    monkeypatch.setattr(folder_paths, "get_system_user_directory", lambda name: str(tmp_path / "user"))
    cell = family.model.model.latent_format.spacial_downscale_ratio
    height, width = (-(-cells * cell // 16) * 16 for cells in family.case.size[-2:])
    header = {"concept": "star", "irrelevant": '["box"]', "width": str(width), "height": str(height)}
    header |= {"family": family.name, "guidance": "2.0"}
    return LoraModel(family.eraser, {f"{FIELD}{key}": value for key, value in header.items()})


def alike(found, expected, plain, part=2e-2):
    moved = (expected - plain).abs().max()
    assert moved > 1e-4 * plain.abs().max(), "the LoRA changes nothing"
    assert (found - expected).abs().max() < part * moved


def strength(pack, family, linked, **values):
    from pack_under_test.nodes.shared.loras import LINKED

    values = WHOLE_RANGE | {"model": family.model, "file": LINKED, "lora": linked} | values
    return execute(pack["EraseAnything_EraseStrength"], values).args


def in_two_parts(family, first, second):
    """A step of each of two models, as the sampler goes on from one node to the next."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, *family.case.size, generator=generator)
    latents = noise * 0
    with torch.inference_mode():
        for step, model in enumerate((first, second)):
            latents = comfy.sample.sample(
                model, noise * (1 - step), 2, 1.0, "euler", "simple", family.positive, family.positive, latents,
                disable_pbar=True, seed=0, start_step=step, last_step=step + 1, disable_noise=step == 1,
            )  # fmt: skip
    return latents


def test_a_window_of_the_sampling(pack, family, linked):
    """The first half of two steps is the first of them."""
    model = strength(pack, family, linked, strength=1.0, end_percent=0.4)[0]
    alike(sample(family, model), in_two_parts(family, family.stock, family.model), family.plain)


def test_the_dial_of_a_header(pack, family, linked):
    """A curve that was measured before."""
    linked.header[HEADER_KEY] = StrengthCurve((0.0, 0.4, 1.0), (0.0, 0.5, 1.0), GONE_READER).to_json()
    half, _, scale, _ = strength(pack, family, linked, strength=0.5)
    assert scale == pytest.approx(0.4)
    stock, _ = comfy.sd.load_lora_for_models(family.model, None, family.eraser, scale, 0.0)
    alike(sample(family, half), sample(family, stock), family.plain)


@pytest.mark.parametrize("family", ("Flux2", "Chroma", "Lumina2", "QwenImage"), indirect=True)
def test_the_dial_is_measured(pack, family, linked):
    """Of an eraser in closed form, whose concept reads as its neutral word, so that something is there to measure."""
    config = ClosedFormConfig("star", irrelevant=("tree", "house"), neutral="{thing}", sentences=4, kept=4)
    with torch.inference_mode(False), torch.no_grad():
        found = erase_now(config, TextLinears(family.model, family.clip), lambda done: None)
    eraser = type(linked)(eraser_tensors(found.eraser, torch.float32), linked.header | {f"{FIELD}neutral": "{thing}"})
    half, measured, scale, summary = strength(pack, family, eraser, strength=0.5, clip=family.clip)
    assert 0 < scale < 1 and "by the gone score" in summary and HEADER_KEY in measured.header
    stock, _ = comfy.sd.load_lora_for_models(family.model, None, dict(eraser), scale, 0.0)
    assert torch.allclose(sample(family, half), sample(family, stock), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("mode", (*MODES, FUSION, GATED, TRANSPORT))
@pytest.mark.parametrize("family", SOME, indirect=True)
def test_combined(pack, family, linked, mode):
    """The MODEL is that of the stock loader with the output LoRA; a gated one differs by its prompt."""
    other = type(linked)({key: tensor.flip(0) for key, tensor in linked.items()}, dict(linked.header))
    other.header[f"{FIELD}concept"] = "tree"
    values = {"model": family.model, "clip": family.clip, "loras": {"lora0": linked, "lora1": other}} | chosen()
    values |= {"weights": "1, 0.5", "preserve": "", "concepts": "", "prompt": "a photo of a star"}
    values |= {"rank": 0, "energy": 1.0, "density": 0.5, "seed": 0, "mode": mode}
    model, one, _ = execute(pack["EraseAnything_MultiEraseLoRA"], values).args
    stock, _ = comfy.sd.load_lora_for_models(family.model, None, one, 1.0, 0.0)
    if mode == GATED:
        encoded = family.clip.encode_from_tokens_scheduled(family.clip.tokenize("a photo of a star"))
        asked = SimpleNamespace(name=family.name, case=family.case, positive=encoded)
        assert not torch.equal(sample(asked, model), sample(asked, family.model))
    else:
        alike(sample(family, model), sample(family, stock), family.plain)


def attacked(pack, family, linked, node, **values):
    latents = torch.randn(2, *family.case.size, generator=torch.Generator().manual_seed(5))
    values = {"model": family.model, "lora": linked, "clip": family.clip, "latent": {"samples": latents}} | values
    values |= {"prompt": "a photo of a star", "concept": "star"}
    return execute(pack[f"EraseAnything_{node}"], values).args[0]


def test_inversion(pack, family, linked):
    """The states that are found come with all that the text encoder gave; HiDream-O1's gives tokens and no states."""
    config = dataclasses.asdict(InversionConfig(steps=2, batch_size=1))
    if family.name == "HiDreamO1":
        with pytest.raises(ValueError, match="hands over tokens, which say nothing before a model has read them"):
            attacked(pack, family, linked, "InversionAttack", **config)
        return
    (found,) = attacked(pack, family, linked, "InversionAttack", **config)
    ((context, entries),) = family.clip.encode_from_tokens_scheduled(family.clip.tokenize("a photo of a star"))
    assert found[1].keys() == entries.keys() and not torch.equal(found[0], context)
    inverted = SimpleNamespace(name=family.name, case=family.case, positive=[found])
    before = SimpleNamespace(name=family.name, case=family.case, positive=[[context, entries]])
    assert not torch.equal(sample(inverted, family.stock), sample(before, family.stock))


def test_relearning(pack, family, linked):
    values = dataclasses.asdict(RelearnConfig(steps=2, batch_size=1))
    del values["targets"]  # the node has its own
    tensors = attacked(pack, family, linked, "RelearnAttack", mode="ReFlux", **values)
    both, _ = comfy.sd.load_lora_for_models(family.stock, None, tensors, 1.0, 0.0)
    assert not torch.equal(sample(family, both), family.erased)


def test_previews(family):
    latents = torch.randn(2, family.case.size[0], *family.case.size[-2:], generator=torch.Generator().manual_seed(5))
    pictures = small_pictures(family.model, latents)
    assert pictures.shape[0] == 2 and pictures.shape[-1] == 3 and pictures.ndim == 4
    assert pictures.isfinite().all() and 0 <= pictures.min() and pictures.max() <= 1 and pictures.std() > 0
