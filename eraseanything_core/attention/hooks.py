"""What AttentionProbe and AttentionErase hang into a MODEL: wrappers of its sampling and of its forward.

Both look at each forward for the rows of the batch that carry the prompt, by the encoding itself, so that negative
prompts, batches and other conditions are left alone; and both go through `optimized_attention_override`, calling
the one that is there already. ComfyUI's patcher takes the two methods of a hook as wrappers (`OUTER_SAMPLE` and
`APPLY_MODEL`), and where a model does not tell its attention apart, object patches of the modules that hold it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..concepts.inflections import numbers
from ..concepts.matching import holds, locate
from .columns import Blocks, Place
from .erase import MapErasure, override
from .probe import Probe, Recording


@dataclass(frozen=True)
class Prompt:
    """A prompt as it is really encoded, and where concepts stand in it.

    Attributes:
        pieces: one string a token, of all the text encoders whose tokens a model takes, one after the other.
        spans: {concept: every token position of it}.
        notes: what was taken for a concept though it is spelt otherwise.
        contexts: encodings of the prompt: for each, one [1, tokens, features] a text encoder.
    """

    pieces: list[str]
    spans: dict[str, list[int]]
    notes: tuple[str, ...]
    contexts: tuple[tuple[Tensor, ...], ...]

    def rows(self, *texts: Tensor) -> Tensor:
        """[b], true where a forward's texts [b, tokens, features] hold the prompt's encoding, first or last in them."""
        return torch.stack([_rows(known, texts) for known in self.contexts]).any(0)

    def columns(self, *texts: Tensor) -> Tensor:
        """[b, tokens of all texts], one at the concepts' tokens in each of the texts' encodings of the prompt.

        ComfyUI repeats a text for cross-attention when another one in the batch is longer: every copy counts.
        """
        places = torch.tensor([i for span in self.spans.values() for i in span], device=texts[0].device)
        parts = [torch.zeros(text.shape[:2], device=text.device) for text in texts]
        for known in self.contexts:
            rows, begun = _rows(known, texts), 0
            for own, text, part in zip(known, texts, parts):  # of as many, where any row is meant
                count = own.shape[1]
                here = places[(places >= begun) & (places < begun + count)] - begun
                for first in _firsts(count, text.shape[1]):
                    copies = rows & _equal(text[:, first : first + count], own)
                    part[copies.nonzero(), first + here] = 1.0
                begun += count
        return torch.cat(parts, dim=1)

    def table(self) -> str:
        """The concepts' tokens, in words."""
        lines = [
            f"{concept}: tokens {', '.join(f'{i} {self.pieces[i]!r}' for i in places)}"
            for concept, places in self.spans.items()
        ]
        return "\n".join([*lines, *self.notes])


def _firsts(count: int, length: int) -> list[int]:
    """Where the copies of an encoding may begin in a longer text; Flux 2 has one at its end, after padding."""
    return sorted({*range(0, length - count + 1, count), max(length - count, 0)})


def _rows(known: tuple[Tensor, ...], texts: tuple[Tensor, ...]) -> Tensor:
    """[b], where every one of a forward's texts begins or ends with its encoding."""
    if len(known) != len(texts):
        return torch.zeros(len(texts[0]), dtype=torch.bool, device=texts[0].device)
    ends = [(own, text, own.shape[1]) for own, text in zip(known, texts, strict=True)]
    return torch.stack([_equal(text[:, :n], own) | _equal(text[:, -n:], own) for own, text, n in ends]).all(0)


def _equal(text: Tensor, known: Tensor) -> Tensor:
    """[b], where texts [b, tokens, features] are an encoding [1, tokens, features]."""
    if text.shape[1:] != known.shape[1:]:
        return torch.zeros(len(text), dtype=torch.bool, device=text.device)
    return (text == known.to(text)).flatten(1).all(1)


def read_prompt(
    encodings: Sequence[list[str]],
    concepts: Sequence[str],
    fuzzy: bool,
    contexts: Sequence[tuple[Tensor, ...]],
    quoted: bool = False,
) -> Prompt:
    """Finds concepts in an encoded prompt, in the singular and the plural.

    Args:
        encodings: the pieces of each.
        quoted: whether a further encoding holds but a part of the prompt, where a concept may be missing.

    Raises:
        ValueError: no concept is given, or an encoding does not hold one; the message names its words.
    """
    if not concepts:
        raise ValueError("the concept is empty: type the word to look for")
    pieces, spans, notes = [], {concept: [] for concept in concepts}, {}
    forms = {concept: numbers(concept) for concept in concepts}
    for own in encodings:
        for concept in concepts:
            if quoted and pieces and not holds(own, concept, fuzzy, forms[concept]):
                continue
            found, note = locate(own, concept, fuzzy, forms[concept])
            spans[concept] += [len(pieces) + i for span in found for i in span]
            notes |= {note: concept} if note else {}
        pieces += own
    return Prompt(pieces, spans, tuple(notes), tuple(contexts))


NEAR = 1e-4  # schedulers round their noise levels
KEPT = 4  # recordings: as many samplings with one probe can be read


class Hook:
    """Acts on the rows of a forward that carry a prompt, between two noise levels.

    Args:
        prompt: what to look for.
        sigmas: (highest, lowest) noise level at which it acts.
    """

    def __init__(self, prompt: Prompt, sigmas: tuple[float, float]):
        self.prompt, self.sigmas, self.met = prompt, sigmas, False

    acts = True  # whether it does anything at all
    missed = (
        "the sampled prompt is not the one that the attention node was given: connect that node's conditioning "
        "to the sampler, or encode exactly its text, without images or sounds"
    )

    def patch(self, patcher):
        """Adds to a clone of the MODEL what this needs besides the wrappers."""

    def outer_sample(self, executor, *args, **kwargs):
        """Wraps one sampling, and refuses one that never meets the prompt."""
        self.met = False
        samples = executor(*args, **kwargs)
        if not self.met:
            raise ValueError(self.missed)
        return samples

    def apply_model(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **rest):
        """Wraps one forward: x [b, c, h, w], c_crossattn [b, tokens, features]."""
        texts, options = self.texts(c_crossattn, rest), transformer_options
        if texts[0] is not None and self.prompt.rows(*texts).any():
            self.met = True
            if self.acts and self.sigmas[1] - NEAR <= float(t.max()) <= self.sigmas[0] + NEAR:
                options = self.acting(x, t, texts, rest, options, executor.class_obj)
        try:
            return executor(x, t, c_concat, c_crossattn, control, options, **rest)
        finally:
            self.done()

    def texts(self, context: Tensor | None, given: dict) -> tuple[Tensor | None, ...]:
        """What a forward is given of the prompt; see `Prompt.contexts`."""
        return (context,)

    def acting(self, x: Tensor, t: Tensor, texts: tuple[Tensor, ...], given: dict, options: dict, model) -> dict:
        """The transformer options with which this forward acts."""
        raise NotImplementedError

    def done(self):
        """The forward has ended."""


class GatedHook(Hook):
    """Changes nothing: it refuses the prompts for which a MODEL's erasers were not gated.

    Args:
        context: encoding of the prompt for which they were, [1, tokens, features].
    """

    acts = False
    missed = (
        "the sampled prompt is not the one that Multi Erase LoRA gated the erasers for: connect one text to its "
        "`prompt` and to the text encoder, or choose a mode that holds for all prompts"
    )

    def __init__(self, context: Tensor):
        super().__init__(Prompt([], {}, (), ((context,),)), (0.0, 0.0))


class EraseHook(Hook):
    """Scales the concept's columns.

    Args:
        layout: tells where the text stands in the MODEL's attention, as `flux.layout` does.
    """

    def __init__(self, prompt: Prompt, sigmas: tuple[float, float], config: MapErasure, layout):
        super().__init__(prompt, sigmas)
        self.config, self.layout, self.acts = config, layout, config.strength < 1

    def outer_sample(self, executor, *args, **kwargs):
        self.asked = self.erased = False
        samples = super().outer_sample(executor, *args, **kwargs)
        if self.asked and not self.erased:
            raise ValueError(
                "no attention of the chosen blocks could be changed: another node computes it past ComfyUI's own; use "
                "AttentionErase without it"
            )
        return samples

    def patch(self, patcher):
        if self.acts:
            self.layout.tells.patch(patcher)

    def texts(self, context, given):
        return self.layout.texts.given(context, given)

    def acting(self, x, t, texts, given, options, model):
        self.asked = True
        options, select, place = self.layout.begin(options, x, self.prompt.columns(*texts), given)

        def placer(*attention) -> Place | None:
            found = place(*attention)
            self.erased |= found is not None and found.block in self.config.blocks
            return found

        before = options.get("optimized_attention_override")
        options["optimized_attention_override"] = override(select, self.config, before, placer)
        return options

    def done(self):
        self.layout.tells.end()


class ProbeHook(Hook):
    """Records the concepts' columns; the attention itself is computed as without it.

    Args:
        blocks, heads: what is recorded; no heads are all.
        recorded: takes the `Recording` of each sampling, latest last.
    """

    def __init__(self, prompt: Prompt, sigmas: tuple[float, float], blocks: Blocks, heads: tuple[int, ...]):
        super().__init__(prompt, sigmas)
        self.blocks, self.heads = blocks, heads
        self.recorded: list[Recording] = []
        self.probe: Probe | None = None

    def outer_sample(self, executor, *args, **kwargs):
        self.probe = Probe(self.prompt.pieces, self.prompt.spans, self.heads)
        samples = super().outer_sample(executor, *args, **kwargs)
        self.recorded = [*self.recorded[-KEPT + 1 :], self.probe.finish(samples)]
        return samples

    def recording(self, samples: Tensor) -> Recording:
        """The recording of the sampling that gave these latents.

        Raises:
            ValueError: there is none.
        """
        for recording in reversed(self.recorded):
            if recording.of(samples):
                return recording
        raise ValueError(
            "these samples were not made with this probe's model: connect the sampler's own output, and sample again "
            "if it was made before the last few"
        )

    def acting(self, x, t, texts, given, options, model):
        before, patch = options.get("optimized_attention_override"), model.diffusion_model.patch_size
        grid = tuple(-(-size // patch) for size in x.shape[-2:])
        if not any(_equal(texts[0][:, : known.shape[1]], known).any() for (known,) in self.prompt.contexts):
            raise ValueError("this MODEL puts padding in front of the prompt, which AttentionProbe does not read")
        chosen = self.prompt.rows(*texts).nonzero()[: len(x) // len(options["cond_or_uncond"]), 0]
        step = int((options["sample_sigmas"] > t.max() + 1e-6).sum())
        self.probe.begin(step, float(t.max()), grid, texts[0].shape[1], None if len(chosen) == len(x) else chosen)

        def attend(attention, q, k, v, heads, **more):
            place = more["transformer_options"]
            if (place["block_type"], place["block_index"]) in self.blocks:
                self.probe.read(q, k, (place["block_type"], place["block_index"]), more.get("mask"))
            return (partial(before, attention) if before else attention)(q, k, v, heads, **more)

        return {**options, "optimized_attention_override": attend}

    def done(self):
        self.probe.end()
