"""The neutral text is replaced where the model draws the concept for it too; a model with known pictures shows when."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from eraseanything_core.concepts import neutrals
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.sampling import euler, shifted_sigmas
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.gone import LEVELS, PictureReader
from eraseanything_core.training.monitor import CONCEPTS, NEIGHBOURS, held_out
from eraseanything_core.training.neutral_choice import ALLOWED, PICTURES, choose_neutral
from eraseanything_core.training.plan import prepare

THINGS = ("heart", "circle", "house", "tree")


class Text:
    """Every word is a piece; the encoding says which thing the prompt names, -1 for none."""

    def pieces(self, text):
        return ["▁" + word for word in text.split()]

    def encode(self, text):
        named = [THINGS.index(word) for word in text.split() if word in THINGS]
        return torch.full((1, 1, 1), float(named[0] if named else -1)), torch.zeros(1, 1)


class Model:
    """A flow model whose picture of each thing is known, up to a little of its noise.

    Args:
        alike: a thing and the one that is drawn in its place.
    """

    device = torch.device("cpu")
    channels = 4
    downscale = 8
    noise_scale = 1.0

    def __init__(self, alike):
        generator = torch.Generator().manual_seed(0)
        pictures = dict(zip(THINGS, torch.randn(len(THINGS), 4, 4, 4, generator=generator)))
        self.pictures = [pictures[alike.get(name, name)] for name in THINGS]
        self.forwards = 0

    def conds(self, encodings, guidance):
        return [int(context[0, 0, 0]) for context, _ in encodings]

    def sigmas(self, steps, mu=None):
        return shifted_sigmas(steps, 1.0)

    def velocity(self, x_t, sigma, cond, adapters, capture=None):
        self.forwards += len(x_t)
        target = torch.stack([self.pictures[number] for number in cond])
        return (x_t - target) / sigma[:, None, None, None]

    def trajectory(self, cond, noise, sigmas, adapters=False):
        return euler(lambda x, t: self.velocity(x, t, cond, adapters), noise, sigmas)


def plan(**change):
    config = EraseConfig(
        concept="heart", neutral="{circle}", other_neutrals=("{house}", "{tree}"), templates=("a {}",), rsc_weight=0,
        attn_weight=0, held_out=("the {}", "one {}"), monitor_every=1, look_steps=4, width=32, height=32, sentences=4,
    )  # fmt: skip
    return prepare(dataclasses.replace(config, **change), Text())


def texts(sentences):
    return {sentence.neutral.text.split()[-1] for sentence in sentences}


@pytest.mark.parametrize(
    "alike, chosen",
    [
        ({}, "circle"),
        ({"circle": "heart"}, "house"),
        ({"circle": "heart", "house": "heart"}, "tree"),
        # Nothing can be told from a reference that shows the concept: what was configured stays.
        ({"circle": "heart", "tree": "heart"}, "circle"),
    ],
)
def test_the_first_text_that_does_not_show_the_concept(alike, chosen):
    """In training and looks alike, and the note says what was seen and done."""
    before = plan()
    reports = []
    after, note = choose_neutral(Model(alike), before, lambda done, total: reports.append((done, total)))
    assert len(reports) > 1 and reports[-1][0] == reports[-1][1], "told up to its end"
    assert after.config.neutral == "{" + chosen + "}"
    assert texts(after.sentences) == texts(after.monitor_sentences) == {chosen}
    assert [s.concept for s in after.sentences] == [s.concept for s in before.sentences]
    assert bool(note) is (chosen != "circle")
    if note:
        assert f"{PICTURES} of {PICTURES} pictures of the neutral text '{{circle}}'" in note and chosen in note


@pytest.mark.parametrize("alike", ({}, {"circle": "heart"}, {"circle": "heart", "house": "heart"}))
def test_looks_draw_nothing_again(alike):
    """The first sentences have been drawn here, and the pictures are those that a look would have drawn."""
    model = Model(alike)
    chosen, _ = choose_neutral(model, plan())
    looked_at = held_out(model, chosen, chosen.monitor_sentences, CONCEPTS)
    pictures = len(looked_at.noise)
    assert pictures > PICTURES
    model.forwards = 0
    reader = PictureReader(model, looked_at)
    errors = 2 * 2 * len(LEVELS) * pictures
    assert model.forwards == errors + 2 * 4 * (pictures - PICTURES), "four steps for each picture that is new"
    anew = dataclasses.replace(looked_at, known_concept={}, known_neutral={})
    assert torch.equal(reader.x_c, anew.pictures(model, anew.concept, False))
    assert torch.equal(reader.x_n, anew.pictures(model, anew.neutral, False))


def test_what_is_known_is_that_of_the_concepts_set():
    chosen, _ = choose_neutral(Model({}), plan())
    neighbours = held_out(Model({}), chosen, chosen.monitor_sentences, NEIGHBOURS)
    assert not neighbours.known_concept and not neighbours.known_neutral


def test_every_text_is_encoded_before_the_model_runs():
    """The text encoder has left the device by then."""
    ready = plan()
    for sentence in (*ready.sentences, *ready.monitor_sentences):
        for other in sentence.other_neutrals:
            ready.encode(other.text)
        assert [other.text.split()[-1] for other in sentence.other_neutrals] == ["house", "tree"]


@pytest.mark.parametrize("change", [{"other_neutrals": ()}, {"monitor_every": 0}])
def test_without_other_texts_or_looks_nothing_is_asked(change):
    model = Model({"circle": "heart"})
    ready = plan(**change)
    assert choose_neutral(model, ready) == (ready, "") and not model.forwards


def test_one_wrong_reading_changes_nothing(monkeypatch):
    shown = SimpleNamespace(pictures=ALLOWED)
    monkeypatch.setattr(
        "eraseanything_core.training.neutral_choice._shown", lambda _, ready, *more: (ready, shown.pictures)
    )
    assert choose_neutral(Model({}), plan())[0].config.neutral == "{circle}"
    shown.pictures += 1
    assert choose_neutral(Model({}), plan())[0].config.neutral == "{tree}", "all before the reference fail"


@pytest.mark.parametrize(
    "neutral, erased, others",
    [
        ("{circle}", ("heart",), ("{house}", "{tree}")),
        ("{circles}", ("hearts",), ("{houses}", "{trees}")),
        ("{an ordinary scene}", ("fog",), ("{a house}", "{a tree}")),
        ("{plant}", ("tree", "trees"), ("{house}",)),
        ("{}", ("dotted",), ()),
        ("", ("heart",), ()),
        ("{dog|cat}", ("bird",), ()),
        ("a fully dressed person", ("nude",), ()),
    ],
)
def test_what_can_stand_in_the_place_of_a_neutral_text(neutral, erased, others):
    assert neutrals.others(neutral, erased) == others


def test_only_things_and_people_have_others():
    """In the place of an act or a style no house can stand."""
    for concept, count in (("heart", 2), ("woman", 2), ("smoking", 0), ("inside", 0), ("Van Gogh", 0)):
        assert len(sample_offline(ConceptRequest(concept)).settings()["other_neutrals"]) == count
