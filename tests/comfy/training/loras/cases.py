"""What the tests of the LoRA nodes share: names of erasers, and velocities of a MODEL."""

from pathlib import Path

import comfy.model_management
import nodes
import torch

ROOT = Path(__file__).resolve().parents[4]
CONCEPTS = ("star", "tree", "dog")


def chosen(*files):
    """The file inputs of Multi Erase LoRA: names, or pairs of a name and a weight; the rest is none."""
    values = {}
    for number in range(1, 9):
        file = files[number - 1] if number <= len(files) else "none"
        name, weight = file if isinstance(file, tuple) else (file, 1.0)
        values |= {f"file_{number}": name, f"weight_{number}": weight}
    return values


def execute(node, values):
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**values)


def velocity(patcher, t=0.6):
    """v of a MODEL as the sampler calls it, through its wrappers."""
    comfy.model_management.load_models_gpu([patcher])
    g = torch.Generator().manual_seed(9)
    x, context, pooled = (torch.randn(*s, generator=g) for s in ((2, 16, 12, 12), (2, 32, 128), (2, 64)))
    sigma = torch.full((2,), t)
    options = comfy.model_patcher.create_model_options_clone(patcher.model_options)["transformer_options"]
    options["wrappers"] = comfy.model_patcher.comfy.patcher_extension.copy_nested_dicts(patcher.wrappers)
    with torch.inference_mode():
        x_0 = patcher.model.apply_model(
            x, sigma, c_crossattn=context, y=pooled, guidance=torch.full((2,), 2.0), transformer_options=options
        )
    return (x - x_0) / t


def relative(a, b):
    return float((a - b).norm() / b.norm())


def chained(patcher, weights):
    for concept, weight in zip(CONCEPTS, weights, strict=True):
        patcher, _ = nodes.LoraLoader().load_lora(patcher, None, f"{concept}.safetensors", weight, 0)
    return patcher
