"""AttentionErase where a model attends to pictures or sounds of reference beside the text."""

from dataclasses import replace

import pytest
import torch
from comfy.ldm.minimax.model import PackedLayout

from tests.comfy.case import TOKENS, random
from tests.comfy.columns import Explicit, close, erased, new_family, sample
from tests.comfy.tiny import new_clip


def test_a_reference_image_of_as_many_tokens_as_the_text_is_refused(core):
    """Wan attends to both in one module."""
    family = new_family("WAN21_I2V")
    family.context = family.positive[0][0] = torch.randn(1, 7, 32)
    with pytest.raises(ValueError, match="both have 7 tokens"):
        sample(family, erased(core, family.model, family))


@pytest.mark.parametrize(
    "name, changed",
    [("Omnigen2", {}), ("Boogu", {}), ("QwenImage", {}), ("Flux2", {"keys": 564}), ("JoyImage", {"text": (52,)})],
)
def test_reference_images_are_counted(core, name, changed):
    """A further image of four tokens."""
    family = new_family(name)
    sides = (4, 4) if name != "Flux2" else (2, 2)
    family.positive[0][1]["reference_latents"] = [torch.randn(1, *family.case.size[:-2], *sides)]
    reference = Explicit(replace(family.case, **{"keys": 73} | changed), strength=0.0)
    expected = reference.sample(family, family.model)
    assert reference.changed == family.case.attentions
    close(sample(family, erased(core, family.model, family)), expected, sample(family, family.model))


def test_the_reference_image_of_hidream_o1_is_counted(core):
    """It is read as 12 x 12 tokens in the text, between two marks, and as 8 x 8 beside the image."""
    family = new_family("HiDreamO1")
    family.positive[0][1]["reference_latents"] = [torch.rand(1, 256, 256, 3)]
    case = replace(family.case, keys=TOKENS + 146 + 48 + 64, text=(146,))
    reference = Explicit(case, strength=0.0)
    expected = reference.sample(family, family.model)
    assert reference.changed == case.attentions * case.steps
    close(sample(family, erased(core, family.model, family)), expected, sample(family, family.model))


REFERENCES = {
    "keyframes": {
        "minimax_keyframes": [
            {"resolved_frame_index": 0, "latent": random(1, 24, 1, 12, 16)},
            {"resolved_frame_index": 4, "latent": random(1, 24, 1, 12, 16)},
        ],
        "minimax_frame_count": 5,
    },
    "references": {
        "minimax_refs": [
            {"kind": "image", "latent_h": 4, "latent_w": 6, "latent": random(1, 24, 1, 4, 6)},
            {
                "kind": "video_audio", "latent_t": 2, "latent_h": 4, "latent_w": 4, "ref_audio_t": 3,
                "latent": random(1, 24, 2, 4, 4), "audio_latent": random(1, 32, 2, 3),
            },
            {"kind": "audio", "ref_audio_t": 4, "audio_latent": random(1, 32, 2, 4)},
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind, count", [("keyframes", 2 * 48), ("references", 6 + 6 + 8 + 8)])
def test_what_minimax_packs_with_the_text_stands_behind_it(core, kind, count):
    """As ComfyUI's own table of its sequence says; the video has an odd number of lines, which is rounded up."""
    family = new_family("MiniMaxH3")
    case = family.case = replace(family.case, size=(24, 1, 11, 16), keys=family.case.keys + count)
    entries = REFERENCES[kind]
    family.positive[0][1].update(entries)
    table = PackedLayout(TOKENS, 1, 12, 16, 5, entries.get("minimax_keyframes"), entries.get("minimax_refs"), 5)
    assert table.segments[0] == (0, TOKENS, "text") and table.seq_len == case.keys
    for values in ({}, {"image_only": True}):
        reference = Explicit(case, strength=0.0, **values)
        expected = reference.sample(family, family.model)
        assert reference.changed == case.attentions
        close(sample(family, erased(core, family.model, family, **values)), expected, sample(family, family.model))


def test_a_prompt_that_minimax_encodes_with_its_references_is_not_taken_for_the_prompt(core, pack):
    """Its text encoder reads them before the words, whose encodings are then others."""
    family = new_family("MiniMaxH3")
    clip = new_clip("MiniMaxH3")
    node = pack["EraseAnything_AttentionErase"].PREPARE_CLASS_CLONE(None)
    inputs = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    inputs |= {"model": family.model, "clip": clip, "prompt": "a red star", "concept": "star"}
    with torch.inference_mode():
        changed = node.execute(**inputs).args[0]
        alone, beside = (
            clip.encode_from_tokens_scheduled(clip.tokenize("a red star", images=[], minimax_ref_items=items))
            for items in ([], [{"type": "audio"}])
        )
    family.positive = alone
    assert not torch.equal(sample(family, changed), sample(family, family.model))
    family.positive = beside
    with pytest.raises(ValueError, match="the sampled prompt is not the one"):
        sample(family, changed)
