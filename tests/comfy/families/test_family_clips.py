"""ComfyUI's own text encoders, small and random, in the trainer and in the search for a prompt; others are refused."""

import re
from functools import cache
from types import SimpleNamespace

import comfy.supported_models
import nodes
import pytest
import torch

from eraseanything_core.comfy_bridge.families.encoders import LOADED_AS, check_encoder, wanted_tokenizers
from eraseanything_core.comfy_bridge.host import ComfyHost
from tests.comfy.families.small import FAMILIES
from tests.comfy.layouts import CASES
from tests.comfy.tiny import new_clip, new_model
from tests.comfy.training.node_runs import execute, losses_of

# By family: its text encoder where it goes by another name, and what of the model follows the small encoder's width.
ENCODED = {
    "Boogu": ("Boogu", {"instruction_feat_dim": 16}),
    "Chroma": ("PixArtSigma", {"context_in_dim": 32}),
    "Flux2": ("Flux2", {"context_in_dim": 48}),
    "FluxSchnell": ("Ovis", {}),
    "HiDream": ("HiDream", {"caption_channels": [32, 16]}),
    "HiDreamO1": ("HiDreamO1", {}),
    "HunyuanVideo": ("HunyuanVideo", {"context_in_dim": 16}),
    "HunyuanVideo15": ("HunyuanVideo15", {"context_in_dim": 16}),
    "Kandinsky5": ("Kandinsky5", {"in_text_dim": 16, "in_text_dim2": 16}),
    "Krea2": ("Krea2", {"txtlayers": 12}),
    "LTXV": ("LTXV", {"caption_channels": 32}),
    "LongCatImage": ("LongCatImage", {}),
    "Lumina2": ("Lumina2", {"cap_feat_dim": 16}),
    "Omnigen2": ("Omnigen2", {"text_feat_dim": 16}),
    "PixArtSigma": ("PixArtSigma", {"caption_channels": 32}),
    "PixelDiTT2I": ("PixelDiTT2I", {"txt_embed_dim": 16}),
    "QwenImage": ("QwenImage", {"joint_attention_dim": 16}),
    "SD15": ("SD15", {}),
    "SD3": ("SD3", {}),
    "SDXL": ("SDXL", {}),
    "WAN21_T2V": ("WAN21_T2V", {"text_dim": 32}),
}
CLIPS = sorted({clip for clip, _ in ENCODED.values()})


@cache
def clip_of(name):
    clip = new_clip(name, t5_width=32)
    if name == "SD3":
        # Its two CLIPs alone, as many load it: it takes T5 in 4,096 features, in which there is no small one.
        clip.cond_stage_model.t5xxl = None
    return clip


def of_config(family):
    """A MODEL as far as its configuration goes."""
    config = getattr(comfy.supported_models, family)(dict(CASES[family].config))
    return SimpleNamespace(model=SimpleNamespace(model_config=config))


@pytest.mark.parametrize("name", ENCODED)
def test_the_trainer_takes_the_text_encoder_of_the_family(trainer, name):
    clip, sizes = ENCODED[name]
    output = trainer(name, new_model(name, **sizes), clip=clip_of(clip))
    losses = losses_of()
    # The learning rates rise from 0, so the first pair has a student that is the teacher.
    assert all(losses[loss][1] > 0 for loss in ("esd", "attn", "retain")), losses
    assert all(tensor.isfinite().all() for tensor in output.args[1].values())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_text_encoder_of_another_family_is_refused_by_name(name):
    model = of_config(name)
    wanted = wanted_tokenizers(model)
    assert wanted and wanted[0] in LOADED_AS
    own = {clip for clip in CLIPS if module_of(clip) in wanted}
    assert name not in ENCODED or ENCODED[name][0] in own
    for clip in CLIPS:
        if clip in own:
            check_encoder(clip_of(clip), model)
            continue
        with pytest.raises(ValueError) as caught:
            check_encoder(clip_of(clip), model)
        told = str(caught.value)
        assert told.startswith(f"this CLIP is {LOADED_AS[module_of(clip)]}, and a MODEL of {name} takes ")
        assert LOADED_AS[wanted[0]] in told


def module_of(clip):
    return type(clip_of(clip).tokenizer).__module__.rpartition(".")[2]


def test_the_trainer_refuses_before_it_trains(trainer):
    """Qwen-Image and LongCat read the same states behind other templates: the width does not tell them apart."""
    with pytest.raises(ValueError, match="type longcat_image, and a MODEL of QwenImage takes .* type qwen_image"):
        trainer("QwenImage", new_model("QwenImage", joint_attention_dim=16), clip=clip_of("LongCatImage"))


def test_a_width_that_the_model_does_not_take_is_refused(trainer):
    with pytest.raises(ValueError, match="16 features a token and the MODEL takes 32: connect the text"):
        trainer("QwenImage", new_model("QwenImage"), clip=clip_of("QwenImage"))


def test_the_types_that_are_named_are_those_of_the_loaders():
    known = set()
    for loader in (nodes.CLIPLoader, nodes.DualCLIPLoader):
        known |= set(loader.INPUT_TYPES()["required"]["type"][0])
    named = {kind for words in LOADED_AS.values() for kind in re.findall(r"type (\w+)(?: or (\w+))?", words)}
    assert {kind for pair in named for kind in pair if kind} <= known and len(named) > 20


@pytest.mark.parametrize("name", CLIPS)
def test_a_prompt_is_searched_in_its_vocabulary(pack, name):
    """Words of letters that begin with a blank there; HiDream-O1 hands over tokens, which mean nothing yet."""
    values = {"clip": clip_of(name), "concept": "star", "templates": "a photo of a {}", "forbidden": ""}
    values |= {"words": 2, "eta": 1.0, "population": 4, "generations": 2, "seed": 0}
    if name == "HiDreamO1":
        with pytest.raises(ValueError, match="hands over tokens, which say nothing before a model"):
            execute(pack["EraseAnything_GeneticAttack"], values)
        return
    prompt = execute(pack["EraseAnything_GeneticAttack"], values).args[0]
    assert len(prompt.split()) == 2 and prompt.replace(" ", "").isalpha() and "star" not in prompt
    text = ComfyHost(None, clip_of(name)).text_encoder()
    with torch.inference_mode():
        assert not torch.equal(text.encode(prompt).context, text.encode("a photo of a star").context)
