"""The examples run as they are, with TinyFlux in the place of FLUX.1."""

import importlib.util
import os
import sys
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.utils

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "eraseanything_core" / "tinyflux" / "weights"


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_headless_training_writes_a_lora_that_comfyui_loads(pack, tmp_path, monkeypatch, capsys):
    example = load_example("train_headless")
    file = tmp_path / "no_heart.safetensors"

    def load_text_encoder(files: list[Path]):
        # TinyFlux's text encoder is none that ComfyUI knows: the pack's node loads it.
        return pack["EraseAnything_TinyFlux"].PREPARE_CLASS_CLONE(None).execute(files[0].name).args[0]

    monkeypatch.setattr(sys, "path", list(sys.path))  # the example puts ComfyUI in front
    monkeypatch.setattr(example, "load_text_encoder", load_text_encoder)
    example.main(
        [
            *("--comfyui", os.environ["COMFYUI_PATH"], "--cpu"),
            *("--model", str(WEIGHTS / "tinyflux.safetensors")),
            *("--text-encoders", str(WEIGHTS / "tinyflux_text.safetensors")),
            *("--concept", "heart", "--output", str(file)),
            *("--preset", "quick", "--steps", "2", "--size", "96"),
        ]
    )
    assert "step 2: esd" in capsys.readouterr().out
    model = example.load_model(WEIGHTS / "tinyflux.safetensors")
    tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(file)))
    patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model.model, {}))
    # Queries and keys of the text stream in TinyFlux's two dual blocks, each a pair of factors.
    assert len(tensors) == 8 and len(patches) == 4
    assert len(model.add_patches(patches, 1.0)) == 4
