"""The core of ComfyUI-EraseAnything: plain torch; only `comfy_bridge` imports ComfyUI."""
