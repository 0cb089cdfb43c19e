"""Which piece of a prompt stands at each place of the encodings that a model takes.

A text encoder puts a template around the prompt, joins the tokens of several tokenizers, pads, and drops some of the
tokens again. What it does is known here by the class of its tokenizer. A count that does not come out is an error:
where a word stands would be a guess.
"""

from collections.abc import Sequence
from typing import Any

from ..concepts.pieces import own_pieces, pieces_of

# ComfyUI's tokenizers whose text encoder drops the first tokens, which are of its template or its padding.
DROPS_FIRST_TOKENS = {
    "gpt_oss.LensTokenizer", "hunyuan_image.HunyuanImageTokenizer", "hunyuan_video.HunyuanVideo15Tokenizer",
    "hunyuan_video.HunyuanVideoTokenizer", "joyimage.JoyImageTokenizer", "kandinsky5.Kandinsky5Tokenizer",
    "kandinsky5.Kandinsky5TokenizerImage", "krea2.Krea2Tokenizer", "longcat_image.LongCatImageTokenizer",
    "lt.LTXAVGemmaTokenizer", "mage_flow.MageFlowTokenizer", "ovis.OvisTokenizer", "qwen_image.QwenImageTokenizer",
}  # fmt: skip
DROPPED_LAST_TOKENS = {"longcat_image.LongCatImageTokenizer": 5}  # of the template's end, which it drops as well
ANIMA = "anima.AnimaTokenizer"
PIXELDIT = "pixeldit.PixelDiTGemma2Tokenizer"
OTHER_EMPTY_TEMPLATE = {"boogu.BooguTokenizer", "gpt_oss.LensTokenizer", PIXELDIT}  # for the empty prompt

BETWEEN_QUOTES = '".▁Text▁"'  # what ComfyUI puts between words in quotation marks; ByT5 has one token a letter
NO_LETTER = "\0"  # stands for a token without a piece, so that one letter remains one token

Tokenizers = tuple[str, ...]  # names of those that share the tokens of a part of an encoding

# For each set of tokenizers that a CLIP may have: the parts of each encoding, which stand after each other in it.
ENCODINGS: tuple[tuple[set[str], list[list[Tokenizers]]], ...] = (
    ({"t5xxl"}, [[("t5xxl",)]]),
    ({"l", "t5xxl"}, [[("t5xxl",)]]),
    ({"l", "g"}, [[("l", "g")]]),
    ({"l", "llama"}, [[("llama",)]]),
    ({"l", "qwen25_7b"}, [[("qwen25_7b",)]]),
    ({"byt5", "qwen25_7b"}, [[("qwen25_7b",)], [("byt5",)]]),
    ({"lyrics", "umt5base"}, [[("umt5base",)]]),
    ({"lm_metadata", "lm_prompt", "lm_prompt_negative", "lyrics", "qwen3_06b"}, [[("qwen3_06b",)]]),
    ({"qwen3_06b", "t5xxl"}, [[("t5xxl",)]]),
    ({"gemma", "jina"}, [[("gemma",)]]),
    ({"g", "l", "llama", "t5xxl"}, [[("t5xxl",)], [("llama",)]]),
    ({"hydit_clip", "mt5xl"}, [[("hydit_clip",)], [("mt5xl",)]]),
)


def context_pieces(clip: Any, prompt: str, length: int, lengths: Sequence[int]) -> list[list[str]]:
    """The pieces of a prompt at their places in each encoding that a model takes; "" where none stands.

    Args:
        clip: CLIP of the text encoder's loader.
        prompt: as it was encoded.
        length: tokens of the context that the CLIP makes.
        lengths: of each encoding as the model takes it; the first may have been padded at its end.

    Raises:
        ValueError: how this CLIP's encodings are made of its tokens is not known.
    """
    kind = _tokenizer_kind(clip.tokenizer)
    if kind in DROPS_FIRST_TOKENS and "<|" in prompt:
        # Such a text encoder looks for its template's marks among the tokens to see where the prompt begins.
        raise ValueError("the prompt holds marks of the text encoder's own template (<|...|>): leave them out")
    rows = clip.tokenize(prompt)
    template = clip.tokenize(_empty_prompt(kind, set(rows)))
    encodings: list[list[str]] = []
    # A model takes fewer encodings than there are where the prompt has no words in quotation marks.
    for parts, taken in zip(_encodings(clip, set(rows)), lengths, strict=False):
        pieces = []
        for names in parts:
            pieces += _part_pieces(clip, names, rows, template)
        encoded = length if not encodings else taken
        if kind == ANIMA:
            encoded = len(pieces)  # the model makes one encoding a token of T5 from those of Qwen
        else:
            pieces = _kept_pieces(kind, pieces, encoded)
        if not len(pieces) == encoded <= taken:
            raise ValueError(
                f"this CLIP makes {encoded} encodings of {len(pieces)} tokens: where a word stands is not known"
            )
        encodings.append(pieces + [""] * (taken - encoded))
    return encodings


def _empty_prompt(kind: str, names: set[str]) -> str:
    """A prompt whose tokens are those of the template alone."""
    if "byt5" in names:
        return '""'  # ByT5 reads only what stands in quotation marks
    return "." if kind in OTHER_EMPTY_TEMPLATE else ""


def _part_pieces(clip: Any, names: Tokenizers, rows: dict[str, list], template: dict[str, list]) -> list[str]:
    """The prompt's own pieces in one part of an encoding; "" for those of the template."""
    pieces = []
    for name in names:
        pieces.append(own_pieces(_pieces(clip, name, rows[name]), _pieces(clip, name, template[name])))
    if pieces[0] != pieces[-1]:
        raise ValueError("the two text encoders split this prompt differently: use a prompt without embeddings")
    return _unquoted(pieces[0]) if names == ("byt5",) else pieces[0]


def _kept_pieces(kind: str, pieces: list[str], count: int) -> list[str]:
    """Those of the pieces whose encodings the text encoder hands over, which are `count`."""
    if kind in DROPS_FIRST_TOKENS:
        end = len(pieces) - DROPPED_LAST_TOKENS.get(kind, 0)
        return pieces[end - count : end]
    if kind == PIXELDIT:
        return pieces[:1] + pieces[1 - count :]  # the template's own words are cut out after the first token
    return pieces


def _unquoted(pieces: list[str]) -> list[str]:
    """The words in quotation marks, with blanks between them instead of ComfyUI's words; as many pieces."""
    letters = "".join(piece or NO_LETTER for piece in pieces)
    letters = letters.replace(BETWEEN_QUOTES, "▁" * len(BETWEEN_QUOTES))
    return [letter.strip(NO_LETTER) for letter in letters]


def _tokenizer_kind(tokenizer: Any) -> str:
    kind = type(tokenizer)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("comfy.text_encoders.")


def _encodings(clip: Any, names: set[str]) -> list[list[Tokenizers]]:
    """The parts of each encoding, see `ENCODINGS`.

    Raises:
        ValueError: this set of tokenizers is not known.
    """
    for known_names, encodings in ENCODINGS:
        if names == known_names:
            return encodings
    if names == {"l", "g", "t5xxl"}:
        return [_sd3_parts(clip)]
    if len(names) == 1:
        return [[tuple(names)]]
    raise ValueError(f"how this CLIP puts {', '.join(sorted(names))} together is not known: use the model's own CLIP")


def _sd3_parts(clip: Any) -> list[Tokenizers]:
    """Of Stable Diffusion 3: its tokenizers are always there, but either text encoder may be missing."""
    loaded = {name for name, module in clip.cond_stage_model.named_children() if module is not None}
    parts: list[Tokenizers] = []
    if loaded & {"clip_l", "clip_g"}:
        parts.append(("l", "g"))
    if "t5xxl" in loaded:
        parts.append(("t5xxl",))
    return parts


def first_tokenizer(clip: Any) -> Any:
    """ComfyUI's tokenizer of the first encoding that a CLIP makes; T5's where it has one.

    Raises:
        ValueError: how this CLIP's encodings are made of its tokens is not known.
    """
    if hasattr(clip.tokenizer, "t5xxl"):
        return clip.tokenizer.t5xxl
    return _tokenizer(clip, _encodings(clip, set(clip.tokenize("")))[0][0][0])


def _tokenizer(clip: Any, name: str) -> Any:
    return getattr(clip.tokenizer, name, None) or getattr(clip.tokenizer, f"clip_{name}")


def _pieces(clip: Any, name: str, rows: list) -> list[str]:
    """The pieces of all rows of one tokenizer, which are encoded after each other."""
    tokenizer = _tokenizer(clip, name)
    pieces = []
    for row in rows:
        pieces += pieces_of(tokenizer, row)
    return pieces
