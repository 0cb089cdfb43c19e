"""The looks from outside measure what their names say, and the run stops on them."""

import dataclasses

import comfy.model_management as management
import comfy.sd
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.previews import small_pictures
from eraseanything_core.comfy_bridge.text import ComfyTextEncoder
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.concepts import prompts
from eraseanything_core.training import monitor
from eraseanything_core.training import plan as plan_module
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.recipe import train_eraser
from lab.tinyflux.pipeline import WEIGHTS


@pytest.fixture
def looked(patcher, clip, config):
    """Scores of a student whose `up` factors are filled by a function."""

    def scores(fill, **change):
        config_ = dataclasses.replace(config, monitor_every=1, **change)
        plan = prepare(config_, ComfyTextEncoder(clip))
        with training_session(patcher) as model:
            lora = model.attach("all_qkv", 4, torch.Generator().manual_seed(0))
            eyes = monitor.Monitor(model, plan)
            for up in lora.up:
                fill(up.data)
            return eyes.measure()

    return scores


def test_an_untrained_student_is_the_teacher(looked):
    assert looked(lambda up: up.zero_()) == pytest.approx({"concept": 1.0, "attention": 1.0, "drift": 0.0}, abs=1e-5)


def test_a_student_that_moved_has_drifted(looked):
    chance = torch.Generator().manual_seed(1)
    scores = looked(lambda up: up.normal_(0, 0.5, generator=chance))
    assert scores["drift"] > 0.01 and abs(scores["attention"] - 1) > 1e-3 and abs(scores["concept"] - 1) > 1e-3


def test_erasing_lowers_the_concept_score(patcher, clip, config):
    """All projections, without what preserves: the held-out sentence goes towards the neutral prompt."""
    change = {"steps": 30, "monitor_every": 15, "batch_size": 4, "targets": "all_qkv", "lr_low": 3e-3, "eta": 0.0}
    config = dataclasses.replace(config, retain_weight=0.0, rsc_weight=0.0, shuffle_rate=0.0, **change)
    seen = train_eraser(ComfyHost(patcher, clip), config).scores
    assert seen["pair"] == [15, 30] and seen["concept"][1] < 0.9


def test_each_score_sums_over_three_sentences(patcher, clip, config):
    """Against the formulas, one point at a time."""
    plan = prepare(dataclasses.replace(config, monitor_every=1), ComfyTextEncoder(clip))
    with training_session(patcher) as model, torch.no_grad():
        lora = model.attach("all_qkv", 4, torch.Generator().manual_seed(0))
        eyes = monitor.Monitor(model, plan)
        for up in lora.up:
            up.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
        sums = torch.zeros(4, dtype=torch.float64)
        for i, (sentence, kept, step) in enumerate(
            zip(plan.monitor_sentences, plan.monitor_retained, (1, 2, 1), strict=True)
        ):

            def asked(pool, prompt, adapters, i=i, step=step):
                cond = plan_module.conds(model, plan, [prompt])
                return model.velocity(pool.x[i, step][None], pool.sigmas[step][None], cond, adapters).double()

            teacher, student = (asked(eyes.concept, sentence.concept, adapters) for adapters in (False, True))
            neutral = asked(eyes.concept, sentence.neutral, False)
            line, moved = teacher - neutral, asked(eyes.retain, kept, True) - asked(eyes.retain, kept, False)
            squares = moved.square().sum(), asked(eyes.retain, kept, False).square().sum()
            sums += torch.stack([((student - neutral) * line).sum(), line.square().sum(), *squares])
        scores = eyes.measure()
    expected = sums[0] / sums[1], (sums[2] / sums[3]).sqrt()
    assert (scores["concept"], scores["drift"]) == pytest.approx([float(e) for e in expected], rel=1e-4)


def planned(clip, config, **change):
    plan = prepare(dataclasses.replace(config, monitor_every=5, **change), ComfyTextEncoder(clip))
    trained = {p.text for s in plan.sentences for p in s.prompts()} | {p.text for p in plan.retained}
    return plan, trained, {s.concept.text for s in plan.monitor_sentences}, {p.text for p in plan.monitor_retained}


@pytest.mark.parametrize("shuffle_rate", (0.0, 1.0))
def test_what_is_watched_is_never_trained_on(clip, config, shuffle_rate):
    """Not even where a template or a prompt to retain is one of the held-out sentences, in whatever order."""
    taken, retained, *others = prompts.MONITOR_TEMPLATES
    change = {"templates": (taken, "wall a on {} of poster A"), "retain": ("a green box", retained.format("tree"))}
    plan, trained, concept, kept = planned(
        clip, config, shuffle_rate=shuffle_rate, sentences=64, cached_trajectories=64, **change
    )
    assert len(concept) == len(kept) == 3 and not trained & (concept | kept)
    assert concept == {s.format("red star") for s in (others[0], others[1], others[3])}
    assert any(sorted(text.split()) == sorted(taken.format("red star").split()) for text in trained)


def test_all_held_out_sentences_as_templates(clip, config):
    with pytest.raises(ValueError, match="every sentence to watch is among the templates"):
        planned(clip, config, templates=prompts.MONITOR_TEMPLATES)


NEAREST = {  # what is typed: the words whose drift is watched
    "a concept set": ({"tiers": (("dog",), ("tree", "house"))}, ("tree", "house", "a green box")),
    "prompts to retain": ({}, ("a green box", "tree", "house")),
    "a long prompt to retain": ({"retain": ("a " * 8 + "box",)}, ("tree", "house", "dog")),
    "nothing": (
        {"irrelevant": (), "retain": (), "rsc_weight": 0.0},
        ("a street", "a mountain lake", "a bowl of fruit"),
    ),
    "a common thing": (
        {"irrelevant": (), "retain": (), "rsc_weight": 0.0, "concept": "lake"},
        ("a street", "a bowl of fruit", "a woman with a book"),
    ),
}


@pytest.mark.parametrize("typed", NEAREST)
def test_the_neighbours_that_are_watched(clip, config, typed):
    change, words = NEAREST[typed]
    plan = planned(clip, config, **change)[0]
    templates = zip(prompts.MONITOR_TEMPLATES, words, strict=False)
    assert [p.text for p in plan.monitor_retained] == [s.format(w) for s, w in templates]


def test_it_stops_on_the_score_and_goes_no_further_when_resumed(patcher, clip, config, tmp_path):
    config = dataclasses.replace(config, steps=9, monitor_every=2, stop_score=1.01, lr_low=0.0, lr_up=0.0)
    for _ in range(2):
        result = train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path)
        assert result.steps == 2 and result.scores["pair"] == [2]
        assert "stopped after step 2: the concept score of 1.000 has reached 1.01" in result.summary("x")


def test_stopping_needs_looking(clip, config):
    with pytest.raises(ValueError, match="need monitor_every"):
        prepare(dataclasses.replace(config, stop_drift=0.1), ComfyTextEncoder(clip))


def test_the_curves_are_shown_without_looking(patcher, clip, config):
    """Whenever the losses were read."""
    shown, config = [], dataclasses.replace(config, steps=11, width=32, height=32, batch_size=1, retain_batch_size=1)
    train_eraser(
        ComfyHost(patcher, clip), config, show=lambda latents, run: shown.append((latents, len(run.losses["esd"])))
    )
    assert shown == [(None, 1), (None, 10)]


def test_watching_does_not_change_the_run(patcher, clip, config):
    """Neither the looks nor the pictures: they have chance of their own."""
    shown = []
    watched = dataclasses.replace(config, monitor_every=1)
    plain = train_eraser(ComfyHost(patcher, clip), config)
    seen = train_eraser(ComfyHost(patcher, clip), watched, show=lambda latents, run: shown.append(latents))
    assert all(torch.equal(plain.lora[k], seen.lora[k]) for k in plain.lora)
    assert len(shown) == 3 and shown[0].shape == (3, 16, 12, 12)
    base = [latents[0] for latents in shown]
    assert torch.equal(base[0], base[2]) and not torch.equal(shown[0][1], shown[2][1])


def test_what_is_watched_may_change_when_a_run_goes_on(patcher, clip, config, tmp_path):
    """Looks, pictures and bounds have chance of their own: the LoRA has the bits of a run that nobody looked at."""

    def stop(step, _):
        if step == 1:
            raise KeyboardInterrupt

    whole = train_eraser(ComfyHost(patcher, clip), config)
    seen = dataclasses.replace(config, monitor_every=1, stop_score=0.01, stop_drift=9.0, preview_images=1)
    for first, then, folder in ((config, seen, "looked at later"), (seen, config, "no more")):
        train_eraser(ComfyHost(patcher, clip), first, stop, tmp_path / folder)
        rest = train_eraser(ComfyHost(patcher, clip), then, run_dir=tmp_path / folder)
        assert rest.steps == 3 and all(torch.equal(rest.lora[k], whole.lora[k]) for k in whole.lora)
        assert rest.scores["pair"] == ([2, 3] if then is seen else [1])
        assert (rest.samples is not None) == (then is seen)


@pytest.fixture
def weights():
    """TinyFlux's autoencoder, which is a TAESD."""
    return load_file(WEIGHTS / "tinyflux_vae.safetensors")


def test_small_pictures_by_the_given_vae(patcher, weights):
    vae, latents = comfy.sd.VAE(sd=weights), torch.randn(3, 16, 12, 12)
    expected = vae.decode(patcher.model.process_latent_out(latents))
    assert torch.allclose(small_pictures(patcher, latents, vae), expected, atol=1e-4)


def test_small_pictures_by_taesd(patcher, weights, tmp_path, monkeypatch):
    """The decoder that the user has in models/vae_approx; no VAE is loaded for it."""
    decoder = {k.removeprefix("taesd_decoder."): v for k, v in weights.items() if k.startswith("taesd_decoder.")}
    save_file(decoder, tmp_path / "taef1_decoder.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], {".safetensors"}))
    latents, before = torch.randn(3, 16, 12, 12), list(management.current_loaded_models)
    found = small_pictures(patcher, latents)
    expected = comfy.sd.VAE(sd=weights).decode(patcher.model.process_latent_out(latents))
    assert found.shape == (3, 96, 96, 3) and torch.allclose(found.clamp(0, 1), expected, atol=1e-4)
    assert management.current_loaded_models[: len(before)] == before


def test_small_pictures_without_a_vae(patcher):
    pictures = small_pictures(patcher, torch.randn(3, 16, 12, 12))
    assert pictures.shape == (3, 12, 12, 3) and pictures.min() >= 0 and pictures.max() <= 1
