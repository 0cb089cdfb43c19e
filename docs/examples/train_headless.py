"""Trains an eraser without a workflow: ComfyUI loads FLUX.1, the core trains, and a LoRA file is written.

    python docs/examples/train_headless.py --comfyui ~/ComfyUI --concept cat --output no_cat.safetensors \
        --model flux1-dev.safetensors --text-encoders clip_l.safetensors t5xxl_fp8_e4m3fn.safetensors

Run it with ComfyUI's Python from anywhere. Synonyms and words to keep come from WordNet, which ships with the pack.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--model", type=Path, required=True, help="the diffusion model's file")
    parser.add_argument("--text-encoders", type=Path, nargs="+", required=True, help="the files of CLIP-L and T5-XXL")
    parser.add_argument("--concept", required=True, help="the word to erase")
    parser.add_argument("--output", type=Path, required=True, help="the LoRA file to write")
    parser.add_argument("--preset", default="balanced", help="quick, balanced, thorough, paper or reference")
    parser.add_argument("--steps", type=int, help="training steps, instead of the preset's")
    parser.add_argument("--size", type=int, default=512, help="width and height of the training images in pixels")
    parser.add_argument("--cpu", action="store_true", help="compute on the CPU")
    return parser.parse_args(argv)


def set_up_comfyui(folder: Path, cpu: bool) -> None:
    """Makes ComfyUI and the core importable, and chooses the device."""
    # ComfyUI goes first: both have a folder `nodes`, and ComfyUI's own imports mean its own.
    sys.path[:0] = [str(folder), str(ROOT)]
    from comfy.cli_args import args

    # ComfyUI reads this once, when its memory management is imported.
    args.cpu = cpu


def load_model(file: Path) -> Any:
    """The MODEL of a diffusion model's file, as *Load Diffusion Model* gives it."""
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(file))


def load_text_encoder(files: Sequence[Path]) -> Any:
    """The CLIP of FLUX.1's two text encoders, as *DualCLIPLoader* gives it."""
    import comfy.sd

    return comfy.sd.load_clip([str(file) for file in files], clip_type=comfy.sd.CLIPType.FLUX)


def settings(options: argparse.Namespace) -> Any:
    """The `EraseConfig` of a run: the preset, then the words of the concept, then what was typed."""
    from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
    from eraseanything_core.training.config import EraseConfig
    from eraseanything_core.training.presets import PRESETS

    words = sample_offline(ConceptRequest(options.concept))
    print(words.text())
    config = EraseConfig(options.concept, width=options.size, height=options.size)
    config = dataclasses.replace(config, **PRESETS[options.preset])
    # After the preset: without synonyms, the words turn the contrastive loss off.
    config = dataclasses.replace(config, **words.settings())
    return dataclasses.replace(config, steps=options.steps or config.steps)


def show_progress(step: int, losses: dict[str, float]) -> None:
    print(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in losses.items()))


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    set_up_comfyui(options.comfyui, options.cpu)
    from eraseanything_core.comfy_bridge.host import ComfyHost
    from eraseanything_core.lora.files import save_lora
    from eraseanything_core.lora.headers import training_header
    from eraseanything_core.training.recipe import train_eraser

    model = load_model(options.model)
    clip = load_text_encoder(options.text_encoders)
    # The host lends the model: whatever happens in the training, it samples bit for bit as before afterwards.
    host = ComfyHost(model, clip)
    # `auto` recomputes blocks, and leaves weights in main memory, if they would not fit otherwise.
    result = train_eraser(host, settings(options), show_progress, auto=True, notify=print)
    # bf16 halves the file; the header says what was erased and how.
    tensors = {name: tensor.bfloat16() for name, tensor in result.lora.items()}
    save_lora(tensors, options.output, training_header(result.config, host.fingerprint()))
    print(result.summary(options.output.name))


if __name__ == "__main__":
    main()
