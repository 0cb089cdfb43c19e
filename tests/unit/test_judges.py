"""Judges: one interface, real libraries, and an error where weights are missing."""

import importlib.metadata
import importlib.util
import random

import pytest

torch = pytest.importorskip("torch")

from eraseanything_core.evaluation import clip_judge, judges, judging, nudenet_judge
from eraseanything_core.protocols import Verdict
from eraseanything_core.tinyflux.judges import CnnJudge, OracleJudge
from eraseanything_core.tinyflux.world import render
from lab.tinyflux.prompts import scene_with

KINDS = {"entity": "heart", "style": "striped", "relation": "above"}


@pytest.mark.parametrize("judge", [OracleJudge, CnnJudge])
@pytest.mark.parametrize("kind, concept", KINDS.items())
def test_tinyflux_judges_read_renders(judge, kind, concept):
    rng, reader = random.Random(0), judge(kind)
    pictures = torch.stack([render(scene_with(rng, concept)) for _ in range(3)])
    assert judges.correct(reader.read(pictures), [concept] * 3) == [True] * 3
    assert concept in reader.labels and len(reader.identity["sha256"]) == 64


@pytest.mark.parametrize("judge", [OracleJudge, CnnJudge])
def test_an_empty_picture_is_rejected(judge):
    assert judges.rejected(judge("entity").read(torch.full((2, 3, 96, 96), 0.5))) == [True, True]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_pictures_that_hold_no_numbers_are_not_judged(number):
    """Every judge would reject them, and a concept that is nowhere recognised counts as erased."""
    broken = torch.full((2, 96, 96, 3), 0.5)
    broken[1, 0, 0, 0] = number
    with pytest.raises(ValueError, match="the pictures hold NaN or infinite numbers"):
        judging.channels_first([torch.zeros(1, 96, 96, 3), broken])


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="96x96 RGB pictures, not 512x256"):
        OracleJudge("entity").read(torch.zeros(1, 3, 256, 512))


def test_nudenet_finds_nothing_in_neutral_pictures():
    pytest.importorskip("nudenet")
    judge = nudenet_judge.NudeNetJudge()
    generator = torch.Generator().manual_seed(0)
    scene = render(scene_with(random.Random(0), "house"))
    pictures = torch.stack([torch.full((3, 96, 96), 0.7), torch.rand(3, 96, 96, generator=generator), scene])
    verdicts = judge.read(pictures)
    assert [v.label for v in verdicts] == ["clean"] * 3 and all(v.score < 0.6 for v in verdicts)
    counts = nudenet_judge.nudity(verdicts)
    assert (counts["total"], counts["images_with_any"], counts["images"]) == (0, 0, 3)
    assert judge.identity["sha256"].startswith("c15d8273") and judge.identity["version"] == "3.4.2"


def test_nudity_counts_as_the_paper_does():
    found = [
        Verdict("exposed", 0.9, {"BELLY_EXPOSED": 2, "FEMALE_BREAST_EXPOSED": 1}),
        Verdict("exposed", 0.7, {"MALE_BREAST_EXPOSED": 1}),
        Verdict("clean", 0.1),
    ]
    counts = nudenet_judge.nudity(found)
    assert [counts[name] for name in ("common", "female", "male", "total")] == [2, 1, 1, 4]
    assert (counts["images_with_any"], counts["images"]) == (2, 3)
    assert sum(len(group) for group in nudenet_judge.EXPOSED.values()) == 9


def test_without_nudenet_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install nudenet==3\.4\.2"):
        nudenet_judge.NudeNetJudge()


def test_a_nudenet_with_other_classes_is_refused(monkeypatch):
    pytest.importorskip("nudenet")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.0.9")
    with pytest.raises(ValueError, match=r"NudeNet 2\.0\.9 is installed.*pip install nudenet==3\.4\.2"):
        nudenet_judge.NudeNetJudge()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A very small CLIP with random weights, saved as transformers saves one."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 514, "max_position_embeddings": 77, "eos_token_id": 513, "bos_token_id": 512}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    size, crop = {"shortest_edge": 32}, {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size=size, crop_size=crop).save_pretrained(folder)
    byte_tokens(transformers).save_pretrained(folder)
    return folder


def byte_tokens(transformers):
    """CLIP's tokenizer with no merges: one token a letter."""
    letters = [chr(i) for i in range(33, 127)]
    vocab = {t: i for i, t in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    vocab |= {"<|startoftext|>": 512, "<|endoftext|>": 513}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[])


def test_clip_chooses_the_nearest_prompt(clip_folder):
    clip = clip_judge.TransformersClip(clip_folder)
    pictures = torch.rand(judges.JUDGE_BATCH_SIZE + 3, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    labels = ("cat", "dog", "tree")
    judge = clip_judge.ClipJudge(clip, labels, threshold=0.0)
    inputs = clip.processor(list(pictures), do_rescale=False, return_tensors="pt")
    rows = clip.tokenizer([f"a photo of a {label}" for label in labels], padding=True, return_tensors="pt")
    with torch.no_grad():
        out = clip.model(**rows, **inputs)
        odds = (100 * out.image_embeds @ out.text_embeds.T).softmax(-1)
    verdicts = judge.read(pictures)
    assert [v.label for v in verdicts] == [labels[i] for i in odds.argmax(-1)]
    assert [v.score for v in verdicts] == pytest.approx(odds.amax(-1).tolist(), abs=1e-4)
    assert judges.rejected(clip_judge.ClipJudge(clip, labels, threshold=1.01).read(pictures)) == [True] * len(pictures)


def test_without_a_clip_the_error_says_where_to_get_one(tmp_path):
    with pytest.raises(ValueError, match="config.json.*missing.*huggingface.co/openai/clip-vit-large-patch14"):
        clip_judge.TransformersClip(tmp_path / "nothing")


def test_clip_needs_something_to_choose_between():
    with pytest.raises(ValueError, match="at least two"):
        clip_judge.ClipJudge(None, ["cat"])
    with pytest.raises(ValueError, match="has no {}"):
        clip_judge.ClipJudge(None, ["cat", "dog"], template="a photo")
