"""Those checks that run whole trainings: little memory, going on, interrupts."""

import comfy.model_management as management
import pytest
import torch

from eraseanything_core.comfy_bridge.memory import MemoryPlan
from eraseanything_core.training.run_state import RunState
from lab.gpu import ballast, interrupts, resume, true_size
from lab.gpu.card import Card
from lab.gpu.free_memory import told_free
from lab.gpu.outcome import Outcome
from tests.comfy.gpu.test_checks import failed, passed

CPU = Card(torch.device("cpu"), tiny=True)


@pytest.fixture
def half_free(like_a_card):
    """ComfyUI finds room for half of the weights of the small model."""
    weights = true_size.host_of(CPU, true_size.TINY_CASES[0]).model.model_size()
    management.unload_all_models()
    with told_free(int(management.minimum_inference_memory()) + weights // 2):
        yield


def test_little_memory(half_free, monkeypatch):
    found = passed(ballast.check(CPU)).figures
    assert "of weights stay in main memory" in found["24 GiB free: told"]
    # ComfyUI loads all weights, and the session keeps the blocks.
    load = management.load_models_gpu
    monkeypatch.setattr(
        management, "load_models_gpu", lambda models, **more: load(models, **more, force_full_load=True)
    )
    plain = ballast.Watched.session
    monkeypatch.setattr(ballast.Watched, "session", lambda host, dtype, _, memory: plain(host, dtype, False, memory))
    wrong = ballast.check(CPU)
    failed(wrong, "share of the weights elsewhere than told is 0.5")
    failed(wrong, "blocks as it was told")


def test_the_peak_is_held_against_what_was_told(monkeypatch):
    """The ballast is no part of it."""
    judged = Outcome()
    told = MemoryPlan(True, activations=3, weights=10, free=9)
    ballast.judge_peak(judged, "12 GiB free", told, 9.0)
    assert judged.problems == []
    ballast.judge_peak(judged, "12 GiB free", told, 9.5)
    failed(judged, "peak over what was told is 1.05")


def test_a_card_that_has_less_is_not_asked(monkeypatch):
    monkeypatch.setattr(ballast, "train_beside", lambda *args: asked.append(args[3] // 2**30))
    asked = []
    with told_free(16 * 2**30):
        found = ballast.check(Card(torch.device("cpu"))).figures
    assert found == {"24 GiB free": "the card has less"} and asked == [16, 12]


def test_going_on(monkeypatch):
    monkeypatch.setattr(resume, "PAIRS", 4)
    monkeypatch.setattr(resume, "STOPPED_AFTER", 2)
    outcome = passed(resume.check(CPU))
    assert outcome.figures["otherwise: difference of a resumed run"] == 0  # on a CPU
    assert outcome.figures["it goes on from its saved pair"] is True

    def killed(card, folder):
        """The same in this process, for the time that another takes to start."""
        resume.train_eraser(resume.small_host(card), resume.config_of(4, 2), resume.stop, folder)

    monkeypatch.setattr(resume, "killed", killed)
    plain, plain_sampled = RunState.__init__, resume.sampled

    def without_moments(run, *args, **more):
        plain(run, *args, **more)
        for optimizer in run.optimizers:
            optimizer.state.clear()

    # A run that goes on has forgotten its optimisers. One from the start has nothing to forget.
    monkeypatch.setattr(RunState, "__init__", without_moments)
    # The node that samples in between has no LoRA.
    monkeypatch.setattr(
        resume, "sampled", lambda host, model, prompt, steps: plain_sampled(host, host.model, prompt, 1)
    )
    wrong = resume.check(CPU)
    failed(wrong, "deterministic: equal bits")
    failed(wrong, "another node has sampled with the LoRA")


def test_interrupts(monkeypatch):
    passed(interrupts.check(CPU))
    # The run that is interrupted keeps a half pair; those that it is compared with do not.
    halves = iter((1, 0, 0, 0))
    monkeypatch.setattr(RunState, "restore_pair", lambda run: run.lora.up[0].data.add_(next(halves)))
    failed(interrupts.check(CPU), "interrupt: the last whole pair, bit for bit")
    assert not management.processing_interrupted()
