"""The checks of `scripts/dev.py gpu` on the CPU at small sizes; each fails where what it watches is broken."""

import dataclasses
import itertools
import logging
import warnings
from contextlib import nullcontext

import comfy.model_management as management
import pytest
import torch

from eraseanything_core.comfy_bridge import frozen_view, static_copy, training_session
from eraseanything_core.comfy_bridge.gated_loras import GatedLoras
from eraseanything_core.comfy_bridge.memory import MemoryPlan
from eraseanything_core.comfy_bridge.patch import WindowedLora
from eraseanything_core.evaluation import weight_attacks
from eraseanything_core.lora.factors import add_to_weight
from eraseanything_core.training import losses, placed, recipe
from lab.gpu import (
    attacks,
    attention,
    columns,
    dynamic,
    facts,
    formats,
    gguf_file,
    gradients,
    previews,
    tinyflux,
    true_size,
)
from lab.gpu.card import Card, Peak, find_card
from lab.gpu.outcome import Outcome, Skipped
from lab.gpu.small_model import random_flux

CPU = Card(torch.device("cpu"), tiny=True)


def passed(outcome):
    assert outcome.problems == [] and outcome.figures
    return outcome


def failed(outcome, words):
    assert any(words in problem for problem in outcome.problems), outcome.problems


def test_there_is_no_card_here(monkeypatch):
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("cpu"))
    assert find_card() is None and find_card("cpu") == CPU


def test_facts(monkeypatch):
    found = passed(facts.check(CPU)).figures
    assert found["torch"] == torch.__version__ and found["attention by math"].endswith(" ms")
    assert found["TFLOP a second in bfloat16"] > 0
    assert found["allocator in ComfyUI"] == "none" and found["DynamicVRAM in ComfyUI"] == "off"
    monkeypatch.setattr(facts, "attention_seconds", lambda card, backend: None)
    failed(facts.check(CPU), "there is an attention with a backward")


def test_gradients(monkeypatch):
    outcome = passed(gradients.check(CPU))
    assert len(outcome.figures) == 3 * 2 * (4 + 1)  # types, ways, losses and their cosine

    # On the card alone, and not in float64, backward takes the rows of a weight in another order.
    def flipped(weight):
        return weight.flip(0) if weight.dtype == torch.float32 else weight

    monkeypatch.setattr(frozen_view, "_dequantized", flipped)
    monkeypatch.setattr(gradients, "ERROR", {torch.float32: 1e-4})
    failed(gradients.check(CPU), "float32, kept, esd: error")


def test_formats(monkeypatch):
    outcome = passed(formats.check(CPU))
    forms = ("fp8", "fp8 fast", "fp8 scaled", "int8 convrot")
    ways = {f"{form}{way}: cosine" for form in forms for way in ("", ", recomputed")}
    assert ways <= set(outcome.figures)
    # The backward forgets the scale of a quantised weight.
    plain = frozen_view._dequantized

    def unscaled(weight):
        return plain(weight) if type(weight) in (torch.Tensor, torch.nn.Parameter) else plain(weight).sign()

    monkeypatch.setattr(frozen_view, "_dequantized", unscaled)
    monkeypatch.setattr(formats, "QUANTISED", {"fp8 scaled": ("float8_e4m3fn", {})})
    failed(formats.check(CPU), "fp8 scaled, recomputed: cosine")


@pytest.mark.parametrize("has_kernels", (False, True))
def test_a_card_without_kernels_for_a_format_is_held_to_the_narrow_bound(monkeypatch, has_kernels):
    """What ComfyUI has no kernel for it unpacks, and then no input is rounded."""
    card = Card(torch.device("cuda"))
    for kind in ("fp8", "nvfp4", "mxfp8"):
        monkeypatch.setattr(management, f"supports_{kind}_compute", lambda device: has_kernels)
    for name, bound in formats.ROUNDED.items():
        assert formats.bound_of(card, name) == (bound if has_kernels else 0.999)
    assert formats.bound_of(card, "fp8") == formats.bound_of(CPU, "nvfp4") == 0.999


def test_gguf(monkeypatch, tmp_path):
    """Where ComfyUI-GGUF is installed; here its node is one that unpacks the file itself."""
    monkeypatch.setattr(gguf_file, "FILE", tmp_path / "small.gguf")
    written = []

    class Node:
        def load_unet(self, name):
            assert (tmp_path / name).stat().st_size > 2**20
            return (formats.load(written[-1], dtype=torch.float32),)

    def write(state, is_packed):
        written.append(plain(state, is_packed))
        return written[-1]

    plain = gguf_file.written
    monkeypatch.setattr(gguf_file, "written", write)
    monkeypatch.setattr(gguf_file, "gguf_node", lambda: Node)
    state = dict(random_flux(torch.bfloat16).state_dict())
    outcome = Outcome()
    formats.check_gguf(outcome, state)
    assert passed(outcome).figures["GGUF, recomputed: cosine"] > 0.999
    # A node that unpacks another file.
    monkeypatch.setattr(Node, "load_unet", lambda node, name: (formats.load({k: v.sign() for k, v in state.items()}),))
    formats.check_gguf(outcome, state)
    failed(outcome, "GGUF: cosine")
    monkeypatch.setattr(gguf_file, "gguf_node", lambda: None)
    formats.check_gguf(outcome, state)
    assert outcome.figures["GGUF"] == "ComfyUI-GGUF is not installed"


def test_columns(monkeypatch):
    outcome = passed(columns.check(CPU))
    assert sum("grad k" in name for name in outcome.figures) >= 4  # two types by flash and math
    assert outcome.figures["float32, cudnn"] == "none"  # a CPU has no such kernel

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(columns, "with_gradients", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        columns.by_backend(CPU, torch.float32, columns.BACKENDS["math"])
    monkeypatch.undo()
    plain = columns.columns.attention_columns
    monkeypatch.setattr(columns.columns, "attention_columns", lambda q, k, select: plain(1.1 * q, k, select))
    failed(columns.check(CPU), "float32, math, columns")


def test_memory():
    outcome = passed(true_size.check_memory(CPU))
    assert len(outcome.figures) == 4 * (len(true_size.TINY_CASES) + 2)
    assert {"flash", "math"} == set(true_size.backends_of(CPU))
    assert sum(value == "not measured here" for value in outcome.figures.values()) == len(outcome.figures) / 4
    judged = Outcome()
    case = true_size.CASES[0]
    for ratio in (0.9, 0.84, 1.01):
        true_size.judge_memory(judged, str(case), ratio)
    assert [problem.split(" is ", 1)[1] for problem in judged.problems] == [
        "0.84, at least 0.85 is right",
        "1.01, at most 1 is right",
    ]


def test_a_case_that_does_not_fit_leaves_the_others(monkeypatch):
    peaks = iter((Peak(2**30, 2**31), None, Peak(2**30, 2**20)))

    def measured(card, case):
        peak = next(peaks)
        if peak is None:
            raise torch.OutOfMemoryError("out of memory")
        return peak, MemoryPlan(False, activations=2**28, weights=2**29, free=0)

    monkeypatch.setattr(true_size, "peak_and_estimate", measured)
    outcome = Outcome()
    for name in ("a", "b", "c"):
        true_size.measure_memory(outcome, CPU, true_size.TINY_CASES[0], name)
    assert outcome.problems == ["a: GiB held beyond live tensors is 2, at most 1 is right", "b: out of memory"]
    assert outcome.figures["c: GiB held beyond live tensors"] == 2**-10
    assert outcome.figures["c: activations over estimate"] == 2  # of a GiB, half are weights


def test_a_pair_is_the_trainers_and_the_estimate_the_recipes(monkeypatch):
    """Its encodings lie on the card, and are a part of what is told."""
    case = true_size.TINY_CASES[1]
    with true_size.pairs_of(CPU, case) as pairs:
        assert pairs.plan.placed is not None and pairs.plan.placed.taken > 0
        told = true_size.estimate(case, pairs).activations
        monkeypatch.setattr(recipe, "placed_bytes", lambda plan: 2**40)
        assert true_size.estimate(case, pairs).activations - told == 2**40 - placed.placed_bytes(pairs.plan)
        monkeypatch.undo()
        kept = true_size.estimate(dataclasses.replace(case, recompute=False), pairs).activations
        assert kept > told  # four blocks of this size take more where all are kept
    assert not vars(pairs)  # the caller holds nothing of the run


def test_twenty_pairs_are_timed_after_five(monkeypatch):
    class Run:
        number = 2  # as many as have run by then

        def next(self):
            self.number += 1
            begun.append(clock[0])
            clock[0] += 1.0 if self.number > 5 else 100.0

    begun, clock = [], [0.0]
    monkeypatch.setattr(true_size.time, "perf_counter", lambda: clock[0])
    assert true_size.pair_seconds(Card(torch.device("cpu")), Run()) == 1.0
    assert len(begun) == 3 + 20


def test_speed():
    outcome = true_size.check_speed(CPU)
    assert {f"batch {batch}: times slower than its products" for batch in (1, 4)} == set(outcome.figures)
    assert min(outcome.figures.values()) > 0
    judged = Outcome()
    true_size.judge_speed(judged, 1, seconds=5.0, flop=100, rate=100.0)
    passed(judged)
    true_size.judge_speed(judged, 4, seconds=2.1, flop=100, rate=100.0)
    failed(judged, "batch 4: times slower than its products")


def test_waits_of_a_pair_are_counted(monkeypatch):
    """PyTorch's warnings, here without a card."""

    class Run:
        def next(self):
            for _ in range(waits):
                warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
            warnings.warn("something else", UserWarning, stacklevel=1)

    modes = []
    monkeypatch.setattr(true_size, "pairs_of", lambda card, case: nullcontext(Run()))
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    card = Card(torch.device("cuda"))
    waits = 2
    assert passed(true_size.check_waiting(card)).figures == {"waits in a pair": 2}
    waits = 3
    failed(true_size.check_waiting(card), "waits in a pair is 3")
    assert modes == ["warn", "default"] * 2


@pytest.mark.parametrize("check", (true_size.check_waiting, dynamic.check_sessions))
def test_what_a_cpu_has_not_is_skipped_with_a_sentence(check):
    with pytest.raises(Skipped, match=r"^[A-Z].*\.$"):
        check(CPU)


@pytest.fixture
def streamed(monkeypatch):
    """A bf16 MODEL of which fp8 was asked, as DynamicVRAM holds it."""
    state = random_flux(torch.bfloat16).state_dict()
    monkeypatch.setattr(dynamic.comfy.memory_management, "aimdo_enabled", True)

    def load(disable_dynamic=False):
        copies = {name: tensor.clone() for name, tensor in state.items()}
        options = {"dtype": torch.float8_e4m3fn}
        with torch.inference_mode():
            return dynamic.comfy.sd.load_diffusion_model_state_dict(copies, options, disable_dynamic=disable_dynamic)

    patcher = load()
    patcher.cached_patcher_init = (load, ())
    monkeypatch.setattr(patcher, "is_dynamic", lambda: True)
    return patcher


def test_sessions_of_a_streamed_model(streamed, monkeypatch):
    passed(dynamic.check_sessions(CPU, streamed))
    monkeypatch.setattr(static_copy, "_cast_to_asked_types", lambda module: None)
    # A view that is not dissolved holds its weights in a cycle.
    monkeypatch.setattr(training_session, "dissolve", lambda view: None)
    sizes = iter((0, 2**30))
    monkeypatch.setattr(Card, "used", lambda card: next(sizes))
    wrong = dynamic.check_sessions(CPU, streamed)
    failed(wrong, "the type that was asked for")
    failed(wrong, "no weight of a session outlives it")
    failed(wrong, "GiB that are left on the card")


def test_a_window(monkeypatch, tmp_path):
    monkeypatch.setattr(dynamic, "FOLDER", tmp_path)
    patcher = dynamic.small_model(CPU)
    passed(dynamic.check_window(CPU, patcher))
    plain = WindowedLora.__call__

    def three_times_as_strong(wrapper, weight):
        return weight + 3 * (plain(wrapper, weight) - weight)

    monkeypatch.setattr(WindowedLora, "__call__", three_times_as_strong)
    wrong = dynamic.check_window(CPU, patcher)
    failed(wrong, "a window over all steps has the bits of the patched weights")
    failed(wrong, "from ComfyUI's patch")

    def into_the_weight(wrapper, weight):
        if wrapper.window.is_open:
            add_to_weight(patcher.model.diffusion_model.double_blocks[0].txt_attn.qkv.weight, 256, wrapper.factors)
        return weight

    monkeypatch.setattr(WindowedLora, "__call__", into_the_weight)
    failed(dynamic.check_window(CPU, patcher), "the weights are as before")


def test_previews(monkeypatch):
    passed(previews.check(CPU))
    monkeypatch.setattr(previews, "look_seconds", lambda *_: 2.5)
    monkeypatch.setattr(previews, "loaded_bytes", lambda model: 0)
    wrong = previews.check(CPU)
    failed(wrong, "seconds of a look's pictures")
    failed(wrong, "the training's weights stay where they are")
    monkeypatch.setattr(previews, "LOOKS", {})
    failed(previews.check(CPU), "every pair was looked at")


def test_tinyflux():
    found = passed(tinyflux.check(CPU)).figures
    assert "held-out pictures" in found["verdict"]
    # Two pairs erase nothing: both judges see what is asked, also what is to go.
    assert {name: found[name] for name in found if name.startswith("acc_e")} == {
        "acc_e, oracle": 1.0,
        "acc_e, cnn": 1.0,
    }
    judged = Outcome()
    tinyflux.judge(judged, {"acc_e, cnn": 0.05, "acc_ir, cnn": 0.95})
    passed(judged)
    tinyflux.judge(judged, {"acc_e, cnn": 0.95, "acc_g, oracle": 0.15, "acc_ir, cnn": 0.85})
    failed(judged, "acc_e, cnn: pictures that show the concept")
    failed(judged, "acc_g, oracle: pictures that show the concept")
    failed(judged, "acc_ir, cnn: pictures that show another one")


def test_attention(monkeypatch):
    outcome = passed(attention.check(CPU))
    assert outcome.figures["attention_pytorch: a closed gate changes no bit"] is True
    assert outcome.figures["attention_sage"] == "not installed"
    monkeypatch.setattr(attention, "ATTENTIONS", {"attention_pytorch": "torch"})
    monkeypatch.setattr(attention, "probing", attention.erasing)
    assert outcome.figures["attention_pytorch: a probe, MB more after 20 steps"] == "not measured here"
    # Gates that are always open, and a sampling that keeps 10 MB of each step.
    monkeypatch.setattr(GatedLoras, "gates", lambda gated, x, *_: torch.ones(len(x), 1))
    kept = itertools.count(0, 10_000_000)
    monkeypatch.setattr(Card, "allocated", lambda card: next(kept))
    wrong = attention.check(CPU)
    failed(wrong, "a probe changes no bit")
    failed(wrong, "a closed gate changes no bit")
    failed(wrong, "Attention Erase, MB more after 20 steps is 190")


def test_an_attention_that_comfyui_replaces_has_not_run(monkeypatch):
    """Its function logs a sentence and takes PyTorch's."""
    monkeypatch.setattr(attention, "ATTENTIONS", {"attention_pytorch": "torch"})
    plain = attention.sampled

    def replaced(*args):
        logging.warning("Flash Attention failed, using default SDPA: no kernel")
        return plain(*args)

    monkeypatch.setattr(attention, "sampled", replaced)
    failed(attention.check(CPU), "attention_pytorch: it ran itself")


def test_attacks_move_latents_and_factors(monkeypatch):
    """To where the model is; `meta` is a card whose latents no CPU can take."""
    with pytest.raises(NotImplementedError, match="meta"):
        attacks.check(Card(torch.device("meta"), tiny=True))
    given = []
    for name in ("run_inversion", "run_relearning"):
        run = getattr(attacks, name)
        monkeypatch.setattr(
            attacks, name, lambda host, lora, *rest, run=run: given.append(lora) or run(host, lora, *rest)
        )
    passed(attacks.check(CPU))
    assert len(given) == 2 and all(any(t.any() for name, t in lora.items() if "lora_B" in name) for lora in given)


def test_attacks(monkeypatch):
    plain = losses.flow_matching_loss
    monkeypatch.setattr(weight_attacks, "flow_matching_loss", lambda *args: plain(*args) * float("nan"))
    failed(attacks.check(CPU), "inversion: finite")
