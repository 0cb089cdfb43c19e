"""Kernels that repeat their bits: on while a run lasts, and as before when it has ended."""

import dataclasses
import importlib
import os
import subprocess
import sys

import pytest
import torch

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.training import determinism
from eraseanything_core.training.determinism import FIXED_WORKSPACE, WORKSPACE
from eraseanything_core.training.recipe import train_eraser


def present():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
        os.environ.get(WORKSPACE),
    )


@pytest.fixture
def as_others_set_it(monkeypatch):
    """ComfyUI's own --deterministic only warns, and a node may have chosen kernels by time."""
    monkeypatch.setenv(WORKSPACE, FIXED_WORKSPACE)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("ends", ("whole", "interrupted", "failed"))
def test_deterministic_algorithms_are_on_for_the_run_alone(patcher, clip, config, as_others_set_it, ends):
    before = present()
    seen = []

    def progress(step, losses):
        seen.append(present())
        if ends == "failed":
            raise RuntimeError("no kernel")
        if ends == "interrupted":
            raise KeyboardInterrupt

    def run(on):
        return train_eraser(ComfyHost(patcher, clip), dataclasses.replace(config, deterministic=on), progress)

    if ends == "failed":
        with pytest.raises(RuntimeError, match="no kernel"):
            run(True)
    else:
        fixed = run(True)
    assert set(seen) == {(True, False, False, False, ":4096:8")}
    assert present() == before
    if ends == "whole":
        plain = run(False)
        assert seen[-1] == before
        # On a CPU the bits are the same with it and without.
        assert all(torch.equal(plain.lora[name], fixed.lora[name]) for name in plain.lora)


@pytest.mark.parametrize("before, after", (("", ":4096:8"), (":16:8", ":16:8")))
def test_importing_it_sets_the_workspace_of_cublas(monkeypatch, before, after):
    """What a user has set stays."""
    monkeypatch.setenv(WORKSPACE, before)
    importlib.reload(determinism)
    assert os.environ[WORKSPACE] == after


def test_the_workspace_is_set_before_any_product():
    """PyTorch reads it at the first product of a process. The nodes import this module when they are registered."""
    asked = f"import eraseanything_core.training.recipe, os; print(os.environ[{WORKSPACE!r}])"
    variables = {name: value for name, value in os.environ.items() if name != WORKSPACE}
    found = subprocess.run([sys.executable, "-c", asked], env=variables, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ":4096:8"
