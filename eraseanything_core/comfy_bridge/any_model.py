"""A model of any class as everything above the bridge sees it; see `protocols.ErasableModel`."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import comfy.utils
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from ..attention.blocks import Block
from ..lora.factors import Eraser
from ..lora.keys import LinearSlice
from ..protocols import AttentionCapture, EncodedPrompt
from ..transfers import on_device
from .capture import Capture, merged, of_one_size
from .families import class_name
from .families.block_reporters import StoredOptionsReporter
from .families.located import heads_apart, located_columns, read_columns
from .families.slices import role_slices
from .families.table import LAYOUTS, Layout
from .lora_files import read_whole_linears
from .road import Conditions, Prompts, Road, arguments, equal_rows
from .seam import AdaptedModel, CaptureComplete


class AnyModel(AdaptedModel):
    """A loaded model of any class as a velocity field, with trainable slices that can be on or off.

    Latents have the shape [b, c, h, w] here also where the class has an axis for frames; it is put in and taken out.

    Args:
        road: the model's prediction.
        layout: where the text stands in its attention.
        device, dtype: where and in what precision it computes.
    """

    def __init__(self, road: Road, layout: Layout, device: torch.device | str, dtype: torch.dtype) -> None:
        latent_format = road.base.latent_format
        module = road.base.diffusion_model
        super().__init__(module, device, dtype, latent_format.spacial_downscale_ratio, latent_format.latent_channels)
        self.road = road
        self.layout = layout
        self.mu = road.mu
        self.last_time = road.last_time
        self.noise_scale = road.noise_scale

    @property
    def remembering(self) -> StoredOptionsReporter | None:
        """What keeps the options of a forward outside of its arguments, if anything does."""
        reporter = self.layout.reporter
        return reporter if isinstance(reporter, StoredOptionsReporter) else None

    def conds(self, encodings: Sequence[EncodedPrompt], guidance: float) -> Prompts:
        """A batch of conditions at one guidance, one prompt a row."""
        return Prompts(tuple(encodings), float(guidance))

    def cond(self, context: Tensor, pooled: Tensor, guidance: float) -> Prompts:
        """A batch of prompts that are a context and a pooled vector alone; see `conds`."""
        rows = zip(context.split(1), pooled.split(1), strict=True)
        return self.conds([EncodedPrompt(*row) for row in rows], guidance)

    def sigmas(self, steps: int, mu: float | None = None) -> Tensor:
        """The times of a sampler, [steps + 1], falling to 0; see `Road.sigmas`."""
        return self.road.sigmas(steps, mu)

    def embedder(self) -> tuple[str, str]:
        """The first of them, where there are several.

        Raises:
            ValueError: the family has none.
        """
        first = role_slices(self.road.base, self.module, "embedder")[0]
        return first.module, first.file_key

    def _slices(self, targets: str | tuple[str, ...]) -> list[LinearSlice]:
        return role_slices(self.road.base, self.module, targets)

    def _read(self, tensors: dict[str, Tensor]) -> Eraser:
        return read_whole_linears(self.road.base, self.module, tensors, {}, "the LoRA")

    def _start(self, noise: Tensor, t: Tensor) -> Tensor:
        return self.road.start(noise, t)

    def _predict(
        self, x_t: Tensor, sigma: Tensor, cond: Prompts, capture: AttentionCapture | None, stop: bool
    ) -> Tensor:
        x = on_device(x_t, self.device)
        t = on_device(sigma, self.device)
        if self.road.frames:
            x = x[:, :, None]
        conditions = self.road.of_rows(cond, x)
        groups = equal_rows(conditions)
        velocities = []
        parts = []
        for rows in groups:
            part = None if capture is None else Capture(capture.select[rows], capture.blocks)
            parts.append(part)
            own = [conditions[row] for row in rows]
            encodings = [cond.encodings[row] for row in rows]
            with suppress(CaptureComplete):
                velocities.append(self._forward(x[rows], t[rows], encodings, own, part, stop))
        order = torch.tensor([row for rows in groups for row in rows]).argsort()
        if capture is not None:
            capture.maps = of_one_size(merged([part.maps for part in parts if part is not None], order))
        if len(velocities) < len(groups):
            raise CaptureComplete
        v = torch.cat(velocities)[order.to(self.device)] if len(groups) > 1 else velocities[0]
        return v[:, :, 0] if self.road.frames else v

    def _forward(
        self,
        x: Tensor,
        t: Tensor,
        encodings: Sequence[EncodedPrompt],
        conditions: Sequence[Conditions],
        capture: Capture | None,
        stop: bool,
    ) -> Tensor:
        """The velocity of rows whose conditions are of equal shapes."""
        # HiDream-O1 keeps its text's keys from forward to forward, and they are another adapter's after a step.
        forget = getattr(self.module, "clear_kv_cache", None)
        if forget is not None:
            forget()
        options = self._options(x, encodings, conditions, capture, stop)
        return self.road.velocity(x, t, conditions, options)

    def _options(
        self,
        x: Tensor,
        encodings: Sequence[EncodedPrompt],
        conditions: Sequence[Conditions],
        capture: Capture | None,
        stop: bool,
    ) -> dict[str, Any]:
        """The transformer options of one forward: its attention reads the columns of `capture` on the way."""
        if capture is None:
            # Attention that is given no options takes those that are remembered for it.
            plain = self.remembering.begin({})[0] if self.remembering else {}
            plain["optimized_attention_override"] = _plain_attention
            return plain
        given = arguments(conditions)
        columns = self._columns(encodings, conditions, given, capture)
        options, first, locate = self.layout.begin({}, x, columns[0], given)
        keys = torch.stack([first, *(self.layout.texts.keys(column, given) for column in columns[1:])], dim=-1)
        wanted = self._wanted_blocks(capture)

        def attend(
            _: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **rest: Any
        ) -> Tensor:
            apart = rest.get("skip_reshape", False)  # whether the heads have an axis of their own
            position = locate(len(k), k.shape[2 if apart else 1], rest.pop("transformer_options", {}))
            if position is not None and position.block in wanted:
                queries, others = (q, k) if apart else (heads_apart(q, heads), heads_apart(k, heads))
                # A complete capture comes here again when a block is recomputed in backward. It must not stop there.
                was_complete = len(capture.maps) == len(wanted)
                read = read_columns(queries, others, keys, position, mask, rest.get("scale"))
                # The loss hangs on the first result; a recomputation only has to do the same work.
                capture.maps.setdefault(position.block[1], read)
                if stop and not was_complete and len(capture.maps) == len(wanted):
                    raise CaptureComplete
            # Other backends have no backward (sage), or cut the work by free memory, which a recomputation must not.
            return attention_pytorch(q, k, v, heads, mask=mask, **rest)

        options["optimized_attention_override"] = attend
        return options

    def _columns(
        self,
        encodings: Sequence[EncodedPrompt],
        conditions: Sequence[Conditions],
        given: dict[str, Any],
        capture: Capture,
    ) -> list[Tensor]:
        """The columns of `capture` at the tokens of the forward, see `located_columns`, which compares encodings."""
        return located_columns(self.layout, encodings, conditions, given, capture)

    def _wanted_blocks(self, capture: Capture) -> set[Block]:
        """The blocks to read: of the dual ones where the family has any, else of the single ones."""
        reporter = self.layout.reporter
        kind = "double" if reporter.dual else "single"
        blocks = range(reporter.dual or reporter.single)
        # Indexing the range turns -1 into the last block.
        chosen = blocks if capture.blocks is None else [blocks[i] for i in capture.blocks]
        return {(kind, i) for i in chosen}


def any_model(
    base: Any, module: nn.Module, model_sampling: Any, device: torch.device | str, dtype: torch.dtype
) -> AnyModel:
    """A model of any class over a view of its diffusion model; for the arguments see `Road`."""
    road = Road(base, module, model_sampling, device, dtype)
    layout = LAYOUTS[class_name(module)](module)
    # Before anything wraps the blocks: a reporter may put its own forward into one.
    layout.reporter.patch(ViewPatcher(road.base))
    return AnyModel(road, layout, device, dtype)


class ViewPatcher:
    """What a reporter of blocks sees of ComfyUI's patcher, on the modules of a view, which go with it."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def get_model_object(self, name: str) -> Any:
        """An attribute of the BaseModel by its path."""
        return comfy.utils.get_attr(self.base, name)

    def add_object_patch(self, name: str, value: Any) -> None:
        """Sets it."""
        path, _, attribute = name.rpartition(".")
        setattr(self.base.get_submodule(path), attribute, value)


def _plain_attention(_: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **rest: Any) -> Tensor:
    rest.pop("transformer_options", None)
    out: Tensor = attention_pytorch(q, k, v, heads, *args, **rest)
    return out
