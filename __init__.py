"""ComfyUI-EraseAnything: erases a concept from Flux and hands back a LoRA."""

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES
from .nodes.shared.folders import register_judges
from .nodes.shared.small_models import register_tinyflux

WEB_DIRECTORY = "./web"


class EraseAnything(ComfyExtension):
    """The pack as ComfyUI loads it."""

    async def on_load(self) -> None:
        """Runs once ComfyUI loads the pack: importing it changes nothing."""
        register_judges()
        register_tinyflux()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All node classes."""
        return NODES


async def comfy_entrypoint() -> EraseAnything:
    """What ComfyUI calls after the import."""
    return EraseAnything()
