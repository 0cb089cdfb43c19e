"""What happens to a run when its device has no memory left."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.lora.adapter import Lora
from eraseanything_core.lora.keys import LinearSlice
from eraseanything_core.training import losses
from eraseanything_core.training.recipe import train_eraser
from eraseanything_core.training.run_state import RunState


def test_the_failed_pair_is_let_go_before_the_last_whole_one_is_saved(patcher, clip, config, tmp_path, monkeypatch):
    """Its graph fills the device, and the frames of an exception hold it."""
    esd_loss = losses.esd_loss
    velocities = []
    alive = []

    def out_of_memory(student, *others):
        velocities.append(weakref.ref(student))
        if len(velocities) == 3:
            raise RuntimeError("out of memory")
        return esd_loss(student, *others)

    def restore_pair(run):
        alive.append([velocity() is not None for velocity in velocities])
        return plain_restore(run)

    plain_restore = RunState.restore_pair
    monkeypatch.setattr(losses, "esd_loss", out_of_memory)
    monkeypatch.setattr(RunState, "restore_pair", restore_pair)
    with pytest.raises(RuntimeError, match="out of memory"):
        train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path)
    assert alive == [[False, False, False]]
    assert (tmp_path / "state.safetensors").exists()


class Copies(TorchDispatchMode):
    """Notes the type and the device of every copy of a tensor."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.seen.append((kwargs.get("dtype"), kwargs.get("device")))
        return func(*args, **(kwargs or {}))


def test_factors_are_cast_only_after_they_have_left_the_device():
    lora = Lora([LinearSlice("linear", "linear", 0, 4, 4)], 2)
    with Copies() as copies:
        tensors = lora.tensors(torch.bfloat16)
    cpu = torch.device("cpu")
    assert copies.seen == 2 * [(torch.float32, cpu), (torch.bfloat16, None)]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
