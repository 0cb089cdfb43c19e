"""The linears of a loaded model that read a prompt and nothing else: their weights, and what they are given.

What such a linear is given depends on neither time nor image. So one small forward a prompt shows it, which ends at the
last of these linears. FLUX.1 needs none, as its linears read the encodings as they are.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..lora.keys import WHOLE
from .any_model import AnyModel
from .checkpoint import base_weight, unpacked
from .families import class_name, family, is_flux_1
from .families.linears import POOLED, TRAINED, Linears
from .families.refused import untrainable
from .families.slices import embedders, linears_at
from .family_text import FamilyTextEncoder
from .host import ComfyHost
from .model import FluxModel
from .seam import CaptureComplete
from .text import ComfyTextEncoder
from .training_session import TRANSFORMER_PREFIX, training_session

FLUX_CONTEXT = "context_embedder"  # diffusers' names of the two linears of FLUX.1
FLUX_POOLED = "time_text_embed.text_embedder.linear_1"
FLUX_PATHS = {FLUX_CONTEXT: "txt_in", FLUX_POOLED: "vector_in.in_layer"}
# Cells of the latent that a prompt is shown with, in each direction. An embedder comes before the blocks, so the size
# costs nothing, and PixArt's positions have no smaller one; a cross-attention is inside of them.
CELLS_OF_EMBEDDER = 64
CELLS_OF_CROSS = 8
PIXELS = 64  # at least


class TextLinears:
    """The linears of a MODEL that read the text alone, by the names that an `Eraser` has for them.

    Args:
        patcher: the MODEL.
        clip: its text encoder.

    Attributes:
        keys: of linears that read the tokens of a prompt.
        pooled: of those that read one vector a prompt.

    Raises:
        ValueError: the MODEL has none.
    """

    def __init__(self, patcher: ModelPatcher, clip: Any) -> None:
        self.patcher = patcher
        self.text: Any = ComfyHost(patcher, clip).text_encoder()
        self.is_flux_1 = is_flux_1(patcher.model)
        if self.is_flux_1:
            self.keys, self.pooled = [FLUX_CONTEXT], [FLUX_POOLED]
        else:
            tokens, pooled = text_only_paths(patcher)
            self.keys = [f"{WHOLE}{path}" for path in tokens]
            self.pooled = [f"{WHOLE}{path}" for path in pooled]
        self.inputs: dict[tuple[str, str], Tensor] = {}  # by the first key of a group, and the prompt
        self.first: dict[str, str] = {}  # a key to the first one that is given the same

    def weight(self, key: str) -> Tensor:
        """The base's weight of a linear, [rows, columns], float32 on the CPU; only this one is made."""
        path = self._path(key)
        linear: Any = self.patcher.model.diffusion_model.get_submodule(path)
        unpack = getattr(linear, "cast_bias_weight", None)
        if unpack is not None:  # GGUF's layers unpack themselves
            return unpack(torch.zeros(1))[0].detach().float().cpu()
        return unpacked(base_weight(self.patcher, f"{TRANSFORMER_PREFIX}{path}.weight")).detach().float().cpu()

    def group(self, key: str) -> str:
        """The first of the linears that are given the same as this one."""
        return self.first.get(key, key)

    def read(self, prompts: Iterable[str], progress: Callable[[int], None]) -> None:
        """Finds out what the linears are given for each of these prompts.

        Args:
            prompts: each is encoded once.
            progress: called with the number of prompts so far; what it raises ends the work.
        """
        prompts = list(dict.fromkeys(prompts))
        # Before the model is lent, for the text encoder may have to leave the device then.
        for done, prompt in enumerate(prompts, 1):
            self.text.encode(prompt)
            progress(done)
        if not self.is_flux_1:
            with training_session(self.patcher) as model, torch.no_grad():
                for prompt in prompts:
                    self._keep(prompt, self._shown(model, prompt))

    def states(self, key: str, prompt: str) -> Tensor:
        """What a linear is given for a prompt that was read, [tokens, columns]; one row for a pooled one."""
        if key == FLUX_CONTEXT:
            return self.text.encode(prompt).context[0]
        if key == FLUX_POOLED:
            return self.text.encode(prompt).pooled
        return self.inputs[self.group(key), prompt]

    def pieces(self, key: str, prompt: str) -> list[str]:
        """The pieces of the prompt at the rows of `states`.

        Raises:
            ValueError: which piece stands where is not known for this family.
        """
        if isinstance(self.text, ComfyTextEncoder):
            return self.text.pieces(prompt)
        return _pieces_of(self.text, prompt, len(self.states(key, prompt)))

    def _path(self, key: str) -> str:
        return FLUX_PATHS[key] if self.is_flux_1 else key.removeprefix(WHOLE)

    def _shown(self, model: FluxModel | AnyModel, prompt: str) -> dict[str, Tensor]:
        """The inputs of all linears in one forward that ends once each has been seen."""
        found: dict[str, Tensor] = {}
        wanted = [*self.keys, *self.pooled]

        def reader(key: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def read(_: nn.Module, args: tuple[Any, ...]) -> None:
                found.setdefault(key, args[0].float().cpu().flatten(0, -2).clone())
                if len(found) == len(wanted):
                    raise CaptureComplete

            return read

        handles = [model.module.get_submodule(self._path(key)).register_forward_pre_hook(reader(key)) for key in wanted]
        try:
            with suppress(CaptureComplete):
                self._forward(model, prompt)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _forward(self, model: FluxModel | AnyModel, prompt: str) -> None:
        module = self.patcher.model.diffusion_model
        cells = CELLS_OF_EMBEDDER if embedders(module) else CELLS_OF_CROSS
        # SD3's table of positions ends; only a small one ends before this many cells.
        most = getattr(module, "pos_embed_max_size", None)
        if most:
            cells = min(cells, most * module.patch_size)
        side = max(cells, PIXELS // model.downscale)
        x = torch.zeros(1, model.channels, side, side)
        conds = model.conds([self.text.encode(prompt)], 1.0)
        model.velocity(x, torch.full((1,), 0.5), conds, adapters=False)

    def _keep(self, prompt: str, found: dict[str, Tensor]) -> None:
        """Keeps each input once: all cross-attentions of a U-Net are given the same."""
        if not self.first:
            self.first = _groups(found)
            # A linear that a forward does not reach reads nothing that a prompt says.
            self.keys = [key for key in self.keys if key in found]
            self.pooled = [key for key in self.pooled if key in found]
        context = self.text.encode(prompt).context[0]
        for key in set(self.first.values()):
            self.inputs[key, prompt] = _without_front_padding(found[key], context)


def _without_front_padding(states: Tensor, context: Tensor) -> Tensor:
    """The rows of a prompt's own tokens where a class has padded its encoding in front, as FLUX.2 does."""
    own = states[-len(context) :]
    is_padded = len(states) > len(context) and own.shape == context.shape and torch.equal(own, context.to(own))
    return own if is_padded else states


def _groups(found: dict[str, Tensor]) -> dict[str, str]:
    """Every key to the first one with the same input."""
    first: dict[str, str] = {}
    for key, states in found.items():
        same = [other for other in set(first.values()) if torch.equal(found[other], states)]
        first[key] = same[0] if same else key
    return first


def _pieces_of(text: FamilyTextEncoder, prompt: str, length: int) -> list[str]:
    """The pieces of the one encoding that has as many tokens, or of the only one, which a class may have padded."""
    encodings = text.encoding_pieces(prompt)
    fitting = [pieces for pieces in encodings if len(pieces) == length]
    if len(fitting) == 1:
        return fitting[0]
    if len(encodings) == 1 and len(encodings[0]) < length:
        return encodings[0] + [""] * (length - len(encodings[0]))
    raise ValueError(
        f"a linear of {family(text.model)} is given {length} tokens, and which word each is of is not known: "
        "train an eraser with Erase Trainer"
    )


def text_only_paths(patcher: ModelPatcher) -> tuple[list[str], list[str]]:
    """The linears of any family but FLUX.1 that read a prompt's tokens, and those that read its pooled vector.

    Behind each other only the first one reads what the text encoder says; what it makes is edited with it.

    Raises:
        ValueError: the MODEL takes no text, or has no such linears.
    """
    reason = untrainable(patcher.model)
    if reason:
        raise ValueError(f"the MODEL is of {family(patcher)}: {reason}")
    module = patcher.model.diffusion_model
    table = TRAINED[class_name(module)]
    embedders = [entry for entry in table if entry.tokens == "embedder"]
    paths = _paths(module, embedders[:1] or [entry for entry in table if entry.tokens == "cross"])
    if not paths:
        raise ValueError(
            f"the MODEL is of {family(patcher)}, where every linear reads the image as well as the text: "
            "train an eraser with Erase Trainer"
        )
    pooled = POOLED.get(class_name(module))
    return paths, [path for path, _ in linears_at(module, pooled)] if pooled else []


def _paths(module: nn.Module, entries: Sequence[Linears]) -> list[str]:
    return [path for entry in entries for path, _ in linears_at(module, entry.path)]
