"""How an attention learns in which block it is: by ComfyUI's options, by patches of blocks, or by object patches."""

from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType, MethodType

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

TOLD = "eraseanything_block"
BlockOf = Callable[[dict], tuple[str, int] | None]  # of an attention's transformer options; None: it is not meant


class Telling:
    """The model itself tells its attention in which block it is.

    Args:
        dual, single: number of blocks of each kind.
    """

    def __init__(self, dual: int, single: int = 0):
        self.dual, self.single = dual, single

    def patch(self, patcher):
        """Adds to a clone of the MODEL what has to be there before sampling."""

    def begin(self, options: dict) -> tuple[dict, BlockOf]:
        """A copy of the transformer options for one forward, and how its attention is told apart."""
        return dict(options), _of_comfyui

    def end(self):
        """The forward is over."""


def _of_comfyui(options: dict) -> tuple[str, int] | None:
    return (options["block_type"], options["block_index"]) if "block_index" in options else None


class BlockPatches(Telling):
    """Patches of the blocks tell it, where the model has them and does not tell by itself."""

    def begin(self, options):
        replaced = options.get("patches_replace", {})
        blocks = dict(replaced.get("dit", {}))
        for kind, count in (("double", self.dual), ("single", self.single)):
            for i in range(count):
                name = (f"{kind}_block", i)
                blocks[name] = partial(_patched, {"block_type": kind, "block_index": i}, blocks.get(name))
        return {**options, "patches_replace": {**replaced, "dit": blocks}}, _of_comfyui


def _patched(place: dict, before: Callable | None, inputs: dict, original: dict) -> dict:
    inputs = {**inputs, "transformer_options": {**inputs["transformer_options"], **place}}
    return before(inputs, original) if before else original["original_block"](inputs)


class CrossPatches(Telling):
    """Patches before each cross-attention of a U-Net tell it; its blocks count as dual, in the order they run."""

    def __init__(self, unet: UNetModel):
        found = []
        for part in ("input", "output"):
            for i, layers in enumerate(getattr(unet, f"{part}_blocks")):
                found += [(part, i, depth) for layer in layers for depth in _depths(layer)]
            if part == "input":
                found += [("middle", 0, depth) for layer in unet.middle_block or () for depth in _depths(layer)]
        super().__init__(len(found))
        self.numbers = {block: i for i, block in enumerate(found)}

    def begin(self, options):
        coming = set()

        def before(queries, keys, values, extra):
            coming.add((*extra["block"], extra["block_index"]))
            return queries, keys, values

        def after(output, extra):
            if coming:
                raise ValueError(
                    f"block {' '.join(map(str, extra['block']))} computes its cross-attention past ComfyUI's own, as "
                    "image prompt adapters do: use AttentionErase without them"
                )
            return output

        def block_of(options: dict) -> tuple[str, int] | None:
            block = (*options["block"], options["block_index"])
            if block not in coming:
                return None
            coming.remove(block)
            return "double", self.numbers[block]

        patches = dict(options.get("patches", {}))
        patches["attn2_patch"] = [*patches.get("attn2_patch", ()), before]
        patches["attn2_output_patch"] = [after, *patches.get("attn2_output_patch", ())]
        return {**options, "patches": patches}, block_of


def _depths(layer) -> range:
    return range(len(layer.transformer_blocks)) if type(layer) is SpatialTransformer else range(0)


class Modules(Telling):
    """Object patches of the modules that hold the attention tell it.

    Args:
        dual, single: paths of these modules in the diffusion model.
    """

    def __init__(self, dual: Sequence[str], single: Sequence[str] = ()):
        super().__init__(len(dual), len(single))
        self.paths = {("double", i): path for i, path in enumerate(dual)}
        self.paths |= {("single", i): path for i, path in enumerate(single)}

    def patch(self, patcher):
        for block, path in self.paths.items():
            name = f"diffusion_model.{path}.forward"
            patcher.add_object_patch(name, self.telling(block, patcher.get_model_object(name)))

    def telling(self, block: tuple[str, int], forward: Callable) -> Callable:
        """A module's forward that tells its block to the attention in it."""

        def told(*args, transformer_options: dict, **kwargs):
            return forward(*args, transformer_options={**transformer_options, TOLD: block}, **kwargs)

        return told

    def begin(self, options):
        return dict(options), lambda options: options.get(TOLD)


class Held(Modules):
    """Modules that are not given the options of the forward that runs."""

    options: dict | None = None  # of it

    def begin(self, options):
        self.options, block_of = super().begin(options)  # gets the override where the caller adds it
        return self.options, block_of

    def end(self):
        self.options = None


class Keeping(Held):
    """Blocks that keep the keys of their text from call to call, past its module: here they compute them anew.

    Args:
        dual: paths of the modules of cross-attention.
        blocks: paths of the blocks that hold them.
    """

    def __init__(self, dual: Sequence[str], blocks: Sequence[str]):
        super().__init__(dual)
        self.blocks = blocks

    def patch(self, patcher):
        super().patch(patcher)
        for path in self.blocks:
            name = f"diffusion_model.{path}.forward"
            patcher.add_object_patch(name, self.renewing(patcher.get_model_object(name)))

    def renewing(self, forward: Callable) -> Callable:
        """A block's forward without what it has kept of the text."""

        def renewed(*args, **kwargs):
            if self.options is not None:
                options = {**self.options, **kwargs.get("transformer_options", {})}
                kwargs |= {"transformer_options": options, "crossattn_cache": None}
            return forward(*args, **kwargs)

        return renewed


class Deaf(Held):
    """Modules whose attention takes no options: it is called with those of the forward."""

    def telling(self, block, forward):
        """The same code, where `optimized_attention` is a function that adds the options."""
        if not isinstance(forward, MethodType):
            raise ValueError("another node computes this model's cross-attention: use AttentionErase without it")
        own, names = forward.__func__, forward.__func__.__globals__

        def attend(*args, **kwargs):
            if self.options is not None:
                kwargs = {"transformer_options": {**self.options, TOLD: block}, **kwargs}
            return names["optimized_attention"](*args, **kwargs)

        heard = FunctionType(own.__code__, {**names, "optimized_attention": attend}, own.__name__, own.__defaults__)
        return MethodType(heard, forward.__self__)
