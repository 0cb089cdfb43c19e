"""What nodes send to ComfyUI's page, and what Erase Trainer shows while it runs."""

import html
import sys
from types import SimpleNamespace

import pytest
import torch
from comfy.model_management import InterruptProcessingException, interrupt_current_processing

from scripts.graph import inputs_of

SAMPLER = "EraseAnything_ConceptSampler"
MARKUP = "<b> & *c* [d] | `e` ~f~ # _g_"
SENT_MARKUP = "&#60;b> &#38; &#42;c&#42; &#91;d&#93; &#124; &#96;e&#96; &#126;f&#126; &#35; &#95;g&#95;"


@pytest.fixture
def shown(pack, monkeypatch):
    """A display, and the texts that it wrote."""
    from pack_under_test.nodes.shared.training_display import TrainingDisplay

    texts = []
    display = TrainingDisplay(40, "7", None, None)
    monkeypatch.setattr(display, "write", texts.append)
    return display, texts


def test_a_display_without_a_server_says_nothing(pack):
    from pack_under_test.nodes.shared.training_display import TrainingDisplay

    TrainingDisplay(2, "7", None, None).notify("nobody listens")
    TrainingDisplay(2, None, None, None).progress(1, {"loss": 0.5})


def test_a_preparation_says_how_far_it_is_and_starts_anew(shown, monkeypatch):
    """At most twice a second, the end in any case, and each preparation with a time of its own."""
    display, texts = shown
    clock = iter((0.0, 0.1, 2.0, 2.1, 60.0, 61.0))
    monkeypatch.setattr(sys.modules[type(display).__module__], "time", SimpleNamespace(monotonic=lambda: next(clock)))
    for done in (10, 20, 50, 100):
        display.prepare(done, 100)
    assert texts == [
        "preparing: sampling what the original model does, 10%",
        "preparing: sampling what the original model does, 50%, 2 s left",
        "preparing: sampling what the original model does, 100%, 0 s left",
    ]
    assert (display.bar.current, display.bar.total) == (0, 40), "of the training again"
    for done in (5, 15):
        display.prepare(done, 20)
        assert (display.bar.current, display.bar.total) == (done, 20)
    assert texts[3:] == [
        "preparing: sampling what the original model does, 25%",
        "preparing: sampling what the original model does, 75%, 0 s left",
    ]


def test_a_preparation_can_be_cancelled(shown):
    display, texts = shown
    interrupt_current_processing()
    with pytest.raises(InterruptProcessingException):
        display.prepare(1, 10)
    assert not texts


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (119, "119 s"), (121, "2 min"), (3600, "60 min"), (9000, "2.5 h")]
)
def test_a_time_in_words(pack, seconds, words):
    from pack_under_test.nodes.shared.training_display import duration

    assert duration(seconds) == words


def test_the_last_picture_has_before_over_after(shown):
    """Each with its label; what is returned is what is shown."""
    display, _ = shown
    before, after = torch.zeros(4, 16, 16, 3), torch.ones(4, 16, 16, 3)
    before[..., 0] = 1.0  # red
    after[..., 0] = 0.0  # cyan
    (picture,) = display.finish(before, after)
    assert picture.shape[1:] == (1024, 3)
    height = len(picture) // 2
    for rows, colour in ((picture[:height], (1, 0, 0)), (picture[height:], (0, 1, 1))):
        coloured = (rows == torch.tensor(colour)).all(-1)
        dark = (rows < 0.3).all(-1)
        assert coloured.sum(1).max() > 900 and dark.any()
    assert display.bar.current == 40


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("step 2 of 40, 3 s left: loss 0.5", "step 2 of 40, 3 s left: loss 0.5"),
        ("one\ntwo", "one  \ntwo"),
        ("  a photo", "&nbsp;&nbsp;a photo"),
        ("- no list -> none", "&#45; no list -> none"),
        ("1. no list 2. either", "&#49;. no list 2. either"),
        (MARKUP, SENT_MARKUP),
    ],
)
def test_a_text_has_no_markup_left(pack, text, sent):
    from pack_under_test.nodes.shared.texts import page_text

    assert page_text(text) == sent
    assert html.unescape(sent).replace("\xa0", " ").replace("  \n", "\n") == text


def test_what_a_node_returns_is_sent_to_the_page_and_kept_in_the_history(server):
    """By a node that is a coroutine and by one that is not, each under its own name."""
    told = {}

    def listen(kind, data):
        if kind == "progress_text":
            told[data["node"]] = data["text"]

    concepts = {"source": '{"concept": "heart"}', "choice": "source"}
    sampler = {entry.name: entry.default() for entry in inputs_of(SAMPLER, server.object_info()) if entry.is_widget}
    graph = {
        "1": {"class_type": "EraseAnything_LoadConcepts", "inputs": concepts},
        "2": {"class_type": SAMPLER, "inputs": sampler | {"concept": "heart", "words_from": "offline"}},
    }
    outputs = server.run(graph, listen, timeout=120)["outputs"]
    for key in graph:
        (text,) = outputs[key]["text"]
        assert html.unescape(told[key]).replace("\xa0", " ").replace("  \n", "\n") == text
