"""A run that is stopped or killed and goes on, against a whole one; with kernels that repeat their bits and without."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import comfy.sd
import torch
from torch import Tensor

from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.recipe import train_eraser
from lab.gpu.card import Card, find_card
from lab.gpu.hosts import LabHost, sampled, short_config, tinyflux_host
from lab.gpu.outcome import Outcome

PAIRS = 12
STOPPED_AFTER = 6
KILLED = 137  # the exit code of a process that was killed


def small_host(card: Card) -> LabHost:
    """TinyFlux in the type of the check."""
    return tinyflux_host(dtype=torch.float32 if card.tiny else torch.bfloat16)


def config_of(pairs: int, saved_after: int) -> EraseConfig:
    """A run that can go on from a pair on, with kernels that repeat their bits."""
    return short_config(pairs, deterministic=True, save_every=saved_after)


def stop(pairs: int, _: dict[str, float]) -> None:
    """A user's interrupt after so many pairs."""
    if pairs == STOPPED_AFTER:
        raise KeyboardInterrupt


def sample_with(host: LabHost, lora: dict[str, Tensor]) -> Tensor:
    """One step with a clone that has a LoRA: it is then in the weights that all clones share."""
    adapted, _ = comfy.sd.load_lora_for_models(host.model, None, lora, 1.0, 0)
    return sampled(host, adapted, "a photo of a red heart", 1)


def killed(card: Card, folder: Path) -> None:
    """The first half of a run, in a process that ends in its seventh pair as if it were killed."""
    numbers = [str(PAIRS), str(STOPPED_AFTER)]
    code = subprocess.run([sys.executable, "-m", "lab.gpu.resume", str(card.device), str(folder), *numbers]).returncode
    assert code == KILLED, f"the run that is to be killed has ended with code {code}"


def train_until_killed(device: str, folder: str, pairs: str, stopped_after: str) -> None:
    """What the process of `killed` does."""
    card = find_card(device)
    assert card is not None, "a device was named"

    def kill(done: int, _: dict[str, float]) -> None:
        if done > int(stopped_after):
            os._exit(KILLED)

    train_eraser(small_host(card), config_of(int(pairs), int(stopped_after)), kill, Path(folder))


def stopped_and_resumed(host: LabHost, config: EraseConfig, folder: Path) -> dict[str, Tensor]:
    """The LoRA of a run that a user has stopped."""
    train_eraser(host, config, stop, folder)
    return train_eraser(host, config, run_dir=folder).lora


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """|one - other| / |one| over all factors."""
    flat = torch.cat([tensor.flatten() for tensor in one.values()])
    others = torch.cat([other[name].flatten() for name in one])
    return float((flat - others).norm() / flat.norm())


def check(card: Card) -> Outcome:
    """Check 11: killed after 6 of 12 pairs, and another node has sampled with a LoRA before it goes on."""
    outcome = Outcome()
    host = small_host(card)
    fixed = config_of(PAIRS, STOPPED_AFTER)
    plain = dataclasses.replace(fixed, deterministic=False)
    whole = train_eraser(host, fixed).lora
    with tempfile.TemporaryDirectory() as folder:
        killed(card, Path(folder) / "fixed")
        plain_step = sample_with(host, {})
        outcome.must("another node has sampled with the LoRA", not torch.equal(sample_with(host, whole), plain_step))
        pairs: list[int] = []
        resumed = train_eraser(host, fixed, lambda done, _: pairs.append(done), Path(folder) / "fixed").lora
        outcome.must("it goes on from its saved pair", pairs == list(range(STOPPED_AFTER + 1, PAIRS + 1)))
        outcome.must("deterministic: equal bits", all(torch.equal(whole[name], resumed[name]) for name in whole))
        one = train_eraser(host, plain).lora
        resumed = stopped_and_resumed(host, plain, Path(folder) / "plain")
    outcome.figures["otherwise: difference of a resumed run"] = difference(one, resumed)
    outcome.must("the LoRA is not zero", any(bool(t.any()) for name, t in whole.items() if "lora_B" in name))
    return outcome


if __name__ == "__main__":
    train_until_killed(*sys.argv[1:])
