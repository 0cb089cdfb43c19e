"""Trains, is killed with SIGKILL at random moments, goes on, and compares with a run that was never stopped.

    python killed.py FOLDER KILLS SEED

Every attempt is a fork that has ComfyUI loaded already, and all files are read again and again while it runs. When a
run ends before all kills are spent, another begins. Prints a line of JSON: how many pairs each kill found saved, how
many runs were finished, whether their LoRAs are bit for bit the same as the one that was never stopped, how often the
files were looked at and which could not be read, and what is left in the folders.
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
from comfy.cli_args import args as comfy_args
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file

comfy_args.cpu = True
# ComfyUI reads this once, when its memory management is imported: the imports below come after it.
# ruff: noqa: E402

from eraseanything_core.comfy_bridge.architecture import new_flux
from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.training import trainer
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.plan import prepare

SHAPE = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 16,
    "context_in_dim": 24, "hidden_size": 64, "mlp_ratio": 4.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
STEPS, SAVE_EVERY = 160, 2


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
    config = EraseConfig(
        concept="star", synonyms=("sun",), irrelevant=("tree", "house", "dog"), width=64, height=64, sampling_steps=3,
        cached_trajectories=2, refresh_every=30, on_policy_share=0.5, monitor_every=20, steps=STEPS,
        save_every=SAVE_EVERY,
    )  # fmt: skip
    torch.manual_seed(0)
    module = new_flux(SHAPE).requires_grad_(False)
    with exact_gradients(module):
        model = FluxModel(module, "cpu", torch.float32)
        result = trainer.train(model, prepare(config, Text()), run_dir=folder)
    save_file(result.lora, folder / "finished.part")
    (folder / "finished.part").replace(folder / "finished.safetensors")


def unreadable(folder: Path) -> list[str]:
    """Files under their final names that are not whole."""
    bad = []
    for path in folder.glob("[!.]*.safetensors"):
        try:
            content = path.read_bytes()  # opened once: safe_open does it twice, and a file may go in between
        except FileNotFoundError:
            continue  # pools that were used up in this moment
        try:
            load(content)
        except SafetensorError as error:
            bad.append(f"{path.name}: {error}")
    return bad


def attempt(folder: Path, seconds: float | None, told: dict) -> bool:
    """Forks an attempt and kills it after so long; whether it was quicker."""
    child = os.fork()
    if child == 0:
        train(folder)
        os._exit(0)
    begun, ended = time.monotonic(), False
    while not ended and (seconds is None or time.monotonic() - begun < seconds):
        told["unreadable"] += unreadable(folder)
        told["looks"] += 1
        time.sleep(0.005)
        ended = os.waitpid(child, os.WNOHANG)[0] == child
    if not ended:
        os.kill(child, signal.SIGKILL)
        ended = not os.WIFSIGNALED(os.waitpid(child, 0)[1])
    told["unreadable"] += unreadable(folder)
    return ended


def saved(folder: Path) -> int:
    """Pairs in the state that lies in the folder."""
    if not (folder / "state.safetensors").exists():
        return 0
    with safe_open(folder / "state.safetensors", "pt") as file:
        return len(json.loads(file.metadata()["run"])["losses"]["loss"])


def main(folder: Path, kills: int, seed: int):
    told = {"saved": [], "runs": 0, "same": True, "looks": 0, "unreadable": [], "left": []}
    begun = time.monotonic()
    attempt(folder / "whole", None, told)
    whole, rng = time.monotonic() - begun, random.Random(seed)
    expected = load_file(folder / "whole" / "finished.safetensors")
    moments = [rng.uniform(0, 2.2 * whole / kills) for _ in range(kills)]
    while moments:
        run = folder / f"killed_{told['runs']}"
        while not attempt(run, moments[0] if moments else None, told):
            told["saved"].append(saved(run))
            moments.pop(0)
        found = load_file(run / "finished.safetensors")
        told["same"] &= found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in found)
        told["runs"] += 1
        told["left"] += [path.name for path in run.iterdir()]
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
