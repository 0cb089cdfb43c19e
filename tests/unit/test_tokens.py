"""Spans of a concept among T5 pieces, written out by hand as ComfyUI's tokenizer cuts them."""

from types import SimpleNamespace

import pytest

from eraseanything_core.concepts import matching


def cut(text: str) -> list[str]:
    return text.split("|") + ["", ""]  # end of sequence and padding


@pytest.mark.parametrize(
    "pieces, concept, spans",
    [
        ("▁a|▁|nu|de|▁woman", "nude", [[2, 3]]),
        ("▁a|▁N|ude|,|▁woman", "nude", [[1, 2]]),
        ("▁semi|-|nu|de|▁art", "nude", [[2, 3]]),
        ("▁two|▁star|s|▁and|▁a|▁Star|'|s|▁light", "star", [[1, 2], [5, 6, 7]]),
        ("▁star|ry|▁star|ling|s", "star", None),
        ("▁|a|▁Fri|d|a|▁Ka|h|l|o|▁portrait", "Frida Kahlo", [[2, 3, 4, 5, 6, 7, 8]]),
        ("▁|a|▁Fri|d|a|▁Ka|h|l|o", "a", [[1]]),
        ("▁by|▁Van|-|Go|g|h", "van gogh", [[1, 2, 3, 4, 5]]),
        ("▁by|▁Van|▁a|▁Go|g|h", "van gogh", None),
        ("▁dog|▁dog|▁dog", "dog", [[0], [1], [2]]),
        ("▁a|▁big|▁|dog", "dog", [[3]]),
        ("▁ca|fé|▁noir", "CAFÉ", [[0, 1]]),
        ("▁c|++|▁code", "c++", [[0, 1]]),
    ],
)
def test_spans(pieces, concept, spans):
    if spans is None:
        with pytest.raises(ValueError, match="does not hold the concept"):
            matching.find_spans(cut(pieces), concept)
    else:
        assert [list(span) for span in matching.find_spans(cut(pieces), concept)] == spans


@pytest.mark.parametrize(
    "pieces, concept, forms, spans",
    [
        ("▁two|▁butter|flies", "butterfly", ["butterflies"], [[1, 2]]),
        ("▁a|▁star|▁above|▁stars", "stars", ["star"], [[1], [3]]),
        ("▁sea|▁wol|ves|'|s", "sea wolf", ["sea wolves"], [[0, 1, 2, 3, 4]]),
        ("▁women|ized", "woman", ["women"], None),
        ("▁sea|▁wol|ves", "wolf", [], None),
    ],
)
def test_further_forms_of_a_concept(pieces, concept, forms, spans):
    if spans is None:
        assert not matching.holds(cut(pieces), concept, forms=forms)
    else:
        assert [list(span) for span in matching.locate(cut(pieces), concept, True, forms)[0]] == spans


def test_the_error_names_the_words_that_are_there():
    with pytest.raises(ValueError, match="'cat'; its words are: a, red, dog$"):
        matching.find_spans(cut("▁a|▁re|d|▁dog"), "cat")


def test_empty_concept():
    with pytest.raises(ValueError, match="the concept is empty"):
        matching.find_spans(cut("▁a|▁dog"), " ")


def test_a_span_moves_with_the_edit():
    """The reference code kept the positions of the prompt before the substitution."""
    assert matching.positions(cut("▁a|▁photo|▁of|▁|nu|de"), "nude") == [4, 5]
    assert matching.positions(cut("▁of|▁a|▁cloth|ed|▁photo"), "clothed") == [2, 3]


def test_pieces_leave_out_special_tokens_and_embeddings():
    vocabulary = {5: "▁the", 1: "</s>", 0: "<pad>", 2: "<unk>"}
    row = [(5, 1.0), (object(), 1.2), (2, 1.0), (1, 1.0), (0, 1.0)]
    assert matching.pieces_of(SimpleNamespace(inv_vocab=vocabulary), row) == ["▁the", "", "", "", ""]


@pytest.mark.parametrize(
    "vocabulary, pieces",
    [
        (["the</w>", ",</w>", "sci</w>", "-</w>", "fi</w>", "cafÃ©</w>"], ["the", ",", "sci", "-", "fi▁", "café▁"]),
        (["the</w>", "kah", "lo</w>", "<|endoftext|>"], ["the▁", "kah", "lo▁", ""]),
        (["[CLS]", "the", "kah", "##lo", "##s"], ["", "▁the", "▁kah", "lo", "s"]),
        (["Ġthe", "Ċ", "ĠFrid", "a", "ĠcafÃ©", "<|im_end|>"], ["▁the", "▁", "▁Frid", "a", "▁café", ""]),
    ],
)
def test_pieces_of_other_tokenizers(vocabulary, pieces):
    tokenizer = SimpleNamespace(inv_vocab=dict(enumerate(vocabulary)))
    assert matching.pieces_of(tokenizer, [(i, 1.0) for i in range(len(vocabulary))]) == pieces


def test_a_tokenizer_that_is_not_known():
    with pytest.raises(ValueError, match="does not tell where words begin"):
        matching.pieces_of(SimpleNamespace(inv_vocab={0: "the"}), [(0, 1.0)])


@pytest.mark.parametrize(
    "text, own",
    [("", []), ("star", [3]), ("user", [3]), ("▁ user", [3, 4]), ("assistant", [3]), ("a star assistant", [3, 4, 5])],
)
def test_pieces_of_the_template_are_blanked(text, own):
    """Also where the shorter of the two is padded."""
    template = ["", "user", "▁", "", "▁", "", "assistant"]
    pieces = [*template[:3], *text.split(), *template[3:]]
    found = matching.own_pieces(pieces, template)
    padded = matching.own_pieces([*pieces, ""], [*template, *[""] * (1 + len(text.split()))])
    assert padded == [*found, ""]
    assert [i for i, piece in enumerate(found) if piece] == own and len(found) == len(pieces)


@pytest.mark.parametrize(
    "concept, words", [("", "is empty"), (" \n", "is empty"), ("\u200b", "no token"), ("ᚠ", "no token")]
)
def test_concepts_that_cannot_be_erased(concept, words):
    pieces = {"\u200b": ["▁", ""], "ᚠ": ["▁", "", ""]}
    with pytest.raises(ValueError, match=words):
        matching.check_concept(concept, pieces.__getitem__)


def test_a_concept_is_tidied():
    assert matching.check_concept("  red \n star ", lambda _: ["▁red", "▁star"]) == "red star"


def test_replace_takes_every_occurrence_and_its_ending():
    assert matching.replace("Dogs and a dog's hot-dog, dogma", "dog", "{}") == "{} and a {} hot-{}, dogma"


@pytest.mark.parametrize(
    "pieces, concept, found",
    [
        ("▁a|▁Ni|k|ke|▁shoe", "Nike", {"Nikke": [1, 2, 3]}),
        ("▁soccer|rr|s|▁ball", "soccer", {"soccerrrs": [0, 1, 2]}),
        ("▁a|▁portrait|▁of|▁Fri|d|da|▁Ka|h|l|o", "Frida Kahlo", {"Fridda Kahlo": [3, 4, 5, 6, 7, 8, 9]}),
        ("▁two|▁star|s", "star", {}),
        ("▁a|▁house", "horse", {"house": [1]}),
        ("▁a|▁tree", "house", {}),
    ],
)
def test_similar_words(pieces, concept, found):
    assert {word: list(span) for span, word in matching.find_similar(cut(pieces), concept)} == found


def test_similar_words_are_found_only_if_asked_and_are_named():
    pieces = cut("▁a|▁Nike|▁and|▁Nik|ke")
    assert matching.locate(pieces, "Nike") == ([range(1, 2)], "")
    spans, note = matching.locate(pieces, "Nike", fuzzy=True)
    assert spans == [range(1, 2), range(3, 5)] and "'Nikke'" in note
    with pytest.raises(ValueError, match="its words are: a, tree"):
        matching.locate(cut("▁a|▁tree"), "Nike", fuzzy=True)
