"""How a training makes itself fit, through ComfyUI's own memory management; only its numbers are made up."""

import dataclasses
import weakref

import comfy.model_management as management
import comfy.model_patcher
import pytest
import torch

from eraseanything_core.comfy_bridge import host
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.memory import cheapest_plan
from eraseanything_core.comfy_bridge.text import ComfyTextEncoder
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.evaluation.attack_runs import run_inversion, run_relearning
from eraseanything_core.evaluation.weight_attacks import ConceptExamples, InversionConfig, RelearnConfig
from eraseanything_core.training import optimizers, trainer
from eraseanything_core.training.placed import placed_bytes
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.recipe import estimate_memory, train_eraser
from eraseanything_core.training.trajectory_cache import TrajectoryCache

ROOM = 2**40


@pytest.fixture
def free(patcher, monkeypatch):
    """Sets what ComfyUI finds free with nothing loaded, in bytes; it keeps nothing for a forward of its own."""
    patcher.model.memory_usage_factor = 0.0
    monkeypatch.setattr(management, "minimum_inference_memory", management.extra_reserved_memory)

    def set_free(size):
        found = lambda *_, torch_free_too=False: (size, 0) if torch_free_too else size  # noqa: E731
        monkeypatch.setattr(management, "get_free_memory", found)
        management.unload_all_models()

    return set_free


@pytest.fixture
def like_a_card(monkeypatch):
    """ComfyUI loads as onto a card with VRAM of its own; the weights still lie on the CPU."""
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    monkeypatch.setattr(management, "MIN_WEIGHT_MEMORY_RATIO", 0.0)  # as on an Nvidia card


def needs(patcher, clip, config, free):
    """The estimates with the blocks kept and recomputed."""
    plan = prepare(config, ComfyTextEncoder(clip))
    free(ROOM)
    kept = estimate_memory(ComfyHost(patcher, clip), plan)
    free(0)
    return kept, estimate_memory(ComfyHost(patcher, clip), plan)


def cast(patcher):
    """Bytes of the layers that ComfyUI left in main memory, cast when they are used."""
    modules = patcher.model.diffusion_model.modules()
    left = [m for m in modules if hasattr(m, "prev_comfy_cast_weights")]
    return sum(p.nbytes for m in left for p in m.parameters(recurse=False))


def test_the_estimate_asks_comfyui_what_is_free(patcher, clip, config, free):
    """It keeps the blocks while they fit, recomputes them when they do not, and then leaves weights behind."""
    roomy, none = needs(patcher, clip, config, free)
    reserved, weights = management.extra_reserved_memory(), patcher.model_size()
    plan = prepare(config, ComfyTextEncoder(clip))
    found = {}
    for name, size in (
        ("kept", weights + roomy.activations),
        ("recomputed", weights + roomy.activations - 1),
        ("still recomputed", weights + none.activations),
        ("offloaded", weights // 2 + none.activations),
    ):
        free(reserved + size)
        found[name] = estimate_memory(ComfyHost(patcher, clip), plan)
    assert none.activations < roomy.activations
    told = {name: (fit.gradient_checkpointing, fit.offloaded) for name, fit in found.items()}
    assert told == {
        "kept": (False, 0),
        "recomputed": (True, 0),
        "still recomputed": (True, 0),
        "offloaded": (True, weights - weights // 2),
    }


def test_what_grows_the_estimate(patcher, clip, config, free):
    """Resolution, batch and precision: each takes what its shapes say."""

    def with_(**change):
        changed = dataclasses.replace(config, **change)
        encodings = placed_bytes(prepare(changed, ComfyTextEncoder(clip)))
        return needs(patcher, clip, changed, free)[0].activations - encodings

    base = with_()
    masters = (4 + 4 + 4 + 2 * 2 * 8) * 2 * config.rank * (256 + 256) * 2  # and the copies
    tokens, more = 32 + 36, 32 + 144
    assert (with_(width=192, height=192) - masters) / (base - masters) == pytest.approx(more / tokens, rel=1e-3)
    assert (with_(batch_size=6) - masters) / (base - masters) == pytest.approx(3, rel=1e-3)
    assert with_(dtype="bf16") < 0.6 * base


@pytest.mark.parametrize("alternate", (True, False))
@pytest.mark.parametrize("name", optimizers.installed())
def test_the_estimate_counts_what_the_optimiser_keeps(patcher, clip, config, free, name, alternate):
    """Against the states that a pair leaves, of two optimisers or one; Prodigy keeps less of factors that are zero."""
    config = dataclasses.replace(config, optimizer=name, alternate=alternate, rank=64)
    plan, kept = prepare(config, ComfyTextEncoder(clip)), []
    with training_session(patcher) as model:
        lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(0))
        both = [optimizers.lora_optimizer(lora, 1e-3, config) for _ in range(2)]
        trainer.train_pair(model, plan, TrajectoryCache(model, plan).epoch(0), 0, lora, both)
        weights = sum(p.numel() for p in lora.parameters())
        for held in (held for each in both for held in each.state.values()):
            kept += [t.nbytes for t in held.values() if torch.is_tensor(t) and t.numel() > 256]
    told = needs(patcher, clip, config, free)[0].activations
    other = dataclasses.replace(config, optimizer="adamw", alternate=False)
    plain = needs(patcher, clip, other, free)[0].activations - 2 * 8 * weights
    states = (told - plain) / 2  # and a copy of the last whole pair's
    assert 0.85 * states < sum(kept) <= 1.02 * states


@pytest.mark.parametrize("auto", (True, False))
def test_auto_recomputes_when_it_must_and_says_so(patcher, clip, config, free, auto):
    """The setting is the user's without `auto`. Both ways give the LoRA of a run with room."""
    roomy, _ = needs(patcher, clip, config, free)
    free(ROOM)
    whole = train_eraser(ComfyHost(patcher, clip), config, auto=auto)
    free(management.extra_reserved_memory() + patcher.model_size() + roomy.activations - 1)
    tight = train_eraser(ComfyHost(patcher, clip), config, auto=auto)
    assert (whole.config.gradient_checkpointing, tight.config.gradient_checkpointing) == (False, auto)
    assert all(torch.allclose(whole.lora[k], tight.lora[k], atol=1e-6) for k in whole.lora)
    if auto:
        assert "kept for backward" in whole.summary("x") and "recomputed in backward" in tight.summary("x")
    else:
        assert whole.notes == tight.notes == []


def test_auto_leaves_weights_in_main_memory_and_says_so(patcher, clip, config, free, like_a_card):
    """ComfyUI is asked to keep the estimate free: it leaves as much behind as was told, and the LoRA is the same."""
    _, none = needs(patcher, clip, config, free)
    free(ROOM)
    whole = train_eraser(ComfyHost(patcher, clip), config)
    assert cast(patcher) == 0
    weights = patcher.model_size()
    free(management.extra_reserved_memory() + weights // 2 + none.activations)
    said = []
    step = lambda *_: said.append("a step")  # noqa: E731
    tight = train_eraser(ComfyHost(patcher, clip), config, step, auto=True, notify=said.append)
    assert tight.config.gradient_checkpointing and cast(patcher) == pytest.approx(weights // 2, rel=0.15)
    told = f"recomputed in backward; {(weights - weights // 2) / 2**30:.1f} GiB of weights stay in main memory"
    assert told in tight.notes[0] and said == [tight.notes[0], *["a step"] * config.steps]
    assert all(torch.allclose(whole.lora[k], tight.lora[k], atol=1e-6) for k in whole.lora)


@pytest.mark.parametrize(
    "attack, config",
    [
        (run_inversion, InversionConfig(steps=2, batch_size=2)),
        (run_relearning, RelearnConfig(steps=2, batch_size=2, retain_weight=1.0)),
    ],
)
def test_an_attack_fits_as_a_training_does(patcher, clip, free, caplog, attack, config):
    """Blocks are kept, or recomputed where there is no room, and what is found is the same."""
    latents = torch.randn(3, 16, 12, 12, generator=torch.Generator().manual_seed(0))
    examples = ConceptExamples(latents, "a red star", "star")
    runs = []
    for room, told in ((ROOM, "kept for backward"), (0, "recomputed in backward")):
        free(room)
        with caplog.at_level("INFO"):
            *found, losses = attack(ComfyHost(patcher, clip), {}, examples, config)
        assert told in caplog.text
        caplog.clear()
        runs.append(torch.tensor(losses))
    assert runs[0][0] != runs[0][1] and torch.allclose(*runs, rtol=1e-4)


@pytest.mark.parametrize("how", ("lowvram", "novram", "reserve_vram"))
def test_partly_loaded_models(patcher, clip, config, free, like_a_card, monkeypatch, how):
    """The flags of ComfyUI as they act: layers stay behind, and the LoRA is that of the whole model."""
    free(ROOM)
    whole = train_eraser(ComfyHost(patcher, clip), config)
    weights = patcher.model_size()
    if how == "reserve_vram":
        free(management.minimum_inference_memory() + 2 * weights)
        monkeypatch.setattr(management, "EXTRA_RESERVED_VRAM", management.EXTRA_RESERVED_VRAM + weights * 3 // 2)
    else:
        free(management.minimum_inference_memory() + weights // 2)
        state = {"lowvram": management.VRAMState.LOW_VRAM, "novram": management.VRAMState.NO_VRAM}[how]
        monkeypatch.setattr(management, "vram_state", state)
    with training_session(patcher):
        left = cast(patcher)
    assert left > 0.9 * weights if how == "novram" else 0.3 * weights < left < weights
    part = train_eraser(ComfyHost(patcher, clip), config)
    assert all(torch.allclose(whole.lora[k], part.lora[k], atol=1e-6) for k in whole.lora)


def loaded(module):
    """A model that ComfyUI believes to lie on a card; `meta` is a device that every PyTorch has."""
    patcher = comfy.model_patcher.ModelPatcher(module, torch.device("meta"), torch.device("cpu"))
    held = management.LoadedModel(patcher)
    held.real_model, held.model_finalizer = weakref.ref(module), weakref.finalize(module, lambda: None)
    return patcher, held


def test_the_text_encoder_leaves_the_card(free, monkeypatch):
    """And everything else does but the model itself."""
    (flux_, own), (_, text), (_, vae) = kept = [loaded(torch.nn.Linear(2, 2)) for _ in range(3)]
    monkeypatch.setattr(management, "current_loaded_models", [text, own, vae])
    free(0)
    host.release_others(flux_.clone())
    assert management.current_loaded_models == [own] and len(kept) == 3


def test_it_may_not_fit():
    assert "lower the resolution or the batch" in str(cheapest_plan(10, 20, 30, 11))
