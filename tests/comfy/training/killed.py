"""Trains, is killed with SIGKILL at random moments, goes on, and compares with a run that was never stopped.

    python killed.py FOLDER KILLS SEED

Every attempt is a fork that has ComfyUI loaded already. Prints a line of JSON: kills, attempts that had saved
something, whether the LoRAs are bit for bit the same, and files that could not be read after a kill.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, os.environ["COMFYUI_PATH"])

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eraseanything_core import flux, trainer

SHAPE = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 16,
    "context_in_dim": 24, "hidden_size": 64, "mlp_ratio": 4.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
STEPS, SAVE_EVERY = 240, 2


class Text:
    """Every word is a piece; its vector comes from its letters."""

    def pieces(self, text: str) -> list[str]:
        return ["▁" + word for word in text.split()] + [""] * (12 - len(text.split()))

    def encode(self, text: str):
        generator = torch.Generator().manual_seed(sum(map(ord, text)))
        return torch.randn(1, 12, 24, generator=generator), torch.randn(1, 16, generator=generator)


def train(folder: Path):
    """One attempt: goes on from what is in the folder; a finished LoRA is written last."""
    torch.set_num_threads(1)
    config = trainer.EraseConfig(
        concept="star", synonyms=("sun",), irrelevant=("tree", "house", "dog"), width=64, height=64, sampling_steps=3,
        pool=2, refresh=30, on_policy=0.5, watch_every=20, steps=STEPS, save_every=SAVE_EVERY,
    )  # fmt: skip
    torch.manual_seed(0)
    module = flux.new_flux(SHAPE).requires_grad_(False)
    with flux.exact_gradients(module):
        model = flux.FluxModel(module, "cpu", torch.float32)
        result = trainer.train(model, trainer.prepare(config, Text()), run_dir=folder)
    save_file(result.lora, folder / "finished.part")
    (folder / "finished.part").replace(folder / "finished.safetensors")


def attempt(folder: Path, seconds: float | None) -> bool:
    """Forks an attempt and kills it after so long; whether it had ended by itself."""
    child = os.fork()
    if child == 0:
        train(folder)
        os._exit(0)
    begun = time.monotonic()
    while seconds is None or time.monotonic() - begun < seconds:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def unreadable(folder: Path) -> list[str]:
    """Files under their final names that are not whole."""
    bad = []
    for path in folder.glob("*.safetensors"):
        if path.name.startswith("."):
            continue
        try:
            with safe_open(path, "pt") as file:
                [file.get_tensor(key) for key in file.keys()]
        except Exception as error:
            bad.append(f"{path.name}: {error}")
    return bad


def main(folder: Path, kills: int, seed: int):
    begun = time.monotonic()
    attempt(folder / "whole", None)
    whole, rng = time.monotonic() - begun, random.Random(seed)
    done, with_state, bad = 0, 0, []
    (folder / "killed").mkdir(parents=True)
    while done < kills:
        with_state += (folder / "killed" / "state.safetensors").exists()
        if attempt(folder / "killed", rng.uniform(0, 2.2 * whole / kills)):
            break
        done += 1
        bad += unreadable(folder / "killed")
    attempt(folder / "killed", None)
    one, other = (load_file(folder / name / "finished.safetensors") for name in ("whole", "killed"))
    same = one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    print(json.dumps({"kills": done, "went_on": with_state, "same": same, "unreadable": bad}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
