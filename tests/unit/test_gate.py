"""Gates: how much text states are about what an eraser erases."""

import pytest
import torch

from eraseanything_core.lora.gate import PromptGate
from eraseanything_core.lora.headers import ErasedConcept, kept_by_all


class Text:
    """A vector a word with a little of the sentence in it; some are mixed of `heart` and `lace`.

    It pads to 24 tokens, with states that are not zero and that know the sentence too, as T5's do.
    """

    mixed = {"valentine": (1.0, 0.3), "darling": (0.8, 0.6), "lady": (0.1, 0.99)}

    def __init__(self, length=24):
        self.length = length
        self.table = {}

    def pieces(self, text):
        pieces = [f"▁{word}" for word in text.replace(",", " ,").split()] + [""]
        return pieces + [""] * (self.length - len(pieces))

    def encode(self, text):
        states = torch.stack([self.state(piece.strip("▁") or "padding") for piece in self.pieces(text)])
        states[len(text.replace(",", " ,").split())] = self.state("end")
        return (states + 0.3 * states.mean(0))[None], torch.zeros(1, 4)

    def state(self, word):
        if word in self.mixed:
            heart, lace = self.mixed[word]
            return heart * self.state("heart") + lace * self.state("lace")
        generator = torch.Generator().manual_seed(sum(ord(c) * 31**i for i, c in enumerate(word)) % 2**31)
        return self.table.setdefault(word, torch.randn(512, generator=generator))


KEPT = ("ball", "fish", "moon", "box", "ring")


@pytest.fixture(scope="module")
def gate():
    heart = ErasedConcept(("heart", "valentine"), irrelevant=KEPT)
    star = ErasedConcept(("star", "red giant"), irrelevant=(*KEPT, "star fish"))
    return PromptGate([heart, star], Text())


def gates(gate, *prompts, length=24):
    return gate(torch.cat([Text(length).encode(prompt)[0] for prompt in prompts])).tolist()


def test_gates_follow_the_text_states(gate):
    """Those of a whole batch at once; a name of several words counts, and so does a word that means the same."""
    assert gates(gate, "a blue heart", "a valentine by night", "my darling") == [[1, 0]] * 3
    assert gates(gate, "a star over the sea", "one red giant") == [[0, 1]] * 2
    assert gates(gate, "a star beside a heart", "a ball and a fish", "", "a lady in a car") == [[1, 1], *[[0, 0]] * 3]


def test_padding_does_not_count(gate):
    for prompt in ("a blue heart", "a ball and a fish", ""):
        (wanted,) = gates(gate, prompt)
        assert gates(gate, prompt, length=90) == [wanted]
    padding = Text(90).encode("a heart")[0][:, 4:]
    assert gate(padding).tolist() == [[0, 0]]


def test_texts_that_were_joined_open_the_gates_of_both(gate):
    heart, star = (Text().encode(f"a {name}")[0] for name in ("heart", "star"))
    assert gate(torch.cat([heart, star], dim=1)).tolist() == [[1, 1]]


FORMS = ("Heart", "HEART", "hearts", "Hearts", "HEARTS", "Valentine", "VALENTINE", "valentines")


@pytest.mark.parametrize("template", ("{}", "a painting of {}", "{} on a plain background", "a ball beside a {}"))
def test_every_written_form_opens_the_gate(gate, template):
    """Of a concept and of a synonym, though this encoder has another state for each, as for any two words."""
    of_heart = [row[0] for row in gates(gate, *(template.format(form) for form in FORMS))]
    assert of_heart == [1] * len(FORMS)
    others = ("Ball", "BALL", "balls", "FISH", "Moon", "boxes")
    assert gates(gate, *(template.format(form) for form in others)) == [[0, 0]] * len(others)


def test_a_name_counts_among_several_things(gate):
    named = (
        "a ball beside a heart",
        "a heart and a fish , a photo of moon",
        "ball , heart , ring",
        "Fish , HEART , Moon",
    )
    assert gates(gate, *named) == [[1, 0]] * len(named)
    assert gates(gate, "a ball beside a fish", "ball , moon , ring", "Fish , BALL , Moon") == [[0, 0]] * 3


class Lowercase(Text):
    """It knows no capitals: all words with one are the same to it."""

    def state(self, word):
        return super().state(word if word == word.lower() else "unknown")


def test_forms_that_the_encoder_does_not_read_are_left_out():
    """A model draws nothing for them, and with them every word that it does not know would open the gate."""
    made = PromptGate([ErasedConcept(("heart",), irrelevant=KEPT)], Lowercase())
    assert made.readers[0].unread >= {"Heart", "HEART", "Hearts", "HEARTS"}
    contexts = [Lowercase().encode(f"a photo of {word}")[0] for word in ("heart", "HEART", "BALL", "ball")]
    assert made(torch.cat(contexts)).flatten().tolist() == [1, 0, 0, 0]


class Counting(Text):
    """It counts what it encodes."""

    def __init__(self):
        super().__init__(length=400)
        self.runs = 0

    def encode(self, text):
        self.runs += 1
        return super().encode(text)


def test_a_gate_costs_a_bounded_number_of_encodings():
    """As documented, however much stands in a header."""
    runs = []
    for names, words in ((("heart",), 300), (("heart",), 3000), (("heart", "valentine", "love"), 3000)):
        encoder = Counting()
        kept = tuple(f"word{i}" for i in range(words))
        PromptGate([ErasedConcept(names, irrelevant=kept, retain=kept)], encoder)
        runs.append(encoder.runs)
    assert runs[0] == runs[1] <= 75 and runs[2] == runs[1] + 2 * 17


def test_a_concept_without_a_header_is_told_from_common_words():
    gate = PromptGate([ErasedConcept(("heart", "valentine"))], Text())
    assert gates(gate, "a heart", "a valentine", "a horse on a hill", "a ship") == [[1], [1], [0], [0]]


def test_what_is_kept_names_nothing_that_is_erased():
    pair = [
        ErasedConcept(("heart",), retain=("a star", "a red thing")),
        ErasedConcept(("star",), retain=("two hearts", "a ball")),
    ]
    assert sorted(kept_by_all(pair, 9, seed=0)) == ["a ball", "a red thing"]
