"""The laboratory: trains the small models and measures the pack on them. The core never imports it."""

from importlib.util import find_spec

if find_spec("comfy") and find_spec("torch"):
    import comfy.cli_args
    import torch

    if not torch.cuda.is_available():
        # Only ComfyUI's server parses --cpu. Without it, ComfyUI asks for CUDA as soon as it is imported.
        comfy.cli_args.args.cpu = True
