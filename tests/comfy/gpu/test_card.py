"""What is asked of PyTorch about a card, with a module in place of torch.cuda."""

import importlib
import socket
import subprocess
from types import SimpleNamespace

import comfy.cli_args
import comfy.model_management as management
import comfy.ops
import pytest
import torch
import torch.nn.functional as F

import lab
from eraseanything_core.comfy_bridge.attention_memory import attention_cost
from lab.gpu import facts
from lab.gpu.card import Card, find_card
from lab.gpu.free_memory import told_free

CUDA = Card(torch.device("cuda", 1))


class Api:
    """Counts as torch.cuda does: peaks from the last reset on."""

    def __init__(self):
        self.live = self.held = self.most_live = self.most_held = 0
        self.calls = []

    def take(self, size):
        """A tensor that lives; PyTorch holds a tenth more for it."""
        self.live += size
        self.held = max(self.held, int(1.1 * self.live))
        self.most_live, self.most_held = max(self.most_live, self.live), max(self.most_held, self.held)

    def drop(self, size):
        self.live -= size

    def reset_peak_memory_stats(self, device):
        self.calls.append(device)
        self.most_live, self.most_held = self.live, self.held

    def synchronize(self):
        self.calls.append("synchronize")

    def memory_allocated(self, device):
        return self.live

    def max_memory_allocated(self, device):
        return self.most_live

    def max_memory_reserved(self, device):
        return self.most_held

    def mem_get_info(self, device):
        return 700, 1000

    def current_device(self):
        return 2

    def set_device(self, device):
        self.calls.append(device)


@pytest.fixture
def api(monkeypatch):
    made = Api()
    monkeypatch.setattr(torch, "get_device_module", lambda device: made)
    return made


def test_the_peak_of_a_card(api):
    """From where the work begins: what was alive before stays, what was freed before is not counted."""
    api.take(1000)
    api.drop(900)  # 1000 still held

    def work():
        api.take(2000)
        api.drop(2000)

    api.held = 100  # as after emptying the cache
    assert CUDA.peak(work) == (2100, 210)
    assert api.calls == ["synchronize", CUDA.device, "synchronize"]
    assert CUDA.allocated() == 100 and CUDA.used() == 300 and CUDA.counts


def test_what_nobody_counts_is_none(monkeypatch):
    cpu = Card(torch.device("cpu"))
    assert cpu.allocated() is None and cpu.used() is None and not cpu.counts
    peak = cpu.peak(lambda: torch.zeros(1024))
    assert peak.live == 4096 and peak.held is None
    # Apple's module has a count of live tensors alone.
    mps = SimpleNamespace(current_allocated_memory=lambda: 5)
    monkeypatch.setattr(torch, "get_device_module", lambda device: mps)
    card = Card(torch.device("mps"))
    assert card.allocated() == card.used() == 5 and not card.counts


def test_a_card_with_an_error_that_stays_no_longer_answers(monkeypatch):
    assert Card(torch.device("cpu")).answers()

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(synchronize=lost))
    assert not CUDA.answers()


def test_the_card_that_is_asked_for_is_the_current_one(api):
    """ComfyUI loads onto the current one."""
    assert find_card("cuda:1") == CUDA and api.calls == [CUDA.device]
    assert find_card("cuda").device == torch.device("cuda", 2)


def test_on_a_machine_with_a_card_comfyui_loads_onto_a_cpu_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(management, "cpu_state", management.CPUState.GPU)
    assert find_card("cpu").tiny and management.get_torch_device() == torch.device("cpu")


@pytest.mark.parametrize("found", ("cuda", "xpu", "mps", ""))
def test_comfyui_is_sent_to_the_cpu_where_there_is_no_card_of_any_kind(monkeypatch, found):
    for name, module in (("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.backends.mps)):
        monkeypatch.setattr(module, "is_available", lambda name=name: name == found)
    monkeypatch.setattr(comfy.cli_args.args, "cpu", False)
    importlib.reload(lab)
    assert comfy.cli_args.args.cpu == (found == "")


def test_what_comfyuis_start_would_choose(monkeypatch):
    told = SimpleNamespace(stdout="a warning\nTrue\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: told)
    assert facts.allocator_of_comfyui(CUDA) == "cudaMallocAsync"
    told.stdout = "False\n"
    assert facts.allocator_of_comfyui(CUDA) == "native"
    monkeypatch.setattr(comfy.cli_args.args, "cpu", False)
    monkeypatch.setattr(management, "torch_version_numeric", (2, 8))
    monkeypatch.setattr(management, "is_wsl", lambda: False)
    assert facts.streams_in_comfyui(CUDA)
    monkeypatch.setattr(management, "torch_version_numeric", (2, 7))
    assert not facts.streams_in_comfyui(CUDA)


def test_comfyuis_start_is_asked_for_its_allocator():
    """It answers without a card, by PyTorch's version alone."""
    assert facts.allocator_of_comfyui(CUDA) in ("native", "cudaMallocAsync")


def test_one_attention_is_the_one_that_comfyui_runs(monkeypatch):
    """On CUDA ComfyUI enters an order of its own in each call, within that of its caller."""

    def as_on_cuda(q, k, v, *args, **kwargs):
        with torch.nn.attention.sdpa_kernel(comfy.ops.SDPA_BACKEND_PRIORITY):
            return F.scaled_dot_product_attention(q, k, v, *args, **kwargs)

    order = [facts.BACKENDS["flash"], facts.BACKENDS["math"]]
    monkeypatch.setattr(comfy.ops, "SDPA_BACKEND_PRIORITY", order, raising=False)
    monkeypatch.setattr(comfy.ops, "scaled_dot_product_attention", as_on_cuda)
    costs = []
    for name in ("flash", "math"):
        with facts.only_attention(name):
            costs.append(attention_cost(torch.device("cpu"), torch.bfloat16, 128).pair)
    assert costs[0] == 0 and costs[1] >= 2
    assert comfy.ops.SDPA_BACKEND_PRIORITY is order


def test_an_error_is_not_taken_for_a_missing_kernel(monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    cpu = Card(torch.device("cpu"), tiny=True)
    assert facts.attention_seconds(cpu, "cudnn") is None
    monkeypatch.setattr(facts, "seconds", fails)
    with pytest.raises(torch.OutOfMemoryError):
        facts.attention_seconds(cpu, "math")


def test_what_is_free_is_said_for_a_while():
    before = management.get_free_memory
    with told_free(5):
        assert management.get_free_memory(CUDA.device) == 5
        assert management.get_free_memory(CUDA.device, torch_free_too=True) == (5, 0)
    assert management.get_free_memory is before


def test_no_test_here_reaches_the_network():
    with pytest.raises(AssertionError, match="asks for the network"):
        socket.create_connection(("127.0.0.1", 9))
