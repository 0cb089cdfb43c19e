"""DynamicVRAM as far as that goes without a card: when its library is loaded, and which weights are compared."""

import subprocess
import sys
from types import SimpleNamespace

import comfy.memory_management
import comfy.model_patcher
import pytest
import torch

from lab.gpu import dynamic, processes
from lab.gpu.card import Card
from lab.gpu.outcome import Outcome, Skipped
from lab.provenance import ROOT
from tests.comfy.gpu.test_checks import CPU, failed, passed

CUDA = Card(torch.device("cuda", 1))
ASKED = """
import lab.gpu.dynamic
from comfy_aimdo import control, host_buffer, model_vbar, vram_buffer
print([module.lib is control.lib is not None for module in (host_buffer, vram_buffer, model_vbar)])
"""


@pytest.mark.parametrize("number", (1, *processes.OWN_PROCESS))
def test_the_library_is_loaded_before_comfyui_is_imported(number):
    """Its modules take it once, as they are imported. `control.init` needs no card."""
    loads = number in processes.OWN_PROCESS
    code = processes.code_of(number)
    assert code.endswith(processes.COMMAND) and code.startswith("import comfy_aimdo") == loads
    asked = code.removesuffix(processes.COMMAND) + ASKED
    told = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == str([loads] * 3)


@pytest.fixture
def library(monkeypatch):
    """A card, and comfy-aimdo's modules with a library that starts on it."""
    control = SimpleNamespace(lib=object(), devices=[], starts=True)

    def init_devices(devices):
        control.devices += devices
        return control.starts

    control.init_devices = init_devices
    monkeypatch.setattr(dynamic.comfy_aimdo, "control", control)
    monkeypatch.setattr(dynamic.comfy_aimdo.host_buffer, "lib", control.lib)
    monkeypatch.setattr(dynamic.management, "torch_version_numeric", (2, 8))
    monkeypatch.setattr(torch.version, "hip", None)
    for module, name in ((comfy.model_patcher, "CoreModelPatcher"), (comfy.memory_management, "aimdo_enabled")):
        monkeypatch.setattr(module, name, getattr(module, name))
    return control


def test_turning_it_on(library):
    dynamic.turn_on(CUDA)
    assert library.devices == [(1, 0)] and comfy.memory_management.aimdo_enabled
    assert comfy.model_patcher.CoreModelPatcher is comfy.model_patcher.ModelPatcherDynamic


def test_a_library_that_came_too_late_is_a_failure(library, monkeypatch):
    monkeypatch.setattr(dynamic.comfy_aimdo.host_buffer, "lib", None)
    with pytest.raises(RuntimeError, match="after ComfyUI was imported"):
        dynamic.turn_on(CUDA)
    assert not comfy.memory_management.aimdo_enabled


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda library, patch: setattr(library, "lib", None), "library does not load"),
        (lambda library, patch: setattr(library, "starts", False), "found no device"),
        (lambda library, patch: patch.setattr(dynamic.management, "torch_version_numeric", (2, 7)), "PyTorch 2.8"),
        (lambda library, patch: patch.setattr(torch.version, "hip", "6.4"), "needs an Nvidia card"),
    ],
)
def test_where_there_is_none_the_check_is_skipped(library, monkeypatch, change, reason):
    change(library, monkeypatch)
    with pytest.raises(Skipped, match=reason):
        dynamic.turn_on(CUDA)


class Vbar:
    """comfy-aimdo's module; `here` are the places whose memory is on the card."""

    def __init__(self):
        self.here = {"a", "b"}
        self.pinned = 0

    def vbar_fault(self, place):
        if place not in self.here:
            return None
        self.pinned += 1
        return place

    def vbar_unpin(self, place):
        self.pinned -= 1

    def vbar_signature_compare(self, one, other):
        return one is not None and one == other


@pytest.fixture
def streamed(monkeypatch, tmp_path):
    """A small MODEL of which two layers are resident, and where they are."""
    monkeypatch.setattr(dynamic, "FOLDER", tmp_path)
    vbar = Vbar()
    monkeypatch.setattr(dynamic, "vbar", vbar)
    patcher = dynamic.small_model(CPU)
    block = patcher.model.diffusion_model.double_blocks[0]
    for place, layer in (("a", block.txt_attn.qkv), ("b", block.img_attn.qkv)):
        layer._v = layer._v_signature = place
        layer._v_weight, layer._v_bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    return patcher, block.txt_attn.qkv, vbar


def test_resident_weights_are_compared_as_well(streamed, monkeypatch):
    """The state dict holds copies in main memory: a LoRA in the resident weight does not show there."""
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    patcher, layer, vbar = streamed
    before = dynamic.checksums(patcher)
    same = Outcome()
    dynamic.note_weights(same, patcher, before)
    assert passed(same).figures["resident weights that were compared"] == 4 and vbar.pinned == 0
    layer._v_weight[0] += 1
    changed = Outcome()
    dynamic.note_weights(changed, patcher, before)
    failed(changed, "the weights are as before")


def test_what_was_evicted_is_not_touched(streamed, monkeypatch):
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    patcher, layer, vbar = streamed
    before = dynamic.checksums(patcher)
    layer._v_weight = None  # reading it would end the process
    vbar.here.remove("a")
    one = Outcome()
    dynamic.note_weights(one, patcher, before)
    assert passed(one).figures["resident weights that were compared"] == 2
    vbar.here.clear()
    none = Outcome()
    dynamic.note_weights(none, patcher, before)
    failed(none, "weights were resident")
