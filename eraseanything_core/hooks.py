"""What AttentionProbe and AttentionErase hang into a MODEL: wrappers of its sampling and of its forward.

Both look at each forward for the rows of the batch that carry the prompt, by the encoding itself, so that negative
prompts, batches and other conditions are left alone; and both go through `optimized_attention_override`, calling
the one that is there already. ComfyUI's patcher takes the two methods of a hook as wrappers (`OUTER_SAMPLE` and
`APPLY_MODEL`); nothing else of the MODEL is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .attention import Blocks, Place
from .methods.attention_map import MapErasure, override
from .probe import Probe, Recording
from .tokens import locate


@dataclass(frozen=True)
class Prompt:
    """A prompt as it is really encoded, and where concepts stand in it.

    Attributes:
        pieces: one string a token of the text encoder.
        spans: {concept: every token position of it}.
        notes: what was taken for a concept though it is spelt otherwise.
        contexts: encodings of the prompt, each [1, tokens, features].
    """

    pieces: list[str]
    spans: dict[str, list[int]]
    notes: tuple[str, ...]
    contexts: tuple[Tensor, ...]

    def rows(self, context: Tensor) -> Tensor:
        """[b], true where a forward's context [b, tokens, features] begins with the prompt's encoding."""
        found = torch.zeros(len(context), dtype=torch.bool, device=context.device)
        for known in self.contexts:
            if known.shape[1] <= context.shape[1]:
                found |= (context[:, : known.shape[1]] == known.to(context)).flatten(1).all(1)
        return found

    def columns(self, context: Tensor) -> Tensor:
        """[b, tokens], one at the concepts' tokens in each of a context's encodings of the prompt.

        ComfyUI repeats a text for cross-attention when another one in the batch is longer: every copy counts.
        """
        select = torch.zeros(context.shape[:2], device=context.device)
        places = torch.tensor([i for span in self.spans.values() for i in span], device=context.device)
        for known in self.contexts:
            count = known.shape[1]
            for first in range(0, context.shape[1] - count + 1, count):
                rows = (context[:, first : first + count] == known.to(context)).flatten(1).all(1)
                select[rows.nonzero(), first + places] = 1.0
        return select

    def table(self) -> str:
        """The concepts' tokens, in words."""
        lines = [
            f"{concept}: tokens {', '.join(f'{i} {self.pieces[i]!r}' for i in places)}"
            for concept, places in self.spans.items()
        ]
        return "\n".join([*lines, *self.notes])


def read_prompt(pieces: list[str], concepts: Sequence[str], fuzzy: bool, contexts: Sequence[Tensor]) -> Prompt:
    """Finds concepts in an encoded prompt.

    Raises:
        ValueError: no concept is given, or the prompt does not hold one; the message names its words.
    """
    if not concepts:
        raise ValueError("the concept is empty: type the word to look for")
    spans, notes = {}, []
    for concept in concepts:
        found, note = locate(pieces, concept, fuzzy)
        spans[concept] = [i for span in found for i in span]
        notes += [note] * bool(note)
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

    def outer_sample(self, executor, *args, **kwargs):
        """Wraps one sampling, and refuses one that never meets the prompt."""
        self.met = False
        samples = executor(*args, **kwargs)
        if not self.met:
            raise ValueError(
                "the sampled prompt is not the one that the attention node was given: connect that node's conditioning "
                "to the sampler, or encode exactly its text"
            )
        return samples

    def apply_model(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **rest):
        """Wraps one forward: x [b, c, h, w], c_crossattn [b, tokens, features]."""
        rows, options = self.prompt.rows(c_crossattn), transformer_options
        if rows.any():
            self.met = True
            if self.acts and self.sigmas[1] - NEAR <= float(t.max()) <= self.sigmas[0] + NEAR:
                options = self.acting(rows, x, t, c_crossattn, options, executor.class_obj)
        result = executor(x, t, c_concat, c_crossattn, control, options, **rest)
        self.done()
        return result

    def acting(self, rows: Tensor, x: Tensor, t: Tensor, context: Tensor, options: dict, model) -> dict:
        """The transformer options with which this forward acts."""
        raise NotImplementedError

    def done(self):
        """The forward has ended."""


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

    def acting(self, rows, x, t, context, options, model):
        self.asked = True
        options, place = self.layout.begin(options, x, context)

        def placer(*attention) -> Place | None:
            found = place(*attention)
            self.erased |= found is not None and found.block in self.config.blocks
            return found

        before = options.get("optimized_attention_override")
        attend = override(self.prompt.columns(context), self.config, before, placer)
        return {**options, "optimized_attention_override": attend}


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

    def acting(self, rows, x, t, context, options, model):
        before, patch = options.get("optimized_attention_override"), model.diffusion_model.patch_size
        grid = tuple(-(-size // patch) for size in x.shape[-2:])
        chosen = rows.nonzero()[: len(x) // len(options["cond_or_uncond"]), 0]
        step = int((options["sample_sigmas"] > t.max() + 1e-6).sum())
        self.probe.begin(step, float(t.max()), grid, context.shape[1], None if len(chosen) == len(x) else chosen)

        def attend(attention, q, k, v, heads, **more):
            place = more["transformer_options"]
            if (place["block_type"], place["block_index"]) in self.blocks:
                self.probe.read(q, k, (place["block_type"], place["block_index"]))
            return (partial(before, attention) if before else attention)(q, k, v, heads, **more)

        return {**options, "optimized_attention_override": attend}

    def done(self):
        self.probe.end()
