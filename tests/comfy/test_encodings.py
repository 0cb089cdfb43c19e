"""Where words stand in what ComfyUI's text encoders make of a prompt."""

from dataclasses import replace
from types import SimpleNamespace

import comfy.sd
import pytest
import torch
from comfy.text_encoders.gpt_oss import LENS_TXT_OFFSET
from comfy.text_encoders.hunyuan_video import LLAMA3Tokenizer
from comfy.text_encoders.joyimage import JOYIMAGE_DROP_IDX

from tests.comfy.tiny import checkpoint, new_clip, new_model


@pytest.mark.parametrize(
    "name, prompt, spans",
    [
        ("SD15", "a red (star:1.2), two stars", {"star": [3, 6]}),
        ("SDXL", "a sci-fi STAR's light", {"star": [5, 6], "sci-fi": [2, 3, 4]}),
        ("SD15", "star " + 80 * "red " + "star", {"star": [1, 84]}),
        ("SD3", "a red star", {"star": [3, 80]}),
        ("QwenImage", "user, an assistant and a star", {"user": [0], "assistant": [3], "star": [6]}),
        ("LTXV", "a red star", {"star": [3]}),
        ("PixArtSigma", "a red star", {"star": [3]}),
        ("HiDream", "a red star", {"star": [3, 128 + 3]}),
        ("HiDreamO1", "user, an assistant and a star", {"user": [3], "assistant": [6], "star": [9]}),
        ("HunyuanVideo", "a video of a red star", {"video": [1], "star": [5]}),
        ("HunyuanVideo15", "a video of a red star", {"video": [1], "star": [5]}),
        ("Kandinsky5", "a video of a red star", {"video": [1], "star": [5]}),
        ("LongCatImage", 'user, an assistant, a "star" and a star', {"user": [0], "star": [8, 9, 10, 11, 15]}),
        ("MiniMaxH3", "a red (star:1.2)", {"star": [3]}),
        ("Omnigen2", "a red star", {"star": [25]}),
        ("PixelDiTT2I", "a red star.", {"star": [3]}),
        ("PixelDiTT2I", "a star of prompt " + 400 * "red ", {"star": [2], "red": [*range(5, 300)]}),
    ],
)
def test_words_are_found_in_the_context_of_each_text_encoder(core, name, prompt, spans):
    """By positions counted by hand: CLIP opens each chunk of 77 with a token of its own, T5 cuts "a" into two."""
    from pack_under_test.eraseanything_core.comfy_bridge.sampler_hooks import encode_located

    with torch.inference_mode():
        model = new_model(name)
        clip = new_clip(name)
        layout = core.layout(model)
        width = clip.encode_from_tokens(clip.tokenize(prompt)).shape[2]
        layout = replace(layout, texts=replace(layout.texts, features=width))  # the text encoders are small as well
        located, _ = encode_located(model, layout, clip, prompt, ", ".join(spans), False)
    assert located.spans == spans and len(located.pieces) == sum(text.shape[1] for text in located.contexts[0])


@pytest.mark.parametrize("words, length", [(1, 256), (300, 305)])
def test_flux_pads_its_prompts_to_256_tokens(core, words, length):
    """On the right, where nothing is found; a longer prompt goes on."""
    clip = new_clip("Flux")
    prompt = "a red star" + (words - 1) * " red" + " star"
    with torch.inference_mode():
        context = clip.encode_from_tokens(clip.tokenize(prompt))
    assert context.shape[1] == length
    (pieces,) = core.context_pieces(clip, prompt, length, [length])
    located = core.locate_concepts([pieces], ["star"], False, ())
    assert located.spans == {"star": [3, 3 + words]} and pieces[:4] == ["▁", "a", "▁red", "▁star"]
    assert not any(pieces[4 + words :]) and len(pieces) == length


@pytest.mark.parametrize(
    "name, prompt, other",
    [
        ("LongCatImage", 'a text "my star" in red', 'a text "my moon" in red'),
        ("LongCatImage", "a red star in a dog's house", "a red planet in a dog's house"),
        ("MiniMaxH3", "a red star above", "a red planet above"),
        ("Ovis", "a red star above", "a red planet above"),
    ],
)
def test_words_are_found_where_the_encoding_begins_to_differ(core, name, prompt, other):
    """These text encoders look back only: up to the first letters of another word, nothing changes."""
    clip = new_clip(name)
    with torch.inference_mode():
        one = clip.encode_from_tokens(clip.tokenize(prompt))[0]
        two = clip.encode_from_tokens(clip.tokenize(other))[0]
    (pieces,) = core.context_pieces(clip, prompt, len(one), [len(one)])
    first = core.locate_concepts([pieces], ["star"], False, ()).spans["star"][0]
    same = (one[: len(two)] == two[: len(one)]).all(1)
    assert same[:first].all() and not same[first]


def test_longcat_takes_no_marks_and_512_tokens(core):
    clip = new_clip("LongCatImage")
    with pytest.raises(ValueError, match="marks of the text encoder's own template"):
        core.context_pieces(clip, "<|im_start|>user a star", 512, [512])
    (pieces,) = core.context_pieces(clip, "star" + 600 * " red" + " star", 512, [512])
    assert pieces == ["star"] + 511 * ["▁red"]


def test_words_are_found_where_the_model_makes_an_encoding_a_token_of_t5(core):
    (pieces,) = core.context_pieces(new_clip("Anima"), "a (red:1.2) star", 4, [512])
    assert len(pieces) == 512 and pieces[2:4] == ["▁red", "▁star"] and not any(pieces[4:])


@pytest.mark.parametrize(
    "name, dropped, star",
    [
        ("krea2.Krea2Tokenizer", 34, 2),
        ("mage_flow.MageFlowTokenizer", 34, 2),
        ("joyimage.JoyImageTokenizer", JOYIMAGE_DROP_IDX, 4),
        ("ideogram4.Ideogram4Qwen3VLTokenizer", 0, 5),
        ("boogu.BooguTokenizer", 0, -3),  # of a long template, whose end is two marks
        ("flux.KleinTokenizer", 0, 5),
        ("newbie.NewBieTokenizer", 0, 3),
        ("ovis.OvisTokenizer", 28, 3),
        ("z_image.ZImageTokenizer", 0, 5),
        ("gpt_oss.LensTokenizer", LENS_TXT_OFFSET, -23),  # likewise; it ends in ten words and twelve marks
    ],
)
def test_words_are_found_after_what_a_text_encoder_drops(core, name, dropped, star):
    """With the tokenizers alone, as the text encoders themselves have one size only."""
    module, kind = name.split(".")
    tokenizer = getattr(getattr(comfy.text_encoders, module), kind)(tokenizer_data=checkpoint())
    clip = SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)
    (row,) = next(iter(tokenizer.tokenize_with_weights("a red star").values()))
    (pieces,) = core.context_pieces(clip, "a red star", len(row) - dropped, [len(row) - dropped])
    places = [i for i, piece in enumerate(pieces) if piece]
    assert [pieces[i].strip("▁") for i in places] == ["a", "red", "star"]
    assert places[2] == star % len(pieces)


def test_words_are_found_in_the_caption_of_ace_step(core):
    """Behind fifteen tokens of instruction and a heading; rate and key follow. The lyrics are other encodings."""
    tokenizer = comfy.text_encoders.ace15.ACE15Tokenizer()
    clip = SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)
    (row,) = clip.tokenize("a red star")["qwen3_06b"]
    (pieces,) = core.context_pieces(clip, "a red star", len(row), [len(row)])
    located = core.locate_concepts([pieces], ["star", "a"], False, ())
    assert located.spans == {"star": [18], "a": [16]} and len(row) > 40
    with pytest.raises(ValueError, match="'Metas'; its words are: a, red, star$"):
        core.locate_concepts([pieces], ["Metas"], False, ())


def test_a_concept_that_one_of_two_text_encoders_does_not_see_is_an_error(core):
    clip = new_clip("HiDream")
    clip.tokenizer.llama = LLAMA3Tokenizer(min_length=128, pad_token=128009)
    if clip.tokenizer.llama.tokenizer.tokenize("a star") == ["a", "Ġstar"]:
        pytest.skip("this transformers keeps the blanks of Llama's tokenizer")
    encodings = core.context_pieces(clip, "a red star", 128, [128, 128])
    with pytest.raises(ValueError, match="'star'; its words are: aredstar"):
        core.locate_concepts(encodings, ["star"], False, ())


def test_what_a_text_encoder_does_with_a_prompt_has_to_be_known(core):
    clip = new_clip("HunyuanVideo15")
    with pytest.raises(ValueError, match="in plain Latin letters"):
        core.context_pieces(clip, 'a sign "étoile"', 9, [9, 9])
    with pytest.raises(ValueError, match="marks of the text encoder's own template"):
        core.context_pieces(clip, "a star<|im_end|>", 20, [20])
    with pytest.raises(ValueError, match="makes 900 encodings of"):
        core.context_pieces(clip, "a star", 900, [900])


def test_words_in_quotation_marks_are_found_twice(core):
    """ByT5 reads: Text "star". Text "my text". The words around those of the prompt are ComfyUI's."""
    prompt = 'a text "star" and “my text”'
    encodings = core.context_pieces(new_clip("HunyuanVideo15"), prompt, 20, [20, 30])
    located = core.locate_concepts(encodings, ["star", "text", "and"], False, (), True)
    assert [len(pieces) for pieces in encodings] == [20, 30]
    assert {word: [i - 20 for i in places if i >= 20] for word, places in located.spans.items()} == {
        "star": [6, 7, 8, 9], "text": [22, 23, 24, 25], "and": [],
    }  # fmt: skip
    assert [located.pieces[i] for i in located.spans["text"][:2]] == ["▁text", "▁text"]
    with pytest.raises(ValueError, match="does not hold the concept 'sky'"):
        core.locate_concepts(encodings, ["sky"], False, (), True)
