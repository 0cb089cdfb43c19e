"""Attention Probe and Attention Maps on other families: the columns against the full softmax, and the nodes."""

import pytest
import torch
import torch.nn.functional as F

from eraseanything_core.attention.blocks import Blocks
from eraseanything_core.attention.located_prompt import LocatedPrompt
from eraseanything_core.comfy_bridge.families import layout
from eraseanything_core.comfy_bridge.family_probe import FamilyProbeHook
from eraseanything_core.comfy_bridge.sampler_hooks import with_hook
from tests.comfy.case import PLACES, TOKENS
from tests.comfy.columns import new_family, sample
from tests.comfy.families.test_family_columns import Reader
from tests.comfy.families.words import Words
from tests.comfy.training.node_runs import execute

SOME = ("Lumina2", "QwenImage", "Flux2", "Chroma", "SD3", "SDXL", "WAN21_T2V")


@pytest.fixture(params=SOME)
def family(request):
    return new_family(request.param)


def probe(family):
    """A hook that looks for three made-up tokens, and the layout."""
    where = layout(family.model)
    with torch.inference_mode():
        known = tuple(where.texts.of_conditioning(family.model, *entry) for entry in family.positive)
    prompt = LocatedPrompt([""] * TOKENS, {"star": list(PLACES)}, (), known)
    cell = family.model.model.latent_format.spacial_downscale_ratio
    return FamilyProbeHook(prompt, (1e9, 0.0), Blocks("all"), (), where, cell)


def test_maps_are_those_of_the_full_softmax(family):
    hook, reader = probe(family), Reader(family.case)
    latents = sample(family, with_hook(reader.on(family.model), hook))
    recording = hook.recording(latents)
    rows, columns = recording.grid
    maps = recording.grids("block")
    assert len(maps) == len(reader.seen) == family.case.attentions
    for found, weights in zip(maps.values(), reader.seen, strict=True):
        side = int((rows * columns / weights.shape[2]) ** 0.5)
        coarse = weights.mean(1)[..., 0].unflatten(-1, (rows // side, columns // side))[:, None]
        expected = F.interpolate(coarse, (rows, columns), mode="nearest")
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6) and found.std() > 0


def test_the_probe_changes_nothing(family):
    plain = sample(family, family.model)
    hook = probe(family)
    assert torch.equal(sample(family, with_hook(family.model, hook)), plain)
    assert hook.recording(plain).shares == {}


def test_nodes_show_a_word(pack, family):
    clip = Words(family.case)
    values = {"model": family.model, "clip": clip, "prompt": "a photo of a star", "concept": "star"}
    values |= {"blocks": "all", "start": 0.0, "end": 1.0, "fuzzy": False, "heads": "all"}
    probed, conditioning, attention, tokens = execute(pack["EraseAnything_AttentionProbe"], values).args
    family.positive = conditioning
    samples = sample(family, probed)
    shown = {"attention": attention, "samples": {"samples": samples}, "split": "block", "threshold": 0.0}
    maps, masks, _, table = execute(pack["EraseAnything_AttentionMaps"], shown).args
    cell = family.model.model.latent_format.spacial_downscale_ratio
    assert masks.shape == (2, *(cell * cells for cells in family.case.size[-2:]))
    assert "star" in tokens and "* " in table and maps.isfinite().all() and masks.max() == 1
