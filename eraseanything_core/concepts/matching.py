"""Where a concept stands among the pieces of the prompt that was really encoded.

Everything here works on the *pieces* of a tokenizer: strings in which "▁" stands for a blank, as T5's (SentencePiece)
come and CLIP's and Qwen's are brought to. The search is done on the text that the pieces spell, so it does not depend
on how a word was cut: `nude` is found in `▁nu·de`, `Nude,` in `▁N·ude·,`, `(nude:1.2)` after ComfyUI has taken the
weight off, and the `a` of `Frida` is never taken for an article.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from itertools import dropwhile
from os.path import commonprefix

SPECIAL = {"<pad>", "</s>", "<s>", "<unk>", "<bos>", "<eos>", "<|startoftext|>", "<|endoftext|>"}
SPECIAL |= {"<|im_start|>", "<|im_end|>", "[CLS]", "[SEP]", "[PAD]"}
PRINTED = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
MOVED = [byte for byte in range(256) if byte not in PRINTED]
BYTES = {chr(byte): byte for byte in PRINTED} | {chr(256 + i): byte for i, byte in enumerate(MOVED)}  # of GPT-2's BPE
ENDING = r"(?:'s|’s|es|s)?"
ALIKE = 0.75  # similarity (difflib's ratio) from which a word is taken for the concept misspelt
AFFIX = 4  # letters that may stand before or after the concept


def pieces_of(tokenizer, token_weights: Sequence[tuple]) -> list[str]:
    """The pieces of one encoded prompt.

    Args:
        tokenizer: ComfyUI's tokenizer of this text encoder (`inv_vocab` maps an id to its piece).
        token_weights: the (id, weight, ...) tuples of one row of `tokenize_with_weights`.

    Returns:
        One string a token; special tokens and embeddings given as tensors are "".

    Raises:
        ValueError: the tokenizer marks words in none of the ways that are known.
    """
    pieces = [tokenizer.inv_vocab.get(token[0], "") if isinstance(token[0], int) else "" for token in token_weights]
    pieces = ["" if piece in SPECIAL else piece for piece in pieces]
    known = tokenizer.inv_vocab.values()
    if "▁the" in known:
        return pieces
    if "the</w>" in known:
        return _ended(pieces)
    if "Ġthe" in known:
        return [_decoded(piece) for piece in pieces]
    if "##s" in known:
        return [_wordpiece(piece) for piece in pieces]
    if "ÿ" in known:
        return _bytewise(pieces)
    raise ValueError(
        "this CLIP's tokenizer does not tell where words begin: use one of CLIP, T5, BERT, Gemma, Qwen or Llama"
    )


def _decoded(piece: str) -> str:
    """A piece of a byte-level tokenizer as text."""
    return re.sub(r"\s", "▁", bytes(BYTES[letter] for letter in piece).decode("utf-8", errors="replace"))


def _wordpiece(piece: str) -> str:
    """A piece of BERT, which marks those that go on with a word."""
    return piece.removeprefix("##") if piece.startswith("##") or not piece else "▁" + piece


def _bytewise(pieces: Sequence[str]) -> list[str]:
    """The pieces of ByT5, which are bytes.

    Raises:
        ValueError: some are parts of a letter.
    """
    if not "".join(pieces).isascii():
        raise ValueError("the words in quotation marks are read letter by letter: write them in plain Latin letters")
    return [piece.replace(" ", "▁") for piece in pieces]


def _ended(pieces: Sequence[str]) -> list[str]:
    """CLIP's pieces, which mark where words end. It parts punctuation from words: no blank is put there."""
    words = [_decoded(piece.removesuffix("</w>")) for piece in pieces]
    for i, (piece, following) in enumerate(zip(pieces, [*words[1:], ""])):
        if piece.endswith("</w>") and words[i][-1].isalnum() and (following or "a")[0].isalnum():
            words[i] += "▁"
    return words


def own_pieces(pieces: Sequence[str], template: Sequence[str]) -> list[str]:
    """The pieces with "" for those of the template that a text encoder puts around a prompt.

    Args:
        template: the pieces of the empty prompt.
    """
    start = len(commonprefix([pieces, template]))
    rest = [_backwards(found[start:]) for found in (pieces, template)]
    stop = start + len(rest[0]) - len(commonprefix(rest))
    return [piece if start <= i < stop else "" for i, piece in enumerate(pieces)]


def _backwards(pieces: Sequence[str]) -> list[str]:
    """The pieces from the last word on; padding is left out, of which a shorter prompt has more."""
    return list(dropwhile(lambda piece: not piece, reversed(pieces)))


def find_spans(pieces: Sequence[str], concept: str, forms: Sequence[str] = ()) -> list[range]:
    """The token positions of every occurrence of a concept, in order.

    Casing, punctuation around the word, a plural or possessive ending and a hyphen for a blank do not matter.

    Args:
        pieces: the prompt as encoded, one string a token.
        concept: one or more words.
        forms: of the concept, which count as well, such as its irregular plural.

    Returns:
        One range of contiguous token positions an occurrence.

    Raises:
        ValueError: the concept is empty, or the prompt does not hold it.
    """
    text, owner = _spell(pieces)
    spans = []
    for match in _pattern(concept, forms).finditer(text):
        positions = [owner[i] for i in range(*match.span()) if not text[i].isspace()]
        spans.append(range(positions[0], positions[-1] + 1))
    if not spans:
        raise ValueError(f"the prompt does not hold the concept {concept!r}; its words are: {', '.join(text.split())}")
    return spans


def find_similar(pieces: Sequence[str], concept: str, forms: Sequence[str] = ()) -> list[tuple[range, str]]:
    """Words that are likely the concept misspelt or with letters around it: `Nikke`, `soccerrrs`.

    Args:
        pieces, concept, forms: see `find_spans`; what that finds is left out here.

    Returns:
        The token positions of each such word (of as many words as the concept has), and the word as it stands there.
    """
    text, owner = _spell(pieces)
    exact = _pattern(concept, forms)
    words, count, found = list(re.finditer(r"\w+", text)), len(_normalise(concept).split()), []
    for first, last in zip(words, words[count - 1 :]):
        there = text[first.start() : last.end()]
        if _alike(there.lower(), " ".join(_normalise(concept).lower().split())) and not exact.search(there):
            found.append((range(owner[first.start()], owner[last.end() - 1] + 1), there))
    return found


def _alike(there: str, concept: str) -> bool:
    around = len(there) - len(concept)
    if concept in there:
        return 0 < around <= AFFIX
    return SequenceMatcher(None, there, concept, autojunk=False).ratio() >= ALIKE


def locate(
    pieces: Sequence[str], concept: str, fuzzy: bool = False, forms: Sequence[str] = ()
) -> tuple[list[range], str]:
    """The spans of a concept, with those of similar words if `fuzzy`, and a sentence that names the similar words.

    Raises:
        ValueError: see `find_spans`.
    """
    similar = find_similar(pieces, concept, forms) if fuzzy else []
    if not similar:
        return find_spans(pieces, concept, forms), ""
    text, _ = _spell(pieces)
    exact = find_spans(pieces, concept, forms) if occurs(text, concept, forms) else []
    names = ", ".join(repr(word) for _, word in similar)
    note = f"taken for {concept!r} though it is spelt otherwise: {names}"
    return sorted([*exact, *(span for span, _ in similar)], key=lambda span: span.start), note


def holds(pieces: Sequence[str], concept: str, fuzzy: bool = False, forms: Sequence[str] = ()) -> bool:
    """Whether `locate` finds the concept."""
    return occurs(_spell(pieces)[0], concept, forms) or fuzzy and bool(find_similar(pieces, concept))


def positions(pieces: Sequence[str], concept: str) -> list[int]:
    """Every token position of every occurrence of a concept; see `find_spans`."""
    return [i for span in find_spans(pieces, concept) for i in span]


def check_concept(concept: str, tokenize: Callable[[str], Sequence[str]]) -> str:
    """The concept without surrounding blanks, once it is sure that the encoder can see it.

    Args:
        concept: what the user typed.
        tokenize: gives the pieces of a prompt.

    Raises:
        ValueError: the concept is empty or becomes no token.
    """
    word = " ".join(concept.split())
    if not word:
        raise ValueError("the concept is empty: type the word to erase")
    if not any(_normalise(piece).strip() for piece in tokenize(word)):
        raise ValueError(f"the text encoder has no token for {word!r}: it would be erased from nothing")
    return word


def occurs(text: str, concept: str, forms: Sequence[str] = ()) -> bool:
    """Whether a plain text holds the concept, by the same rule as `find_spans`."""
    return _pattern(concept, forms).search(_normalise(text)) is not None


def replace(text: str, concept: str, replacement: str) -> str:
    """The text with every occurrence of the concept replaced, endings included, by the rule of `find_spans`."""
    return _pattern(concept).sub(lambda _: replacement, text)


def _pattern(concept: str, forms: Sequence[str] = ()) -> re.Pattern:
    spelt = [_normalise(form).split() for form in (concept, *forms)]
    if not spelt[0]:
        raise ValueError("the concept is empty: type the word to erase")
    bodies = "|".join(r"[\s\-]+".join(re.escape(word) for word in words) for words in spelt)
    return re.compile(rf"(?<!\w)(?:{bodies}){ENDING}(?!\w)", re.IGNORECASE)


def _spell(pieces: Sequence[str]) -> tuple[str, list[int]]:
    """The text that the pieces spell, and for each of its characters the piece it came from."""
    text, owner = "", []
    for i, piece in enumerate(pieces):
        spelled = _normalise(piece)
        text += spelled
        owner += [i] * len(spelled)
    return text, owner


def _normalise(text: str) -> str:
    shown = unicodedata.normalize("NFKC", text.replace("▁", " "))
    return "".join(c for c in shown if unicodedata.category(c) not in ("Cf", "Cc"))
