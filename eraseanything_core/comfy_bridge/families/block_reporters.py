"""How an attention learns in which block it is.

ComfyUI hands the transformer options down to the attention. Some models write the block into them; others do not, or
do not hand them down. A block is a pair of its kind ("double" or "single", as ComfyUI says) and its index.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ...attention.blocks import Block, Options

BLOCK_OPTION = "eraseanything_block"  # the transformer option of our own that holds a block

BlockOf = Callable[[Options], Block | None]  # of an attention's options; None: it is not one that reads the text


class OptionsReporter:
    """For models that write the block into the options of their attention.

    Args:
        dual, single: number of blocks of each kind.
    """

    def __init__(self, dual: int, single: int = 0):
        self.dual = dual
        self.single = single

    def patch(self, patcher: Any) -> None:
        """Adds to a clone of the MODEL what has to be there before sampling."""

    def begin(self, options: Options) -> tuple[Options, BlockOf]:
        """A copy of the transformer options for one forward, and how to read the block from an attention's options."""
        return dict(options), _block_of_comfyui

    def end(self) -> None:
        """Is called when the forward is over."""


def _block_of_comfyui(options: Options) -> Block | None:
    if "block_index" not in options:
        return None
    return options["block_type"], options["block_index"]


class BlockPatchReporter(OptionsReporter):
    """For models that do not write the block, but let a block be replaced: the replacement writes it."""

    def begin(self, options: Options) -> tuple[Options, BlockOf]:
        replacements = options.get("patches_replace", {})
        blocks = dict(replacements.get("dit", {}))
        for kind, count in (("double", self.dual), ("single", self.single)):
            for i in range(count):
                key = (f"{kind}_block", i)
                # Another node may have replaced the block already. Its replacement runs inside ours.
                blocks[key] = partial(_run_with_block, {"block_type": kind, "block_index": i}, blocks.get(key))
        return {**options, "patches_replace": {**replacements, "dit": blocks}}, _block_of_comfyui


def _run_with_block(block: Options, replacement: Callable | None, inputs: dict, original: dict) -> dict:
    """A block's replacement, as ComfyUI calls it, that runs the block with its number in the options."""
    inputs = {**inputs, "transformer_options": {**inputs["transformer_options"], **block}}
    if replacement is not None:
        return replacement(inputs, original)
    return original["original_block"](inputs)


class UNetReporter(OptionsReporter):
    """For U-Nets, by ComfyUI's patches around each cross-attention. Blocks count as dual, in the order they run."""

    def __init__(self, unet: UNetModel):
        self.numbers: dict[tuple[str, int, int], int] = {}
        for location in _unet_blocks(unet):
            self.numbers[location] = len(self.numbers)
        super().__init__(len(self.numbers))

    def begin(self, options: Options) -> tuple[Options, BlockOf]:
        # The cross-attentions that are about to run, by their location in the U-Net. ComfyUI hands the same options to
        # self-attention and cross-attention; only the patch in front of the latter tells them apart.
        pending: set[tuple[str, int, int]] = set()

        def before(queries: Any, keys: Any, values: Any, extra: Options) -> tuple[Any, Any, Any]:
            pending.add((*extra["block"], extra["block_index"]))
            return queries, keys, values

        def after(output: Any, extra: Options) -> Any:
            if pending:
                raise ValueError(
                    f"block {' '.join(map(str, extra['block']))} computes its cross-attention past ComfyUI's own, as "
                    "image prompt adapters do: use AttentionErase without them"
                )
            return output

        def block_of(options: Options) -> Block | None:
            location = (*options["block"], options["block_index"])
            if location not in pending:
                return None
            pending.remove(location)
            return "double", self.numbers[location]

        patches = dict(options.get("patches", {}))
        patches["attn2_patch"] = [*patches.get("attn2_patch", ()), before]
        patches["attn2_output_patch"] = [after, *patches.get("attn2_output_patch", ())]
        return {**options, "patches": patches}, block_of


def _unet_blocks(unet: UNetModel) -> list[tuple[str, int, int]]:
    """The location (part, block, depth) of each transformer block of a U-Net, in the order they run."""
    parts = [
        ("input", list(unet.input_blocks)),
        ("middle", [unet.middle_block or ()]),
        ("output", list(unet.output_blocks)),
    ]
    locations = []
    for part, blocks in parts:
        for i, layers in enumerate(blocks):
            for layer in layers:
                # Video U-Nets have a subclass that attends over time as well.
                if type(layer) is SpatialTransformer:
                    locations += [(part, i, depth) for depth in range(len(layer.transformer_blocks))]
    return locations


class ModuleReporter(OptionsReporter):
    """For models without any of this: the modules that hold the attention get a forward that writes the block.

    Args:
        dual, single: paths of these modules in the diffusion model.
    """

    def __init__(self, dual: Sequence[str], single: Sequence[str] = ()):
        super().__init__(len(dual), len(single))
        self.paths: dict[Block, str] = {}
        for kind, paths in (("double", dual), ("single", single)):
            for i, path in enumerate(paths):
                self.paths[kind, i] = path

    def patch(self, patcher: Any) -> None:
        for block, path in self.paths.items():
            name = f"diffusion_model.{path}.forward"
            # An object patch of ComfyUI's is in place only while this clone samples.
            patcher.add_object_patch(name, self.reporting(block, patcher.get_model_object(name)))

    def reporting(self, block: Block, forward: Callable) -> Callable:
        """A module's forward that hands its block to the attention in it."""

        def run(*args: Any, transformer_options: Options, **kwargs: Any) -> Any:
            return forward(*args, transformer_options={**transformer_options, BLOCK_OPTION: block}, **kwargs)

        return run

    def begin(self, options: Options) -> tuple[Options, BlockOf]:
        return dict(options), _block_of_ours


def _block_of_ours(options: Options) -> Block | None:
    return options.get(BLOCK_OPTION)


class StoredOptionsReporter(ModuleReporter):
    """For modules that are not given the options of the forward that runs: they are stored here for that long."""

    options: Options | None = None  # None between forwards

    def begin(self, options: Options) -> tuple[Options, BlockOf]:
        # The caller adds its override to the dict that is returned, so the stored one has it as well.
        self.options, block_of = super().begin(options)
        return self.options, block_of

    def end(self) -> None:
        self.options = None


class TextCacheReporter(StoredOptionsReporter):
    """For blocks that cache the keys of their text from call to call, past its module: here they compute them anew.

    Args:
        dual: paths of the modules of cross-attention.
        blocks: paths of the blocks that hold them.
    """

    def __init__(self, dual: Sequence[str], blocks: Sequence[str]):
        super().__init__(dual)
        self.blocks = blocks

    def patch(self, patcher: Any) -> None:
        super().patch(patcher)
        for path in self.blocks:
            name = f"diffusion_model.{path}.forward"
            patcher.add_object_patch(name, self.without_cache(patcher.get_model_object(name)))

    def without_cache(self, forward: Callable) -> Callable:
        """A block's forward that ignores the cached keys of the text."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if self.options is not None:
                options = {**self.options, **kwargs.get("transformer_options", {})}
                kwargs |= {"transformer_options": options, "crossattn_cache": None}
            return forward(*args, **kwargs)

        return run


class ReboundAttentionReporter(StoredOptionsReporter):
    """For modules that call ComfyUI's attention without any options."""

    def reporting(self, block: Block, forward: Callable) -> Callable:
        """The same code, in which `optimized_attention` is a function that adds the options.

        Raises:
            ValueError: another node has put something else in the forward's place.
        """
        if not isinstance(forward, MethodType):
            raise ValueError("another node computes this model's cross-attention: use AttentionErase without it")
        function = forward.__func__
        module_names = function.__globals__

        def attend(*args: Any, **kwargs: Any) -> Any:
            if self.options is not None:
                kwargs = {"transformer_options": {**self.options, BLOCK_OPTION: block}, **kwargs}
            # Looked up at each call: another node may replace the module's attention later.
            return module_names["optimized_attention"](*args, **kwargs)

        # A function with the module's own code but other globals: nothing of the module is copied or changed.
        names = {**module_names, "optimized_attention": attend}
        rebound = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
        return MethodType(rebound, forward.__self__)
