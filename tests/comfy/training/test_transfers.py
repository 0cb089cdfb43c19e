"""What goes to the card in a pair, counted on `meta`: a device that every PyTorch has."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eraseanything_core.comfy_bridge.frozen_view import frozen_view
from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.erasers.concept_ablation import ABLATION_SETTINGS, AblationSettings, ConceptAblation
from eraseanything_core.training import trainer
from eraseanything_core.training.optimizers import lora_optimizer
from eraseanything_core.training.placed import PlacedEncodings
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.recipe import train_eraser
from eraseanything_core.training.trajectory_cache import TrajectoryCache
from eraseanything_core.transfers import on_device

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


ALL = {"esd", "attn", "retain", "rsc"}
NOISE = ConceptAblation(AblationSettings("noise"))


@pytest.mark.parametrize(
    "changes, method, expected",
    (({}, None, ALL), ({"retain_loss": "paper"}, None, ALL), (ABLATION_SETTINGS, NOISE, {"ablation"})),
)
def test_a_steady_pair_waits_for_no_copy(patcher, make_flux, clip, config, changes, method, expected):
    """All losses are on, so every kind of array that a pair reads goes to the device; two losses draw noise as well."""
    config = replace(config, **changes)
    host = ComfyHost(patcher, clip)
    plan = prepare(config, host.text_encoder())
    with host.session() as model:
        model.attach(config.targets, config.rank, torch.Generator().manual_seed(0))
        epoch = TrajectoryCache(model, plan).epoch(0)
    device_model = FluxModel(frozen_view(make_flux().to(META), torch.float32, META), META, torch.float32)
    lora = device_model.attach(config.targets, config.rank, torch.Generator().manual_seed(0))
    both = [lora_optimizer(lora, 1e-3, config) for _ in range(2)]
    with exact_gradients(device_model.module), Transfers() as transfers:
        losses = trainer.train_pair(device_model, plan, epoch, 0, lora, both, method=method)
    assert set(losses) == expected
    assert transfers.all > 3 and transfers.waited_for == 0


def test_a_run_keeps_its_encodings_on_the_device(patcher, clip, config, monkeypatch):
    seen = []
    monkeypatch.setattr(
        trainer, "train_pairs", lambda model, plan, *rest: (seen.append((model, plan)), (False, None))[1]
    )
    train_eraser(ComfyHost(patcher, clip), config)
    ((model, plan),) = seen
    assert isinstance(plan.placed, PlacedEncodings) and plan.placed.device == model.device


class InMainMemory:
    """A tensor of which only the copy to a card is seen."""

    device = torch.device("cpu")

    def __init__(self, pinned=False):
        self.pinned = pinned

    def pin_memory(self):
        return InMainMemory(pinned=True)

    def to(self, device, non_blocking=False):
        return device.type, self.pinned, non_blocking


def test_a_copy_to_a_card_is_pinned_first():
    """From pageable memory a copy is waited for, whatever `non_blocking` says."""
    assert on_device(InMainMemory(), "cuda:1") == ("cuda", True, True)
    assert on_device(InMainMemory(), "mps") == ("mps", False, False)
