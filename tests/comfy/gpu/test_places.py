"""The gradient wherever the weights lie. ComfyUI loads as onto a card; the weights still lie on the CPU."""

from types import SimpleNamespace

import comfy.model_management as management
import pytest
import torch
from comfy.cli_args import args

from eraseanything_core.comfy_bridge import training_session
from lab.gpu import placement, second_card
from lab.gpu.card import Card
from lab.gpu.outcome import Outcome, Skipped
from lab.gpu.small_model import random_flux
from tests.comfy.gpu.test_checks import CPU, failed, passed


@pytest.fixture
def patcher():
    return placement.load(random_flux(torch.bfloat16).state_dict())


def test_placement(monkeypatch):
    outcome = passed(placement.check(CPU))
    assert outcome.figures["resident: MiB on the card"] > 0
    found, loaded = placement.gradient(placement.load(random_flux(torch.bfloat16).state_dict()))
    wrong = {name: gradient.roll(1) for name, gradient in found.items()}
    monkeypatch.setattr(placement, "gradient", lambda patcher, recompute=False: (wrong if recompute else found, loaded))
    failed(placement.check(CPU), "recomputed: cosine")


@pytest.mark.parametrize("ratio", (0.0, 0.4))  # of Nvidia's cards, and of all others
def test_half_and_novram(patcher, like_a_card, monkeypatch, ratio):
    monkeypatch.setattr(management, "MIN_WEIGHT_MEMORY_RATIO", ratio)
    resident, _ = placement.gradient(patcher)
    outcome = Outcome()
    placement.compare_places(outcome, patcher, resident)
    shares = [passed(outcome).figures[f"{place}: share of the weights on the card"] for place in placement.PLACES]
    assert 0.25 < shares[0] < 0.75 and shares[1] < 0.1
    assert management.MIN_WEIGHT_MEMORY_RATIO == ratio and management.vram_state == management.VRAMState.NORMAL_VRAM


def test_weights_that_stay_on_the_card_are_noticed(patcher, like_a_card, monkeypatch):
    resident, _ = placement.gradient(patcher)
    load = management.load_models_gpu
    monkeypatch.setattr(
        training_session.model_management,
        "load_models_gpu",
        lambda models, **more: load(models, **more, force_full_load=True),
    )
    wrong = Outcome()
    placement.compare_places(wrong, patcher, resident)
    failed(wrong, "half, recomputed: share of the weights on the card is 1, at most 0.75")


def test_each_allocator_runs_as_in_comfyui(monkeypatch, tmp_path):
    """With cudaMallocAsync ComfyUI's cast takes another branch, which this flag decides."""
    seen = []

    def gradient(patcher, recompute=False):
        seen.append((args.cuda_malloc, management.vram_state, recompute))
        return {"esd": torch.ones(2)}, 0

    monkeypatch.setattr(args, "cuda_malloc", False)
    monkeypatch.setattr(placement, "gradient", gradient)
    for allocator in placement.ALLOCATORS:
        placement.write_gradients("cpu", str(tmp_path / "gradients.safetensors"), allocator)
    novram = management.VRAMState.NO_VRAM
    assert seen == [(False, novram, True), (True, novram, True)]
    # A PyTorch that takes another one than was asked for.
    monkeypatch.setattr(Card, "facts", lambda card: {"allocator": "native"})
    with pytest.raises(AssertionError, match="took the allocator native"):
        placement.write_gradients("cpu", str(tmp_path / "gradients.safetensors"), "cudaMallocAsync")


def test_a_process_is_started_with_its_allocator(monkeypatch):
    started = []

    def run(command, env, check):
        started.append((command[-1], env[placement.VARIABLE]))
        placement.save_file({"esd": torch.ones(2)}, command[-2])

    monkeypatch.setattr(placement.subprocess, "run", run)
    for allocator in placement.ALLOCATORS:
        assert "esd" in placement.by_allocator(CPU, allocator)
    assert started == [(name, f"backend:{name}") for name in placement.ALLOCATORS]


def test_a_second_card(like_a_card, monkeypatch):
    """The CPU stands for both."""
    monkeypatch.setattr(second_card, "second_of", lambda card: torch.device("cpu"))
    asked, contexts = [], []
    load, context = second_card.load, management.cuda_device_context

    def noted(state, **options):
        asked.append(options)
        return load(state, **options)

    def entered(device):
        contexts.append(device)
        return context(device)

    monkeypatch.setattr(second_card, "load", noted)
    monkeypatch.setattr(management, "cuda_device_context", entered)
    found = passed(second_card.check(CPU)).figures
    assert asked == [{}, {"load_device": torch.device("cpu")}]
    # One session each: the first card, the second in two ways, and in four with weights in main memory.
    assert contexts == 7 * [torch.device("cpu")]
    assert "second card, --novram, recomputed: cosine" in found
    plain = second_card.gradient
    wrong = iter((False, True, True))

    def rolled(patcher, recompute=False):
        gradients, loaded = plain(patcher, recompute)
        away = int(next(wrong))
        return {name: gradient.roll(away) for name, gradient in gradients.items()}, loaded

    monkeypatch.setattr(second_card, "gradient", rolled)
    failed(second_card.check(CPU), "second card: cosine")


def test_the_second_card_is_another_one(monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(device_count=lambda: 2))
    others = [second_card.second_of(Card(torch.device("cuda", number))) for number in (0, 1)]
    assert others == [torch.device("cuda", 1), torch.device("cuda", 0)]
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(device_count=lambda: 1))
    with pytest.raises(Skipped, match="no second card"):
        second_card.check(Card(torch.device("cuda", 0)))


def test_a_cpu_has_no_second_card():
    with pytest.raises(Skipped, match=r"^[A-Z].*\.$"):
        second_card.check(CPU)
