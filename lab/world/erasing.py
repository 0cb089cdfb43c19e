"""Erases a concept from a model of the world as *Erase Trainer* does.

ComfyUI loads the files, and only the word is given: all other words are Concept Sampler's. The size of the pictures is
the one setting beside the preset, because the world has 96 px.
"""

import copy
import importlib
import sys
from pathlib import Path
from types import ModuleType

import comfy.sd
import comfy.utils
import torch
from torch import Tensor, nn

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.lora_files import eraser_for
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.erasers.registry import method_of
from eraseanything_core.lora.factors import Eraser, add_to_weight, by_module
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.presets import run_config
from eraseanything_core.training.recipe import train_eraser
from eraseanything_core.training.trainer import EraseResult
from lab.tinyflux import precision
from lab.world.export import EXPORT, export
from lab.world.files import ROOT
from lab.world.sampling import Sampler
from lab.world.scenes import SIDE


def pack_module(name: str) -> ModuleType:
    """A module of the pack's nodes, without the other nodes, which need ComfyUI's server."""
    for package, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        sys.modules.setdefault(package, _package(package, folder))
    return importlib.import_module(f"pack.nodes.{name}")


def _package(name: str, folder: Path) -> ModuleType:
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    return package


def host_of(name: str) -> ComfyHost:
    """A generator and the text encoder as ComfyUI loads their exported files."""
    export()
    options = {"dtype": precision.DTYPE}
    model = comfy.sd.load_diffusion_model(str(EXPORT / f"{name}.safetensors"), model_options=options)
    state = comfy.utils.load_torch_file(str(EXPORT / "text.safetensors"))
    return ComfyHost(model, comfy.sd.CLIP(pack_module("tinyflux").Target(state), state_dict=state))


def preset_config(concept: str, preset: str, **typed) -> EraseConfig:
    """The node's settings when the word alone is typed; `typed` go over the preset."""
    words = sample_offline(ConceptRequest(concept)).settings()
    return run_config(words, preset, {"width": SIDE, "height": SIDE, **typed})


def train(host: ComfyHost, config: EraseConfig) -> EraseResult:
    """One eraser."""
    return train_eraser(host, config, method=method_of(config))


def erased(sampler: Sampler, host: ComfyHost, lora: dict[str, Tensor], strength: float = 1.0) -> Sampler:
    """The sampler with an eraser in the generator's weights."""
    generator = copy.deepcopy(sampler.generator)
    merge(generator.net, eraser_for(host.model, lora, {}, "the eraser"), strength)
    changed = copy.copy(sampler)
    changed.generator = generator
    return changed


@torch.no_grad()
def merge(net: nn.Module, eraser: Eraser, strength: float) -> None:
    """Adds an eraser to the weights, as the stock loader does."""
    linears = dict(net.named_modules())
    for name, parts in by_module(eraser).items():
        for start, factors in parts:
            add_to_weight(linears[name].weight.data, start, factors, strength)
