"""The pieces of each kind of tokenizer, in one form."""

from types import SimpleNamespace

import pytest

from eraseanything_core.concepts.pieces import beginnings, own_pieces, pieces_of


def test_pieces_leave_out_special_tokens_and_embeddings():
    vocabulary = {5: "▁the", 1: "</s>", 0: "<pad>", 2: "<unk>"}
    row = [(5, 1.0), (object(), 1.2), (2, 1.0), (1, 1.0), (0, 1.0)]
    assert pieces_of(SimpleNamespace(inv_vocab=vocabulary), row) == ["▁the", "", "", "", ""]


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
    assert pieces_of(tokenizer, [(i, 1.0) for i in range(len(vocabulary))]) == pieces


@pytest.mark.parametrize(
    "vocabulary, words",
    [
        (["▁the", "▁star", "lo", "</s>"], ["▁the", "▁star", "lo", "</s>"]),
        (["the</w>", "kah", "lo</w>", "<|endoftext|>"], ["▁the", "▁lo"]),
        (["[CLS]", "the", "kah", "##lo", "##s"], ["▁[CLS]", "▁the", "▁kah"]),
        (["Ġthe", "Ċ", "ĠFrid", "a", "<|im_end|>"], ["▁the", "▁Frid"]),
    ],
)
def test_words_of_every_vocabulary_begin_in_one_way(vocabulary, words):
    """Special tokens are no words: who looks for words takes those of letters."""
    assert list(beginnings(SimpleNamespace(inv_vocab=dict(enumerate(vocabulary))))) == words


@pytest.mark.parametrize("read", (beginnings, lambda tokenizer: pieces_of(tokenizer, [(0, 1.0)])))
def test_a_tokenizer_that_is_not_known(read):
    with pytest.raises(ValueError, match="does not tell where words begin"):
        read(SimpleNamespace(inv_vocab={0: "the"}))


@pytest.mark.parametrize(
    "text, own",
    [("", []), ("star", [3]), ("user", [3]), ("▁ user", [3, 4]), ("assistant", [3]), ("a star assistant", [3, 4, 5])],
)
def test_pieces_of_the_template_are_blanked(text, own):
    """Also where the shorter of the two is padded."""
    template = ["", "user", "▁", "", "▁", "", "assistant"]
    pieces = [*template[:3], *text.split(), *template[3:]]
    found = own_pieces(pieces, template)
    padded = own_pieces([*pieces, ""], [*template, *[""] * (1 + len(text.split()))])
    assert padded == [*found, ""]
    assert [i for i, piece in enumerate(found) if piece] == own and len(found) == len(pieces)
