"""The hooks of AttentionProbe and AttentionErase: wrappers of a MODEL's sampling and of its forward.

Each hook looks in every forward for the rows of the batch that carry the prompt, by the encoding itself, so that
negative prompts, batches and other conditions are left alone. Each goes through `optimized_attention_override` and
calls an override that is there already. ComfyUI's patcher takes the two methods `outer_sample` and `apply_model` as
wrappers (`OUTER_SAMPLE` and `APPLY_MODEL`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from .blocks import Blocks, Options
from .erase import MapErasure, TextLocator, TextPosition, override
from .located_prompt import LocatedPrompt
from .probe import Probe, Recording

OVERRIDE = "optimized_attention_override"
SIGMA_TOLERANCE = 1e-4  # schedulers round their noise levels
MAX_RECORDINGS = 4  # as many samplings with one probe can be read afterwards


class BlockReporter(Protocol):
    """Lets an attention know in which block it is; see `comfy_bridge.families`."""

    def patch(self, patcher: Any) -> None:
        """Adds to a clone of the MODEL what has to be there before sampling."""

    def end(self) -> None:
        """The forward is over."""


class TextArguments(Protocol):
    """Which arguments of a forward hold the encodings of its prompts."""

    def of_forward(self, context: Tensor | None, arguments: dict[str, Any]) -> tuple[Tensor | None, ...]:
        """The encodings [b, tokens, features] in the arguments of a forward."""


class AttentionLayout(Protocol):
    """Where the text stands in the attention of one family of models."""

    @property
    def reporter(self) -> BlockReporter: ...

    @property
    def texts(self) -> TextArguments: ...

    def begin(
        self, options: Options, x: Tensor, select: Tensor, arguments: dict[str, Any]
    ) -> tuple[Options, Tensor, TextLocator]:
        """The options of one forward, the columns of its text keys [b, keys], and where these are.

        Args:
            options: the transformer options of the forward.
            x: latents [b, c, ..., h, w].
            select: [b, tokens], one at the tokens whose columns are meant.
            arguments: the other arguments of the forward.
        """


@dataclass(frozen=True)
class Forward:
    """One forward of the diffusion model, as ComfyUI calls it.

    Attributes:
        x: latents [b, c, ..., h, w].
        sigma: the noise level of the batch.
        texts: the encodings of the prompts, [b, tokens, features] each.
        arguments: the other arguments by name.
        options: the transformer options.
        base_model: ComfyUI's BaseModel around the diffusion model.
    """

    x: Tensor
    sigma: float
    texts: tuple[Tensor, ...]
    arguments: dict[str, Any]
    options: Options
    base_model: Any


class Hook:
    """Acts on the rows of a forward that carry a prompt, between two noise levels.

    Args:
        prompt: what to look for.
        sigmas: (highest, lowest) noise level at which it acts.
    """

    acts = True  # whether it does anything besides looking for its prompt
    missing = (
        "the sampled prompt is not the one that the attention node was given: connect that node's conditioning "
        "to the sampler, or encode exactly its text, without images or sounds"
    )

    def __init__(self, prompt: LocatedPrompt, sigmas: tuple[float, float]) -> None:
        self.prompt = prompt
        self.sigmas = sigmas
        self.prompt_seen = False  # in the sampling that runs

    def patch(self, patcher: Any) -> None:
        """Adds to a clone of the MODEL what this needs besides the wrappers."""

    def outer_sample(self, executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Wraps one sampling.

        Raises:
            ValueError: no forward was given the prompt, so the hook would have done nothing without a word.
        """
        self.prompt_seen = False
        samples = executor(*args, **kwargs)
        if not self.prompt_seen:
            raise ValueError(self.missing)
        return samples

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None,
        c_crossattn: Tensor | None,
        control: Any,
        transformer_options: Options,
        **rest: Any,
    ) -> Tensor:
        """Wraps one forward; the names of the arguments are those of ComfyUI's `BaseModel.apply_model`."""
        options = transformer_options
        texts = self.texts(c_crossattn, rest)
        if texts[0] is not None and self.prompt.rows(*texts).any():
            self.prompt_seen = True
            sigma = float(t.max())
            highest, lowest = self.sigmas
            if self.acts and lowest - SIGMA_TOLERANCE <= sigma <= highest + SIGMA_TOLERANCE:
                options = self.act(Forward(x, sigma, texts, rest, options, executor.class_obj))
        try:
            return executor(x, t, c_concat, c_crossattn, control, options, **rest)
        finally:
            # An interrupt leaves a forward in its middle, and the same hook samples again afterwards.
            self.end()

    def texts(self, context: Tensor | None, arguments: dict[str, Any]) -> tuple[Any, ...]:
        """The encodings in the arguments of a forward; see `LocatedPrompt.contexts`."""
        return (context,)

    def act(self, forward: Forward) -> Options:
        """The transformer options with which this forward acts."""
        raise NotImplementedError

    def end(self) -> None:
        """The forward has ended."""


class EraseHook(Hook):
    """Scales the concept's columns.

    Args:
        prompt, sigmas: see `Hook`.
        config: how columns are scaled.
        layout: where the text stands in the MODEL's attention.
    """

    def __init__(
        self, prompt: LocatedPrompt, sigmas: tuple[float, float], config: MapErasure, layout: AttentionLayout
    ) -> None:
        super().__init__(prompt, sigmas)
        self.config = config
        self.layout = layout
        self.acts = config.strength < 1
        self.wanted = False  # whether a forward of the sampling was to be changed
        self.erased = False  # whether an attention was changed

    def patch(self, patcher: Any) -> None:
        if self.acts:
            self.layout.reporter.patch(patcher)

    def outer_sample(self, executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        self.wanted = False
        self.erased = False
        samples = super().outer_sample(executor, *args, **kwargs)
        if self.wanted and not self.erased:
            raise ValueError(
                "no attention of the chosen blocks could be changed: another node computes it past ComfyUI's own; use "
                "AttentionErase without it"
            )
        return samples

    def texts(self, context: Tensor | None, arguments: dict[str, Any]) -> tuple[Any, ...]:
        return self.layout.texts.of_forward(context, arguments)

    def act(self, forward: Forward) -> Options:
        self.wanted = True
        columns = self.prompt.columns(*forward.texts)
        options, select, locate = self.layout.begin(forward.options, forward.x, columns, forward.arguments)

        def watch(rows: int, keys: int, attention_options: Options) -> TextPosition | None:
            position = locate(rows, keys, attention_options)
            if position is not None and position.block in self.config.blocks:
                self.erased = True
            return position

        options[OVERRIDE] = override(select, self.config, options.get(OVERRIDE), watch)
        return options

    def end(self) -> None:
        self.layout.reporter.end()


class ProbeHook(Hook):
    """Records the concepts' columns in FLUX.1; the attention itself is computed as without it.

    Args:
        prompt, sigmas: see `Hook`.
        blocks: whose attention is recorded.
        heads: which heads are recorded; () is all.

    Attributes:
        recordings: one a sampling, the latest last.
        cell: pixels that one cell of the latent stands for.
    """

    cell = 8

    def __init__(
        self, prompt: LocatedPrompt, sigmas: tuple[float, float], blocks: Blocks, heads: tuple[int, ...]
    ) -> None:
        super().__init__(prompt, sigmas)
        self.blocks = blocks
        self.heads = heads
        self.recordings: list[Recording] = []
        self.probe = self.new_probe()

    def new_probe(self) -> Probe:
        """A probe that has recorded nothing."""
        return Probe(self.prompt.pieces, self.prompt.spans, self.heads)

    def outer_sample(self, executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        self.probe = self.new_probe()
        samples = super().outer_sample(executor, *args, **kwargs)
        self.recordings = [*self.recordings, self.probe.finish(samples)][-MAX_RECORDINGS:]
        return samples

    def recording(self, samples: Tensor) -> Recording:
        """The recording of the sampling that gave these latents.

        The node that shows a recording runs after the sampler, perhaps after several; the latents tell which is meant.

        Raises:
            ValueError: there is none.
        """
        for recording in reversed(self.recordings):
            if recording.of(samples):
                return recording
        raise ValueError(
            "these samples were not made with this probe's model: connect the sampler's own output, and sample again "
            "if it was made before the last few"
        )

    def act(self, forward: Forward) -> Options:
        options = forward.options
        text = forward.texts[0]
        if not self.prompt.at_start(text).any():
            # Token positions would be off by the padding.
            raise ValueError("this MODEL puts padding in front of the prompt: where its words stand is not known")
        self.probe.begin(
            step=int((options["sample_sigmas"] > forward.sigma + 1e-6).sum()),
            sigma=forward.sigma,
            grid=self.grid(forward),
            text=text.shape[1],
            rows=self.recorded_rows(forward),
        )
        before = options.get(OVERRIDE)

        def attend(
            attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, **more: Any
        ) -> Tensor:
            place = more["transformer_options"]
            block = (place["block_type"], place["block_index"])
            if block in self.blocks:
                self.probe.read(q, k, block, more.get("mask"))
            run = partial(before, attention) if before else attention
            return run(q, k, v, heads, **more)

        return {**options, OVERRIDE: attend}

    def grid(self, forward: Forward) -> tuple[int, int]:
        """Rows and columns of image tokens; Flux pads the latents up to whole patches."""
        patch = forward.base_model.diffusion_model.patch_size
        height, width = forward.x.shape[-2:]
        return -(-height // patch), -(-width // patch)

    def recorded_rows(self, forward: Forward) -> Tensor | None:
        """The rows of the batch to record, None for all.

        A batch holds the latents once for each condition; the prompt may be positive and negative at once, and then
        the first set of rows is enough.
        """
        sets = len(forward.options["cond_or_uncond"])
        rows = self.prompt.rows(*forward.texts).nonzero()[: len(forward.x) // sets, 0]
        return None if len(rows) == len(forward.x) else rows

    def end(self) -> None:
        self.probe.end()
