"""The contracts between the rooms of the core: what a model, a text encoder, a host and a judge have to offer.

Everything above `comfy_bridge` sees a model only through these. Shapes: b is the batch, c the latent's channels, h and
w its cells; a latent is always in the model's own space, after `process_latent_in`. Time is t in [0, 1], 1 is noise.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Sigmas = Tensor  # [steps + 1], falling from 1 to 0
GIB = 2**30  # bytes


class EncodedPrompt(NamedTuple):
    """A prompt as its text encoder hands it to the model, on the CPU."""

    context: Tensor  # [1, tokens, features]
    pooled: Tensor  # [1, features]


class Conditioning(EncodedPrompt):
    """A prompt with what else its text encoder hands to the model, such as a mask.

    Attributes:
        more: by the names of ComfyUI's CONDITIONING.
    """

    more: dict[str, Any]

    def __new__(cls, context: Tensor, pooled: Tensor, more: dict[str, Any]) -> "Conditioning":
        """An empty `pooled` [1, 0] is none."""
        encoded = super().__new__(cls, context, pooled)
        encoded.more = more
        return encoded

    def entries(self) -> dict[str, Any]:
        """All that stands beside the context in ComfyUI's CONDITIONING."""
        return {**self.more, "pooled_output": self.pooled} if self.pooled.numel() else self.more


def with_context(encoded: EncodedPrompt, context: Tensor) -> EncodedPrompt:
    """The prompt with another context in its place, and all else as it is."""
    if isinstance(encoded, Conditioning):
        return Conditioning(context, encoded.pooled, encoded.more)
    return EncodedPrompt(context, encoded.pooled)


def entries_of(encoded: EncodedPrompt) -> dict[str, Any]:
    """All that stands beside the context of a prompt in ComfyUI's CONDITIONING."""
    return encoded.entries() if isinstance(encoded, Conditioning) else {"pooled_output": encoded.pooled}


class AttentionCapture(Protocol):
    """A request for attention columns, handed to a forward, which fills `maps`.

    Attributes:
        select: [b, text tokens, columns], the weights with which text keys are added up to columns.
        blocks: which blocks are read; None is all that have a text stream, -1 the last one.
        single: whether the single blocks of FLUX.1 are read as well; they are numbered on from the dual ones.
        maps: a block's number to [b, heads, image queries, columns], the post-softmax weight over all keys.
    """

    select: Tensor
    blocks: tuple[int, ...] | None
    single: bool
    maps: dict[int, Tensor]

    def read(self, q: Tensor, k: Tensor, block: int) -> None:
        """Reads one block; q and k [b, heads, text and image tokens, d] after norms and RoPE, the text in front."""


class TrainableLora(Protocol):
    """The float32 factors of the slices that are trained; B starts at zero.

    Attributes:
        scale: the strength at which they take part in a forward, and in its backward.
    """

    scale: float

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def tensors(self, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
        """The factors under their file keys, detached, on the CPU."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes over factors; raises KeyError when one is missing."""


@runtime_checkable
class ErasableModel(Protocol):
    """A loaded model as a velocity field, with trainable slices that can be on (student) or off (teacher).

    Attributes:
        device, dtype: where and in what precision the model computes.
        channels, downscale: the latent's channels, and pixels a cell.
        mu: the sampling shift that the model carries.
        last_time: the largest t at which the model predicts.
        noise_scale: the standard deviation of the noise n of x_t = (1 - t) x_0 + t n.
        module: the transformer, for hooks on its linears.
    """

    device: torch.device
    dtype: torch.dtype
    channels: int
    downscale: int
    mu: float
    last_time: float
    noise_scale: float

    @property
    def module(self) -> nn.Module: ...

    def attach(self, targets: str | tuple[str, ...], rank: int, generator: torch.Generator) -> TrainableLora:
        """Puts fresh adapters onto the targets' slices. Nothing changes until they are trained."""

    def attach_frozen_lora(self, tensors: dict[str, Tensor], strength: float = 1.0, student: bool = False) -> None:
        """Puts a trained LoRA under everything, or under the student alone; raises ValueError where it does not fit."""

    def embedder(self) -> tuple[str, str]:
        """The linear that brings a text's states in: its path in `module`, and its key in a file without `.lora_`."""

    def cond(self, context: Tensor, pooled: Tensor, guidance: float) -> Any:
        """A batch of conditions: context [b, tokens, features], pooled [b, features], one guidance for all."""

    def conds(self, encodings: Sequence[EncodedPrompt], guidance: float) -> Any:
        """A batch of conditions from prompts as their text encoder gives them, one a row."""

    def sigmas(self, steps: int, mu: float | None = None) -> Sigmas:
        """The times of a sampler, by the model's own schedule; mu is another shift where the model has one."""

    def capture(self, select: Tensor, blocks: tuple[int, ...] | None = None) -> AttentionCapture:
        """A request for attention columns, for `velocity` and `columns`."""

    def velocity(
        self, x_t: Tensor, sigma: Tensor, cond: Any, adapters: bool, capture: AttentionCapture | None = None
    ) -> Tensor:
        """v(x_t, t, cond) in x_t's shape and dtype: x_t [b, c, h, w], sigma [b]; no gradient without adapters."""

    def columns(
        self, x_t: Tensor, sigma: Tensor, cond: Any, adapters: bool, capture: AttentionCapture
    ) -> dict[int, Tensor]:
        """Only the attention columns: the forward may end at the last block that is read."""

    def trajectory(
        self, cond: Any, noise: Tensor, sigmas: Sigmas, adapters: bool = False
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Euler's walk from standard noise [b, c, h, w]: yields (x_t, velocity there), last (x_0, None).

        sigmas may be [steps + 1, b] too: times of each picture's own, of which the first is the same.
        """

    def uninterrupted(self) -> AbstractContextManager[None]:
        """Inside, a user's interrupt waits until the work is whole."""


class TextEncoder(Protocol):
    """Prompts to what the model and the search for a word's tokens need."""

    def pieces(self, text: str) -> list[str]:
        """The tokenizer's pieces of a prompt, one string a token of `encode`'s context; special tokens are ""."""

    def encode(self, text: str) -> EncodedPrompt:
        """The prompt, encoded once and kept."""


class MemoryEstimate(Protocol):
    """How backpropagation will be done, and what it takes in bytes; as text, a sentence for people.

    Attributes:
        gradient_checkpointing: blocks are recomputed in backward.
        activations: what a graph takes beside the weights.
        forward: what the host wants free for a forward in any case. A session gets the larger of both as `memory`.
    """

    # Properties: a frozen dataclass fits these, while a plain attribute would have to be writable.
    @property
    def gradient_checkpointing(self) -> bool: ...

    @property
    def activations(self) -> int: ...

    @property
    def forward(self) -> int: ...


class ModelHost(Protocol):
    """An application that holds a model and its text encoder, and lends them.

    Attributes:
        interrupts: the exceptions with which its user stops what runs.
    """

    interrupts: tuple[type[BaseException], ...]

    @property
    def downscale(self) -> int:
        """Pixels a latent cell, in each direction."""

    def check(self) -> None:
        """Raises ValueError when this model cannot be trained exactly, with the reason and what to do."""

    def text_encoder(self, keep: bool = True) -> TextEncoder:
        """The model's text encoder; `keep` encodes every prompt once."""

    def fingerprint(self) -> str:
        """Names the model's own weights, without any patch on them."""

    def release_others(self) -> None:
        """Takes everything but this model off its device."""

    def vocabulary(self) -> Iterable[str]:
        """The pieces of the text encoder's tokenizer that begin a word, "▁" in front of each."""

    def to_model_space(self, latents: Tensor) -> Tensor:
        """Latents as the host's users have them, in the space that the model works in; a float32 copy."""

    def estimate(
        self,
        tokens: int,
        width: int,
        height: int,
        batch: int,
        trained_bytes: int,
        dtype: torch.dtype | None,
        forward_batch: int = 0,
    ) -> MemoryEstimate:
        """What a graph takes.

        Args:
            tokens: text tokens of one sequence.
            width, height: of the picture, in pixels.
            batch: sequences of the largest graph.
            trained_bytes: what is trained, its gradients and its optimisers.
            dtype: of the model; None is the one that the host would use.
            forward_batch: sequences of the largest forward without a graph; 0 is `batch`.
        """

    def lora_size(self, targets: str | tuple[str, ...], rank: int) -> int:
        """How many weights a LoRA on these targets has."""

    def session(
        self, dtype: torch.dtype | None = None, gradient_checkpointing: bool = False, memory: int = 0
    ) -> AbstractContextManager[ErasableModel]:
        """Lends the model for training: whatever happens inside, afterwards it samples bit for bit as before."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one picture.

    Attributes:
        label: of the judge's labels; None is a rejection.
        score: how sure the judge is, in [0, 1]; None where it has no such number.
        counts: detections by class, of a detector.
    """

    label: str | None
    score: float | None = None
    counts: dict[str, int] = field(default_factory=dict)


class Judge(Protocol):
    """Reads pictures.

    Attributes:
        labels: what it can answer, besides None.
        identity: name, version, hash of the weights and every threshold, for the report.
    """

    labels: Sequence[str]
    identity: dict[str, str | float]

    def read(self, pictures: Tensor) -> list[Verdict]:
        """One verdict a picture; pictures [n, 3, h, w] in [0, 1], RGB."""
