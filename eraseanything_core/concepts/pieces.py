"""The pieces of a tokenizer as text: where words begin, and which pieces belong to the prompt.

A piece is the string of one token, in which "▁" stands for a blank. T5's tokenizer (SentencePiece) writes its pieces
that way already. Those of CLIP, BERT, ByT5, Qwen, Llama and Gemma are brought to the same form here.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import dropwhile
from typing import Any

NO_BEGINNINGS = "this CLIP's tokenizer does not tell where words begin: use one of CLIP, T5, BERT, Gemma, Qwen or Llama"
SPECIAL = {"<pad>", "</s>", "<s>", "<unk>", "<bos>", "<eos>", "<|startoftext|>", "<|endoftext|>"}
SPECIAL |= {"<|im_start|>", "<|im_end|>", "[CLS]", "[SEP]", "[PAD]"}


def _byte_letters() -> dict[str, int]:
    """The letters in which GPT-2's byte-level BPE writes the 256 bytes, as in OpenAI's `bytes_to_unicode`."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(byte): byte for byte in printed}
    # Bytes that do not print, such as the blank, get the letters from 256 on in their order.
    following = 256
    for byte in range(256):
        if byte not in printed:
            letters[chr(following)] = byte
            following += 1
    return letters


BYTES = _byte_letters()


def pieces_of(tokenizer: Any, token_weights: Sequence[tuple]) -> list[str]:
    """The pieces of one encoded prompt.

    Args:
        tokenizer: ComfyUI's tokenizer of this text encoder (`inv_vocab` maps an id to its piece).
        token_weights: the (id, weight, ...) tuples of one row of `tokenize_with_weights`.

    Returns:
        One string a token; special tokens and embeddings that are tensors are "".

    Raises:
        ValueError: the tokenizer marks words in none of the ways that are known.
    """
    pieces = []
    for token in token_weights:
        piece = tokenizer.inv_vocab.get(token[0], "") if isinstance(token[0], int) else ""
        pieces.append("" if piece in SPECIAL else piece)
    # Tokenizers carry no field that says how they mark words. The spelling of a common word in the vocabulary does.
    known = tokenizer.inv_vocab.values()
    if "▁the" in known:
        return pieces
    if "the</w>" in known:
        return _from_clip(pieces)
    if "Ġthe" in known:
        return list(map(_decoded, pieces))
    if "##s" in known:
        return list(map(_from_bert, pieces))
    if "ÿ" in known:
        return _from_byt5(pieces)
    raise ValueError(NO_BEGINNINGS)


def beginnings(tokenizer: Any) -> Iterable[str]:
    """The pieces of a vocabulary that begin a word, "▁" in front of each; T5's, Gemma's and Llama's as they are.

    Args:
        tokenizer: ComfyUI's (`inv_vocab` maps an id to its piece).

    Raises:
        ValueError: the tokenizer marks words in none of the ways that are known, or has no words.
    """
    known = tokenizer.inv_vocab.values()
    if "▁the" in known:
        return known
    if "the</w>" in known:
        # What ends a word may be the whole of one.
        return ["▁" + piece.removesuffix("</w>") for piece in known if piece.endswith("</w>")]
    if "Ġthe" in known:
        return ["▁" + piece.removeprefix("Ġ") for piece in known if piece.startswith("Ġ")]
    if "##s" in known:
        return ["▁" + piece for piece in known if not piece.startswith("##")]
    raise ValueError(NO_BEGINNINGS)


def _decoded(piece: str) -> str:
    """A piece of a byte-level tokenizer as text."""
    # A letter of several bytes may be cut between two pieces. Each half then shows as the replacement sign.
    text = bytes(BYTES[letter] for letter in piece).decode("utf-8", errors="replace")
    return re.sub(r"\s", "▁", text)


def _from_bert(piece: str) -> str:
    """A piece of BERT, which marks those that go on with a word."""
    return piece.removeprefix("##") if piece.startswith("##") or not piece else "▁" + piece


def _from_byt5(pieces: Sequence[str]) -> list[str]:
    """The pieces of ByT5, which are bytes.

    Raises:
        ValueError: some are parts of a letter.
    """
    if not "".join(pieces).isascii():
        raise ValueError("the words in quotation marks are read letter by letter: write them in plain Latin letters")
    return [piece.replace(" ", "▁") for piece in pieces]


def _from_clip(pieces: Sequence[str]) -> list[str]:
    """CLIP's pieces, which mark where words end."""
    words = [_decoded(piece.removesuffix("</w>")) for piece in pieces]
    for i, piece in enumerate(pieces):
        if not piece.endswith("</w>"):
            continue
        following = words[i + 1] if i + 1 < len(words) else ""
        # CLIP parts punctuation from words, so an end before or after punctuation says nothing about a blank.
        if words[i][-1].isalnum() and (not following or following[0].isalnum()):
            words[i] += "▁"
    return words


def own_pieces(pieces: Sequence[str], template: Sequence[str]) -> list[str]:
    """The pieces with "" for those of the template that a text encoder puts around a prompt.

    Args:
        pieces: of the prompt as it is encoded.
        template: the pieces of the empty prompt.
    """
    # A template may stand before the prompt, after it, or on both sides.
    start = _common_length(pieces, template)
    ending = _backwards(pieces[start:])
    stop = start + len(ending) - _common_length(ending, _backwards(template[start:]))
    return [piece if start <= i < stop else "" for i, piece in enumerate(pieces)]


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """How many pieces are equal from the start on."""
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return length


def _backwards(pieces: Sequence[str]) -> list[str]:
    """The pieces from the last word on; padding is left out, of which a shorter prompt has more."""
    return list(dropwhile(lambda piece: not piece, reversed(pieces)))
