"""What makes a pair cheap leaves the objective what it is: each saving is switched off and the LoRA stays the same."""

import dataclasses

import pytest
import torch

from eraseanything_core import flux, trainer
from eraseanything_core.plan import SHORTCUTS


@pytest.fixture
def trained(patcher, clip, config, monkeypatch):
    """The LoRA and the forwards of a run with these shortcuts, each a batch size and whether it stopped early."""
    original = flux.FluxModel._run

    def run(shortcuts):
        seen = []

        def forward(self, x_t, sigma, cond, adapters, capture, stop):
            seen.append((len(x_t), bool(adapters), capture is not None, stop))
            return original(self, x_t, sigma, cond, adapters, capture, stop)

        monkeypatch.setattr(flux.FluxModel, "_run", forward)
        plan = trainer.prepare(dataclasses.replace(config, steps=1), flux.TextEncoder(clip))
        plan = dataclasses.replace(plan, shortcuts=frozenset(shortcuts))
        with flux.borrow(patcher) as model:
            return trainer.train(model, plan).lora, seen

    return run


def same(one, other):
    return all((one[k] - other[k]).norm() <= 1e-3 * one[k].norm() for k in one)


def test_one_forward_for_both_erasing_losses(trained):
    """Without it the attention has a forward of its own."""
    (one, short), (other, long) = trained(SHORTCUTS), trained(SHORTCUTS - {"share"})
    students = [sum(adapters for _, adapters, _, _ in seen) for seen in (short, long)]
    assert same(one, other) and students == [3, 4]


def test_a_forward_for_maps_stops_at_the_last_block(trained):
    (one, short), (other, long) = trained(SHORTCUTS), trained(SHORTCUTS - {"stop"})
    stopped = [sum(stop for *_, stop in seen) for seen in (short, long)]
    assert same(one, other) and stopped[0] > 1 and stopped[1] == 0 and len(short) == len(long)


def test_the_other_words_go_together(trained):
    """A synonym and three irrelevant words for each of two sentences: eight prompts in a forward, or one."""
    (one, short), (other, long) = trained(SHORTCUTS), trained(SHORTCUTS - {"batch"})
    together, alone = ([n for n, adapters, read, _ in seen if read and not adapters] for seen in (short, long))
    assert same(one, other) and set(together) <= {4, 8} and set(alone) == {1} and sum(together) == len(alone)


def test_a_pool_a_pair_is_the_literal_schedule(patcher, clip, config):
    """Refreshed every pair, the pools are no approximation: each pair has sentences and trajectories of its own."""
    plan = trainer.prepare(dataclasses.replace(config, refresh=1, pool=2), flux.TextEncoder(clip))
    with flux.borrow(patcher) as model:
        epochs = [trainer.new_epoch(model, plan, number) for number in range(3)]
    starts = [x for epoch in epochs for x in epoch.concept.x[:, 0]]
    assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])
    assert [list(epoch.draws) for epoch in epochs] == [[0], [1], [2]]


class Counting:
    """A CLIP that tells what it encodes."""

    def __init__(self, clip):
        self.clip, self.tokenizer, self.tokenize, self.encoded = clip, clip.tokenizer, clip.tokenize, []

    def encode_from_tokens(self, tokens, return_pooled):
        self.encoded.append(tuple(t[0] for t in tokens["t5xxl"][0]))
        return self.clip.encode_from_tokens(tokens, return_pooled)


def test_every_prompt_is_encoded_once_and_before_the_model_runs(patcher, clip, config, monkeypatch):
    counting, at, original = Counting(clip), [], flux.FluxModel._run

    def run(self, *args, **kwargs):
        at.append(len(counting.encoded))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(flux.FluxModel, "_run", run)
    flux.train_eraser(patcher, counting, dataclasses.replace(config, refresh=1))
    assert len(counting.encoded) == len(set(counting.encoded)) > 8 and set(at) == {len(counting.encoded)}


def test_the_losses_are_looked_at_now_and_then(patcher, clip, config, monkeypatch):
    """Each look waits for the device: after the first pair, after ten and at the end."""
    looks, original = [], trainer.Run.read

    def read(self):
        looks.append((self.done, len(self.waiting)))
        return original(self)

    monkeypatch.setattr(trainer.Run, "read", read)
    result = flux.train_eraser(patcher, clip, dataclasses.replace(config, steps=12))
    assert [done for done, waiting in looks if waiting] == [1, 10, 12] and len(result.losses["loss"]) == 12
