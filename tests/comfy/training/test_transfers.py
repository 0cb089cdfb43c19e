"""What goes to the card in a pair, counted on `meta`: a device that every PyTorch has."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eraseanything_core.comfy_bridge.frozen_view import frozen_view
from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.training import trainer
from eraseanything_core.training.optimizers import lora_optimizer
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.trajectory_cache import TrajectoryCache

META = torch.device("meta")


class Transfers(TorchDispatchMode):
    """Counts copies from the CPU to the device, and those for which the CPU waits."""

    def __init__(self):
        super().__init__()
        self.all = 0
        self.waited_for = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and kwargs.get("device") == META:
            self.all += 1
            self.waited_for += not kwargs.get("non_blocking")
        return func(*args, **kwargs)


def test_a_steady_pair_waits_for_no_copy(patcher, make_flux, clip, config):
    """All losses are on, so every kind of array that a pair reads goes to the device."""
    host = ComfyHost(patcher, clip)
    plan = prepare(config, host.text_encoder())
    with host.session() as model:
        model.attach(config.targets, config.rank, torch.Generator().manual_seed(0))
        epoch = TrajectoryCache(model, plan).epoch(0)
    device_model = FluxModel(frozen_view(make_flux().to(META), torch.float32, META), META, torch.float32)
    lora = device_model.attach(config.targets, config.rank, torch.Generator().manual_seed(0))
    both = [lora_optimizer(lora, 1e-3, config) for _ in range(2)]
    with exact_gradients(device_model.module), Transfers() as transfers:
        losses = trainer.train_pair(device_model, plan, epoch, 0, lora, both)
    assert set(losses) == {"esd", "attn", "retain", "rsc"}
    assert transfers.all > 10 and transfers.waited_for == 0
