"""What the presets promise, on a model of TinyFlux's shape; each trains with its own settings and is stopped early."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from eraseanything_core import sampling
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.lora import keys
from eraseanything_core.training import losses, optimizers, trajectory_cache
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.draws import draw_epoch
from eraseanything_core.training.optimizers import new_optimizer
from eraseanything_core.training.presets import PRESETS
from eraseanything_core.training.recipe import train_eraser
from eraseanything_core.training.trajectories import Trajectories
from lab.tinyflux.recipe import erase_config


@pytest.fixture
def begin(patcher, clip, config, monkeypatch):
    """Two pairs of a preset: the result, the blocks that each map was read from, and the losses' calls."""

    def run(preset):
        seen = SimpleNamespace(blocks=[], calls=[], optimizers=[])
        attach, new = FluxModel.capture, new_optimizer
        monkeypatch.setattr(FluxModel, "capture", lambda *a: seen.blocks.append(attach(*a)) or seen.blocks[-1])
        monkeypatch.setattr(optimizers, "new_optimizer", lambda *a: seen.optimizers.append(a) or new(*a))
        for name in ("flow_matching_loss", "retain_loss", "rsc_loss"):
            loss = getattr(losses, name)
            monkeypatch.setattr(losses, name, lambda *a, name=name, loss=loss: seen.calls.append((name, a)) or loss(*a))
        small = {"width": 32, "height": 32, "batch_size": 1, "retain_batch_size": 1}
        chosen = dataclasses.replace(config, **small | PRESETS[preset])

        def stop(step, _):
            if step == 2:
                raise KeyboardInterrupt

        return train_eraser(ComfyHost(patcher, clip), chosen, stop), seen

    return run


@pytest.mark.parametrize("preset", PRESETS)
def test_each_trains(begin, preset):
    result, seen = begin(preset)
    assert (result.steps, result.config.steps) == (2, PRESETS[preset]["steps"])
    printed = preset in ("paper", "reference")
    assert set(result.losses) == {"esd", "attn", "retain", "loss", *(["rsc"] if printed else [])}
    assert len(result.lora) == 8, "queries and keys of two dual blocks' text streams"
    assert all(t.abs().max() > 0 for t in result.lora.values())
    expected = sum(getattr(result.config, w) * result.losses[n][1] for n, w in WEIGHTS.items() if n in result.losses)
    assert result.losses["loss"][1] == pytest.approx(expected, rel=1e-4)
    names = {name for name, _ in seen.calls}
    assert names == ({"rsc_loss", "flow_matching_loss"} if printed else {"retain_loss"})
    assert all(given[-1] is printed for name, given in seen.calls if name == "rsc_loss"), "the sign as printed"
    if printed:
        {"paper": is_the_papers, "reference": is_the_published_codes}[preset](result, seen)


WEIGHTS = {"esd": "esd_weight", "attn": "attn_weight", "retain": "retain_weight", "rsc": "rsc_weight"}


def is_the_papers(result, seen):
    """1,000 steps in turn, rank 8, all weights 1, the two learning rates, walks of 28 steps, all maps."""
    config = result.config
    assert 2 * config.steps == 1000 and config.alternate and [rate for _, _, rate, _ in seen.optimizers] == [1e-3, 5e-4]
    assert all(len(t) == 8 for k, t in result.lora.items() if "lora_A" in k)
    assert [getattr(config, weight) for weight in WEIGHTS.values()] == [1.0] * 4
    assert config.sampling_steps == 28 and set(seen.blocks[-1].maps) == {0, 1}


def is_the_published_codes(result, seen):
    """200 steps in turn, its weights, one learning rate with decay, the maps of the last dual block alone."""
    config = result.config
    assert 2 * config.steps == 200 and config.alternate
    assert [(rate, decay) for _, _, rate, decay in seen.optimizers] == [(1e-3, 1e-5)] * 2
    assert [getattr(config, weight) for weight in WEIGHTS.values()] == [1.0, 0.001, 0.1, 0.1]
    assert all(set(capture.maps) == {1} for capture in seen.blocks)


@pytest.mark.parametrize("preset", ("paper", "reference"))
def test_the_papers_are_the_papers_over_tinyflux_recipe_too(preset):
    """What the shipped workflow holds trains keys and values on trajectories that the student walks."""
    recipe = erase_config("star", esd_weight=0.5)
    assert (recipe.targets, recipe.on_policy_share) == ("text_kv", 0.75)
    config = dataclasses.replace(recipe, **PRESETS[preset])
    assert config.esd_weight == 1.0
    assert (
        keys.target_names(config.targets) == ("add_q", "add_k") and config.student_rows(config.cached_trajectories) == 0
    )


ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "comfy" / "nodes.golden.json"


def cell(value):
    """A preset's value as the help page has it."""
    told = {"None": "", "True": "on", "False": "off", "(-1,)": "last"}
    return told.get(str(value), f"{value:g}" if isinstance(value, float) else str(value))


def test_the_help_page_names_all_that_a_preset_sets():
    """One row a setting, in the order of the presets, with the values that the trainer takes."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = page[page.index("| setting | `quick`") :].split("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table]
    assert head == ["setting", *PRESETS]
    names = dict.fromkeys(name for preset in PRESETS.values() for name in preset)
    assert rows == [[name, *(cell(preset.get(name)) for preset in PRESETS.values())] for name in names]
    inputs = json.loads(GOLDEN.read_text(encoding="utf-8"))["EraseAnything_EraseSettings"]["inputs"]
    fields = {path.split(".")[-1] for path in inputs}
    assert set(names) <= fields, "what a preset sets can be typed"


def drawn(preset, number):
    """The points of an epoch's pairs, without any model."""
    config = EraseConfig(concept="star", **PRESETS[preset])
    sigmas = sampling.shifted_sigmas(config.sampling_steps, 1.15)
    concept, retain = (
        Trajectories(list(range(n)), None, None, sigmas) for n in (config.cached_trajectories, config.retained_rows())
    )
    return config, draw_epoch(config, concept, retain, number)


@pytest.mark.parametrize(
    "preset, pairs, epochs, trajectories, steps, walked",
    (("quick", 88, 1, 16, 5, 0), ("balanced", 92, 2, 30, 4, 8), ("thorough", 400, 4, 16, 5, 4)),
)
def test_how_long_and_how_many(preset, pairs, epochs, trajectories, steps, walked):
    """Pairs, pools and what is in them; the student walks a quarter of the concept's later pools."""
    made = [drawn(preset, number) for number in range(epochs)]
    config = made[0][0]
    assert (config.steps, config.epochs(), config.sampling_steps) == (pairs, epochs, steps)
    assert [step for _, draws in made for step in draws] == list(range(pairs))
    for _, draws in made:
        every = [draw for chosen in draws.values() for draw in chosen]
        rows = {int(row) for draw in every for row in draw.erase[0]}
        assert rows <= set(range(trajectories)) and len(rows) >= 0.7 * trajectories, "chance leaves a few out"
        retained = {int(row) for draw in every for row in draw.retain[0]}
        enough = 0.6 * min(64, len(draws))
        assert retained <= set(range(64)) and len(retained) > enough, "most prompts have their turn"
        assert all(draw.rsc is None for draw in every)
    assert trajectory_cache.student_rows(config, 1, trajectories) == walked
    assert trajectory_cache.student_rows(config, 0, 100) == 0
