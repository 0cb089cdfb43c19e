"""What makes a pair cheap leaves the objective what it is: each saving is switched off and the LoRA stays the same."""

import dataclasses
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.comfy_bridge.text import ComfyTextEncoder
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.training import optimizers, trainer
from eraseanything_core.training.plan import SHORTCUTS, prepare
from eraseanything_core.training.recipe import train_eraser
from eraseanything_core.training.trajectory_cache import TrajectoryCache


@pytest.fixture
def trained(patcher, clip, config, monkeypatch):
    """The LoRA and the forwards of a run with these shortcuts, each a batch size and whether it stopped early."""
    original = FluxModel._run

    def run(shortcuts):
        seen = []

        def forward(self, x_t, sigma, cond, adapters, capture, stop):
            seen.append((len(x_t), bool(adapters), capture is not None, stop))
            return original(self, x_t, sigma, cond, adapters, capture, stop)

        monkeypatch.setattr(FluxModel, "_run", forward)
        chosen = dataclasses.replace(config, steps=1)
        return train_eraser(ComfyHost(patcher, clip), chosen, shortcuts=shortcuts).lora, seen

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
    plan = prepare(dataclasses.replace(config, refresh_every=1, cached_trajectories=2), ComfyTextEncoder(clip))
    with training_session(patcher) as model:
        epochs = [TrajectoryCache(model, plan).epoch(number) for number in range(3)]
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


@pytest.fixture
def encoded(patcher, clip, config, monkeypatch):
    """The LoRA of a run, what was encoded, how many prompts its forwards were given, and the encoder's fate."""
    original, cond, release = FluxModel._run, FluxModel.cond, ComfyHost.release_others

    def run(shortcuts):
        seen = SimpleNamespace(clip=Counting(clip), at=[], given=0, released=[])

        def forward(self, *args, **kwargs):
            seen.at.append(len(seen.clip.encoded))
            return original(self, *args, **kwargs)

        def count(self, context, *args):
            seen.given += len(context)
            return cond(self, context, *args)

        monkeypatch.setattr(FluxModel, "_run", forward)
        monkeypatch.setattr(FluxModel, "cond", count)
        monkeypatch.setattr(ComfyHost, "release_others", lambda h: seen.released.append(h.model) or release(h))
        chosen = dataclasses.replace(config, refresh_every=1)
        seen.lora = train_eraser(ComfyHost(patcher, seen.clip), chosen, shortcuts=shortcuts).lora
        return seen

    return run


def test_every_prompt_is_encoded_once_and_before_the_model_runs(encoded, patcher):
    """Without it each is encoded whenever a forward is given it, so the encoder cannot be released."""
    once, always = encoded(SHORTCUTS), encoded(SHORTCUTS - {"encode"})
    assert all(torch.equal(once.lora[k], always.lora[k]) for k in once.lora)
    count = len(once.clip.encoded)
    assert count == len(set(once.clip.encoded)) > 8 and set(once.at) == {count}
    assert len(always.clip.encoded) == always.given == once.given > 2 * count and len(set(always.at)) > 10
    assert once.released == [patcher] and not always.released


def test_other_words_are_encoded_for_the_losses_that_read_them(clip, config):
    """The presets compare with none: a third of their prompts were encoded for nothing."""
    with_words = prepare(config, ComfyTextEncoder(clip))
    without = prepare(dataclasses.replace(config, rsc_weight=0.0), ComfyTextEncoder(clip))
    assert all(s.irrelevant and s.synonym for s in with_words.sentences)
    assert not any(s.irrelevant or s.synonym for s in without.sentences)
    # The same sentences: what is not encoded is drawn all the same.
    assert [s.concept for s in without.sentences] == [s.concept for s in with_words.sentences]
    assert without.retained == with_words.retained


def test_the_plan_does_not_hold_the_encoder(clip, config):
    text = ComfyTextEncoder(clip)
    held, plan = weakref.ref(text), prepare(config, text)
    del text
    assert held() is None and plan.encode(plan.sentences[0].concept.text)


class Reads(TorchDispatchMode):
    """After which pair the host read a number from a tensor of floats; each such read waits for the device."""

    def __init__(self):
        super().__init__()
        self.pair, self.seen = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point():
            self.seen.add(self.pair)
        return func(*args, **(kwargs or {}))


def test_the_losses_are_looked_at_now_and_then(patcher, clip, config, monkeypatch):
    """After the first pair, after ten and at the end; without it after each. Nothing else in a pair is looked at."""
    config, original = (
        dataclasses.replace(config, steps=12, width=32, height=32, batch_size=1, retain_batch_size=1),
        trainer.train_pair,
    )
    plain = lambda _, parameters, lr, decay: torch.optim.SGD(parameters, lr, weight_decay=decay)  # noqa: E731
    monkeypatch.setattr(optimizers, "new_optimizer", plain)  # AdamW reads its step count, which lies on the host

    def run(shortcuts):
        def pair(*args):
            reads.pair += 0.5
            found = original(*args)
            reads.pair += 0.5
            return found

        monkeypatch.setattr(trainer, "train_pair", pair)
        with Reads() as reads:
            result = train_eraser(ComfyHost(patcher, clip), config, shortcuts=shortcuts)
        return result, reads.seen - {0}

    (deferred, seldom), (eager, often) = run(SHORTCUTS), run(SHORTCUTS - {"defer"})
    assert seldom == {1, 10, 12} and often == set(range(1, 13))
    assert all(torch.equal(deferred.lora[k], eager.lora[k]) for k in deferred.lora)
    assert deferred.losses == eager.losses and len(eager.losses["loss"]) == 12
