"""The text encoder that ComfyUI has loaded."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..concepts.matching import own_pieces, pieces_of

OWN_CLIP = "connect Flux.1's own, clip_l and t5xxl, loaded as type flux"


class TextEncoder:
    """Prompts to what the transformer and the span search need.

    Args:
        clip: CLIP of the text encoder's loader.
        once: keep what was encoded, so that each prompt is encoded once.
        params: the shape of the model that the prompts are for, ComfyUI's FluxParams; None is not known.
    """

    def __init__(self, clip, once: bool = True, params=None):
        self.clip, self.once, self.params, self.cache = clip, once, params, {}

    def pieces(self, text: str) -> list[str]:
        """The T5 pieces of a prompt as it is encoded.

        Raises:
            ValueError: the CLIP has no T5.
        """
        rows = self.clip.tokenize(text)
        if "t5xxl" not in rows:
            raise ValueError(f"the CLIP has no T5-XXL, only {', '.join(rows)}: {OWN_CLIP}")
        return [piece for row in rows["t5xxl"] for piece in pieces_of(self.clip.tokenizer.t5xxl, row)]

    def encode(self, text: str) -> tuple[Tensor, Tensor]:
        """context [1, tokens, features] and pooled [1, features], on the CPU and free of inference mode.

        Raises:
            ValueError: the model takes other numbers of features.
        """
        if text in self.cache:
            return self.cache[text]
        with torch.inference_mode(False), torch.no_grad():
            context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)
            self.check(0 if each is None else each.shape[-1] for each in (context, pooled))
            found = context.cpu().clone(), pooled.cpu().clone()
        if self.once:
            self.cache[text] = found
        return found

    def check(self, widths: Iterable[int]):
        """Raises ValueError when the model takes other widths of context and pooled; 0 is none."""
        found, p = tuple(widths), self.params
        if p and found != (p.context_in_dim, p.vec_in_dim):
            told = f"{found[0]} and {found[1]} features, the MODEL takes {p.context_in_dim} and {p.vec_in_dim}"
            raise ValueError(f"the CLIP encodes a prompt in {told}: {OWN_CLIP}")


DROPPING = {  # ComfyUI's tokenizers whose text encoder drops the first tokens, of its template or its padding
    "gpt_oss.LensTokenizer", "hunyuan_image.HunyuanImageTokenizer", "hunyuan_video.HunyuanVideo15Tokenizer",
    "hunyuan_video.HunyuanVideoTokenizer", "joyimage.JoyImageTokenizer", "kandinsky5.Kandinsky5Tokenizer",
    "kandinsky5.Kandinsky5TokenizerImage", "krea2.Krea2Tokenizer", "longcat_image.LongCatImageTokenizer",
    "lt.LTXAVGemmaTokenizer", "mage_flow.MageFlowTokenizer", "ovis.OvisTokenizer", "qwen_image.QwenImageTokenizer",
}  # fmt: skip
ENDING = {"longcat_image.LongCatImageTokenizer": 5}  # how many of the last tokens, of its template, it drops as well
PIXELDIT = "pixeldit.PixelDiTGemma2Tokenizer"
UNLIKE = {"boogu.BooguTokenizer", "gpt_oss.LensTokenizer", PIXELDIT}  # those with another template for no prompt


def context_pieces(clip, prompt: str, length: int, lengths: Sequence[int]) -> list[list[str]]:
    """The pieces of a prompt at their places in each encoding that a model takes; "" where none stands.

    Args:
        length: tokens of the context that the CLIP makes.
        lengths: of each encoding as the model takes it; the first may have been padded at its end.

    Raises:
        ValueError: how this CLIP's encodings are made of its tokens is not known.
    """
    kind = _kind(clip.tokenizer)
    if kind in DROPPING and "<|" in prompt:
        raise ValueError("the prompt holds marks of the text encoder's own template (<|...|>): leave them out")
    rows = clip.tokenize(prompt)
    template = clip.tokenize('""' if "byt5" in rows else "." if kind in UNLIKE else "")
    found = []
    for encoding, taken in zip(_encodings(clip, set(rows)), lengths):
        pieces = []
        for names in encoding:
            read = [own_pieces(*(_pieces(clip, name, tokens[name]) for tokens in (rows, template))) for name in names]
            if read[0] != read[-1]:
                raise ValueError("the two text encoders split this prompt differently: use a prompt without embeddings")
            pieces += _unquoted(read[0]) if names == ("byt5",) else read[0]
        made = taken if found else length
        if kind == "anima.AnimaTokenizer":
            made = len(pieces)  # the model makes one encoding a token of T5 from those of Qwen
        elif kind in DROPPING:
            end = len(pieces) - ENDING.get(kind, 0)
            pieces = pieces[end - made : end]
        elif kind == PIXELDIT:
            pieces = pieces[:1] + pieces[1 - made :]  # the template's own words are cut between these
        if not len(pieces) == made <= taken:
            raise ValueError(
                f"this CLIP makes {made} encodings of {len(pieces)} tokens: where a word stands is not known"
            )
        found.append(pieces + [""] * (taken - made))
    return found


BETWEEN = '".▁Text▁"'  # what ComfyUI puts between words in quotation marks; ByT5 has one token a letter


def _unquoted(pieces: list[str]) -> list[str]:
    """The words in quotation marks, with blanks between them."""
    letters = "".join(piece or "\0" for piece in pieces)
    return [letter.strip("\0") for letter in letters.replace(BETWEEN, "▁" * len(BETWEEN))]


def _kind(tokenizer) -> str:
    kind = type(tokenizer)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("comfy.text_encoders.")


ENCODINGS = (  # names of the tokenizers; those of each encoding, those in one tuple share its tokens
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


def _encodings(clip, names: set[str]) -> list[list[tuple[str, ...]]]:
    """For each encoding, the tokenizers whose tokens stand in it after each other; see `ENCODINGS`."""
    for known, encodings in ENCODINGS:
        if names == known:
            return encodings
    if names == {"l", "g", "t5xxl"}:  # Stable Diffusion 3, where either may be missing
        parts = {("l", "g"): ("clip_l", "clip_g"), ("t5xxl",): ("t5xxl",)}
        loaded = {name for name, module in clip.cond_stage_model.named_children() if module is not None}
        return [[names for names, encoders in parts.items() if loaded & {*encoders}]]
    if len(names) == 1:
        return [[tuple(names)]]
    raise ValueError(f"how this CLIP puts {', '.join(sorted(names))} together is not known: use the model's own CLIP")


def _pieces(clip, name: str, rows: list) -> list[str]:
    tokenizer = getattr(clip.tokenizer, name, None) or getattr(clip.tokenizer, f"clip_{name}")
    return [piece for row in rows for piece in pieces_of(tokenizer, row)]
