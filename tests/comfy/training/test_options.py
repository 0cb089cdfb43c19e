"""Every setting does what it says, seen in the pools and the forwards of a pair."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from eraseanything_core import flux, losses, pools, sampling, trainer


@pytest.fixture
def first_pair(patcher, clip, config, monkeypatch):
    """What the first pair of a changed configuration looked at: its pools, the student's forwards, the losses' last
    arguments and the LoRA."""

    def run(change):
        seen = SimpleNamespace(forwards=[], given={})
        original = flux.FluxModel._run

        def forward(self, x_t, sigma, cond, adapters, capture, stop):
            seen.forwards.append(SimpleNamespace(x=x_t, sigma=sigma, cond=cond, adapters=adapters))
            return original(self, x_t, sigma, cond, adapters, capture, stop)

        monkeypatch.setattr(flux.FluxModel, "_run", forward)
        for name in ("esd_loss", "rsc_loss"):
            loss = getattr(losses, name)
            keep = lambda *a, name=name, loss=loss: seen.given.update({name: a}) or loss(*a)  # noqa: E731
            monkeypatch.setattr(losses, name, keep)
        seen.plan = trainer.prepare(dataclasses.replace(config, **change), flux.TextEncoder(clip))
        with flux.borrow(patcher) as model:
            seen.lora = model.attach(seen.plan.config.targets, seen.plan.config.rank, torch.Generator())
            seen.epoch = pools.new_epoch(model, seen.plan, 0)
            both = [torch.optim.SGD(seen.lora.parameters(), lr=0.0) for _ in range(2)]
            trainer.pair(model, seen.plan, seen.epoch, 0, seen.lora, both)
        seen.students = [f for f in seen.forwards if f.adapters]
        return seen

    return run


SAYS = {
    "guidance": ({"guidance": 3.5}, lambda p: {float(g) for f in p.forwards for g in f.cond.guidance} == {3.5}),
    "width and height": ({"width": 64, "height": 32}, lambda p: {f.x.shape[2:] for f in p.forwards} == {(4, 8)}),
    "sampling_steps": ({"sampling_steps": 6}, lambda p: p.epoch.concept.x.shape[1] == p.epoch.retain.x.shape[1] == 7),
    "mu": ({"mu": 0.3}, lambda p: torch.equal(p.epoch.concept.sigmas, sampling.shifted_sigmas(4, 0.3))),
    "batch": ({"batch": 3, "retain_batch": 1}, lambda p: [len(f.x) for f in p.students] == [3, 1, 3]),
    "rank": ({"rank": 5}, lambda p: {len(down) for down in p.lora.down} == {5}),
    "k_irrelevant": ({"k_irrelevant": 2}, lambda p: p.epoch.concept.known.shape[2] == 1 + 2),
    "erase_sigma": ({"erase_sigma": (0.0, 0.8), "batch": 8}, lambda p: p.students[0].sigma.max() <= 0.8),
    "map_sigma": ({"map_sigma": (0.9, 1.0), "batch": 8}, lambda p: p.students[2].sigma.min() >= 0.9),
    "eta": ({"eta": 2.5}, lambda p: p.given["esd_loss"][3] == 2.5),
    "tau": ({"tau": 0.2}, lambda p: p.given["rsc_loss"][3] == 0.2),
    "sentences": ({"sentences": 1}, lambda p: len({s.concept for s in p.epoch.concept.sources}) == 1),
    "retain_own": ({"retain_own": 1.0}, lambda p: {r.text for r in p.epoch.retain.sources} == {"a green box"}),
    "targets": ({"targets": "text_kv"}, lambda p: {part.key.split(".")[-1] for part in p.lora.parts} == KV),
}
KV = {"add_k_proj", "add_v_proj"}


@pytest.mark.parametrize("name", SAYS)
def test_a_setting_does_what_it_says(first_pair, name):
    change, says = SAYS[name]
    assert says(first_pair(change))


def test_it_is_not_so_without_it(first_pair):
    plain = first_pair({})
    assert not [name for name, (_, says) in SAYS.items() if says(plain)]
