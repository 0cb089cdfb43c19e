"""The laboratory: trains the small models and measures the pack on them. The core never imports it."""

from importlib.util import find_spec

if find_spec("comfy") and find_spec("torch"):
    import comfy.cli_args
    import torch

    # ComfyUI looks for cards of Intel and Apple by itself. Without any card it asks for CUDA as soon as it is
    # imported, and only its server parses --cpu.
    cards = (torch.cuda, getattr(torch, "xpu", None), torch.backends.mps)
    if not any(card and card.is_available() for card in cards):
        comfy.cli_args.args.cpu = True
