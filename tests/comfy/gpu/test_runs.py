"""Those checks that run whole trainings: little memory, going on, interrupts."""

import comfy.model_management as management
import torch

from eraseanything_core.training.run_state import RunState
from lab.gpu import ballast, interrupts, resume
from lab.gpu.card import Card
from tests.comfy.gpu.test_checks import failed, passed

CPU = Card(torch.device("cpu"), tiny=True)


def test_little_memory(monkeypatch):
    found = passed(ballast.check(CPU)).figures
    assert "estimated peak" in found["24 GiB free"]
    plain = ballast.train_eraser

    def otherwise_than_told(host, config, auto, notify):
        return plain(host, config, auto=auto, notify=lambda text: notify("recomputed in backward"))

    monkeypatch.setattr(ballast, "train_eraser", otherwise_than_told)
    failed(ballast.check(CPU), "as it was told")


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
    plain = RunState.__init__

    def without_moments(run, *args, **more):
        plain(run, *args, **more)
        for optimizer in run.optimizers:
            optimizer.state.clear()

    # A run that goes on has forgotten its optimisers. One from the start has nothing to forget.
    monkeypatch.setattr(RunState, "__init__", without_moments)
    failed(resume.check(CPU), "deterministic: equal bits")


def test_interrupts(monkeypatch):
    passed(interrupts.check(CPU))
    # The run that is interrupted keeps a half pair; those that it is compared with do not.
    halves = iter((1, 0, 0, 0))
    monkeypatch.setattr(RunState, "restore_pair", lambda run: run.lora.up[0].data.add_(next(halves)))
    failed(interrupts.check(CPU), "interrupt: the last whole pair, bit for bit")
    assert not management.processing_interrupted()
