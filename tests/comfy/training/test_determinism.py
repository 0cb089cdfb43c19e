"""Kernels that repeat their bits: on while a run lasts, and as before when it has ended."""

import dataclasses
import os

import pytest
import torch

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.training.determinism import WORKSPACE
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
    monkeypatch.delenv(WORKSPACE, raising=False)
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
