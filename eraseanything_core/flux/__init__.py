"""The bridge: the one part of the core that imports ComfyUI; it runs the Flux that ComfyUI has loaded."""

import sys

import comfy.cli_args
import torch

if "comfy.model_management" not in sys.modules and not torch.cuda.is_available():
    comfy.cli_args.args.cpu = True  # outside a server nobody has parsed --cpu, and ComfyUI would ask for CUDA

from .architecture import new_autoencoder, new_flux, t5_tokenizer
from .attacks import breed, invert, relearn
from .capture import Capture
from .gradients import exact_gradients
from .layouts import family, is_flux, layout
from .loan import borrow, check_model, fingerprint
from .model import Cond, FluxModel
from .previews import pictures_of, small_pictures
from .text import TextEncoder, context_pieces
from .training import train_eraser
from .twin import private_copy

__all__ = [
    "Capture",
    "Cond",
    "FluxModel",
    "TextEncoder",
    "borrow",
    "breed",
    "check_model",
    "context_pieces",
    "exact_gradients",
    "family",
    "fingerprint",
    "invert",
    "is_flux",
    "layout",
    "new_autoencoder",
    "new_flux",
    "pictures_of",
    "private_copy",
    "relearn",
    "small_pictures",
    "t5_tokenizer",
    "train_eraser",
]
