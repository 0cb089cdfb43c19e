"""ComfyUI-EraseAnything: erases a concept from Flux and hands back a LoRA."""

from comfy_api.latest import ComfyExtension

from .nodes import NODES

WEB_DIRECTORY = "./web"


class EraseAnything(ComfyExtension):
    async def get_node_list(self):
        return NODES


async def comfy_entrypoint():
    return EraseAnything()
