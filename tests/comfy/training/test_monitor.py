"""The looks from outside measure what their names say, and the run stops on them."""

import dataclasses

import pytest
import torch

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.comfy_bridge.text import ComfyTextEncoder
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.concepts import prompts
from eraseanything_core.training import gone, monitor, trainer, trajectory_cache
from eraseanything_core.training import plan as plan_module
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.recipe import train_eraser


@pytest.fixture
def looked(patcher, clip, config):
    """The monitor of a student whose `up` factors are filled by a function, and its scores."""

    def scores(fill, **change):
        config_ = dataclasses.replace(config, monitor_every=1, **change)
        plan = prepare(config_, ComfyTextEncoder(clip))
        with training_session(patcher) as model:
            lora = model.attach("all_qkv", 4, torch.Generator().manual_seed(0))
            eyes = monitor.Monitor(model, plan)
            for up in lora.up:
                fill(up.data)
            return eyes, eyes.look()

    return scores


def test_an_untrained_student_is_the_teacher(looked):
    eyes, scores = looked(lambda up: up.zero_())
    assert scores == pytest.approx({"shown": 1.0, "reading": 1.0, "kept": 1.0, "drift": 0.0}, abs=1e-5)
    assert not eyes.verdict.gone
    before, now, _ = eyes.previews
    assert torch.equal(before, now)


def test_a_student_that_moved_has_drifted(looked):
    chance = torch.Generator().manual_seed(1)
    eyes, scores = looked(lambda up: up.normal_(0, 0.5, generator=chance))
    assert scores["drift"] > 0.01 and scores["reading"] < 0.999
    before, now, _ = eyes.previews
    assert not torch.equal(before, now)


def test_erasing_lowers_the_reading(patcher, clip, config):
    """All projections, without what preserves: the held-out sentence goes towards the neutral prompt."""
    change = {"steps": 30, "monitor_every": 15, "batch_size": 4, "targets": "all_qkv", "lr_low": 3e-3, "eta": 0.0}
    config = dataclasses.replace(config, retain_weight=0.0, rsc_weight=0.0, shuffle_rate=0.0, **change)
    seen = train_eraser(ComfyHost(patcher, clip), config).scores
    assert seen["pair"] == [15, 30] and seen["reading"][1] < 0.9


def test_readings_are_their_formulas(looked, patcher, clip, config):
    """One picture at a time, in float64, from the definitions in the module."""
    config = dataclasses.replace(config, monitor_every=1, look_pictures=3)
    plan = prepare(config, ComfyTextEncoder(clip))
    with training_session(patcher) as model, torch.no_grad():
        lora = model.attach("all_qkv", 4, torch.Generator().manual_seed(0))
        reader = monitor.Monitor(model, plan).concept
        for up in lora.up:
            up.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
        x_s = reader.student()
        reading = reader.read(x_s)
        for i, sentence in enumerate(plan.monitor_sentences):
            x_c, x_n = reader.x_c[i].double(), reader.x_n[i].double()
            nearness = ((x_s[i] - x_n) * (x_c - x_n)).sum() / (x_c - x_n).square().sum()

            def preference(x, i=i, sentence=sentence):
                total = 0.0
                for t, errors in zip(gone.LEVELS, reader.errors, strict=True):
                    e = errors[i].double()
                    x_t = ((1 - t) * x + t * e)[None].float()
                    both = []
                    for prompt in (sentence.neutral, sentence.concept):
                        cond = plan_module.conds(model, plan, [prompt])
                        v = model.velocity(x_t, torch.tensor([t]), cond, adapters=False)[0].double()
                        both.append((v - (e - x)).square().mean())
                    total += (both[0] - both[1]) / len(gone.LEVELS)
                return total

            d_s, d_c, d_n = (preference(x) for x in (x_s[i].double(), x_c, x_n))
            assert float(reading.nearness[i]) == pytest.approx(float(nearness), rel=1e-3)
            assert float(reading.likelihood[i]) == pytest.approx(float((d_s - d_n) / (d_c - d_n)), rel=2e-2, abs=2e-3)


def test_forwards_are_counted(patcher, clip, config, monkeypatch):
    """What is said beforehand is what runs: a row of a batch is one forward."""
    rows = []
    velocity = FluxModel.velocity
    monkeypatch.setattr(
        FluxModel, "velocity", lambda self, x_t, *a, **k: rows.append(len(x_t)) or velocity(self, x_t, *a, **k)
    )
    plan = prepare(dataclasses.replace(config, monitor_every=1), ComfyTextEncoder(clip))
    with training_session(patcher) as model:
        model.attach("all_qkv", 4, torch.Generator().manual_seed(0))
        reports = []
        eyes = monitor.Monitor(model, plan, lambda done, total: reports.append((done, total)))
        teacher, look = gone.look_forwards(4 + 2, 3)
        assert sum(rows) == teacher
        assert len(reports) > 1 and reports[-1] == (teacher, teacher), "told while they are drawn"
        reports.clear()
        eyes.look()
        assert sum(rows) == teacher + look and not reports, "a look is no preparation"


def test_a_concept_that_the_model_does_not_draw(looked):
    """The neutral sentence is the concept's own: its pictures are alike, and nothing can be seen to go."""
    eyes, scores = looked(lambda up: up.zero_(), neutral="{red star}")
    assert "shown" not in scores and not eyes.verdict.gone
    assert eyes.verdict.text().startswith("nothing can be said: in none of 4 held-out pictures")


def verdict(**change):
    fields = {"shown": 0, "readable": 24, "pictures": 24, "reading": 0.1, "kept": 12, "neighbours": 12, "drift": 0.012}
    return gone.Verdict(**fields | change)


VERDICTS = {
    "gone": ({}, "gone: 0 of 24 held-out pictures still show it (0% to 14%); 12 of 12 neighbours are kept, "),
    "not gone": ({"shown": 17}, "not gone: 17 of 24 held-out pictures still show it (51% to 85%); "),
    "some unreadable": ({"readable": 20}, "show it (0% to 16%); 4 more could not be read; 12 of 12"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_a_verdict_in_words(case):
    change, text = VERDICTS[case]
    assert text in verdict(**change).text() and verdict(**change).text().endswith("others moved by 1%")


def test_no_verdict_of_gone_without_a_picture_that_can_be_read():
    assert verdict().gone and not verdict(readable=0).gone and not verdict(shown=1).gone


def planned(clip, config, **change):
    plan = prepare(dataclasses.replace(config, monitor_every=5, **change), ComfyTextEncoder(clip))
    trained = {p.text for s in plan.sentences for p in s.prompts()} | {p.text for p in plan.retained}
    return (
        plan,
        trained,
        {s.concept.text for s in plan.monitor_sentences},
        {s.concept.text for s in plan.monitor_retained},
    )


@pytest.mark.parametrize("shuffle_rate", (0.0, 1.0))
def test_what_is_watched_is_never_trained_on(clip, config, shuffle_rate):
    """Not even where a template or a prompt to retain is one of the held-out sentences, in whatever order."""
    taken, retained, *others = prompts.MONITOR_TEMPLATES
    change = {"templates": (taken, "wall a on {} of poster A"), "retain": ("a green box", retained.format("tree"))}
    plan, trained, concept, kept = planned(
        clip, config, shuffle_rate=shuffle_rate, sentences=64, cached_trajectories=64, **change
    )
    assert len(kept) == 2 and not trained & (concept | kept)
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
    plan = planned(clip, config, look_pictures=6, **change)[0]
    templates = zip(prompts.MONITOR_TEMPLATES, words, strict=False)
    assert [s.concept.text for s in plan.monitor_retained] == [s.format(w) for s, w in templates]


def test_it_stops_when_gone_and_goes_no_further_when_resumed(patcher, clip, config, tmp_path, monkeypatch):
    monkeypatch.setattr(gone, "THRESHOLD", 1.5)  # no picture shows anything
    monkeypatch.setattr(monitor, "KEPT", 0.0)
    config = dataclasses.replace(config, steps=9, monitor_every=2, stop_when_gone=True, lr_low=0.0, lr_up=0.0)
    for _ in range(2):
        result = train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path)
        assert result.steps == 6 and result.scores["pair"] == [2, 4, 6]
        summary = result.summary("x")
        assert "take the preset thorough" not in summary
        assert "stopped after step 6: no picture showed the concept in 3 looks, neighbours are kept" in summary
        assert "gone: 0 of 4 held-out pictures still show it" in summary


def test_a_run_that_is_gone_at_its_last_step_was_not_stopped(patcher, clip, config, monkeypatch):
    monkeypatch.setattr(gone, "THRESHOLD", 1.5)
    monkeypatch.setattr(monitor, "KEPT", 0.0)
    config = dataclasses.replace(config, steps=6, monitor_every=2, stop_when_gone=True, lr_low=0.0, lr_up=0.0)
    summary = train_eraser(ComfyHost(patcher, clip), config).summary("x")
    assert "gone: 0 of 4 held-out pictures still show it" in summary and "stopped after" not in summary


def test_it_does_not_stop_while_pictures_show_it(patcher, clip, config):
    config = dataclasses.replace(config, steps=3, monitor_every=2, stop_when_gone=True, lr_low=0.0, lr_up=0.0)
    result = train_eraser(ComfyHost(patcher, clip), config)
    # The run ends between two looks, and the last word is about the LoRA as it is.
    assert result.steps == 3 and result.scores["pair"] == [2, 3]
    summary = result.summary("x")
    assert "not gone: 4 of 4 held-out pictures still show it" in summary and "take the preset thorough" in summary


def test_what_nobody_measured_is_not_called_gone(patcher, clip, config):
    summary = train_eraser(ComfyHost(patcher, clip), config).summary("x")
    assert "whether the concept is gone was not measured" in summary and "erased" not in summary


def test_the_learning_rates_follow_the_looks(patcher, clip, config, monkeypatch, tmp_path):
    """Rates of nothing leave the pictures as they are, so they are doubled after each look; also when it goes on."""
    rates = []
    set_rate = trainer.set_rate
    monkeypatch.setattr(trainer, "set_rate", lambda *given: rates.append(given[1]) or set_rate(*given))
    config = dataclasses.replace(config, steps=3, monitor_every=1, adapt_rate=True, lr_low=1e-9, lr_up=1e-9)
    whole = train_eraser(ComfyHost(patcher, clip), config)
    assert rates == pytest.approx([1e-9, 1e-9, 2e-9, 2e-9, 2e-9, 2e-9])
    assert "from step 2 on the learning rates were 2 times those set" in whole.summary("x")

    def stop(step, _):
        if step == 1:
            raise KeyboardInterrupt

    rates.clear()
    train_eraser(ComfyHost(patcher, clip), config, stop, tmp_path)
    rest = train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path)
    assert rates == pytest.approx([1e-9, 1e-9, 2e-9, 2e-9, 2e-9, 2e-9])
    assert all(torch.equal(rest.lora[name], whole.lora[name]) for name in whole.lora)


def test_looks_decide_where_the_rates_follow_them(patcher, clip, config, tmp_path):
    """Such a run does not go on with other looks."""
    config = dataclasses.replace(config, steps=1, monitor_every=1, adapt_rate=True)
    train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path)
    other = dataclasses.replace(config, steps=2, look_pictures=2)
    with pytest.raises(ValueError, match="look_pictures"):
        train_eraser(ComfyHost(patcher, clip), other, run_dir=tmp_path)


def test_the_sentences_that_are_looked_at(clip, config):
    """Those of the settings, in turn; a prompt that names the concept becomes a template."""
    sentences = ("an old {}", "the red star of a flag")
    plan = planned(clip, config, held_out=sentences, look_pictures=3)[0]
    texts = [sentence.concept.text for sentence in plan.monitor_sentences]
    assert texts == ["an old red star", "the red star of a flag", "an old red star"]
    assert len(plan.monitor_retained) == 2 and plan.monitor_retained[1].concept.text.startswith("the ")


def test_prompts_that_are_watched_are_not_trained_on(clip, config):
    """They are looked at as they are; one that is trained on all the same is left out."""
    watched = ("a red tree", "a blue fish", "a green ball")
    retain = ("a blue fish", "a yellow house")
    plan = planned(clip, config, watched=watched, retain=retain, look_pictures=6)[0]
    assert [sentence.concept.text for sentence in plan.monitor_retained] == ["a red tree", "a green ball", "a red tree"]
    assert {sentence.neutral.text for sentence in plan.monitor_retained} == {""}
    assert not {prompt.text for prompt in plan.retained} & {"a red tree", "a green ball"}


UNASKED = {
    "unasked": "{}, with a watermark",
    "wanted": "{}, without any text",
    "templates": ("a dog in a park", "a city street"),
    "attn_weight": 0.0,
    "rsc_weight": 0.0,
    "monitor_every": 3,
}


def test_a_look_that_no_prompt_names(patcher, clip, config):
    """The student gets the ordinary prompt, the teacher the prompt with the look and the one without."""
    config = dataclasses.replace(config, concept="watermark", irrelevant=(), **UNASKED)
    plan = prepare(config, ComfyTextEncoder(clip))
    sentence = plan.sentences[0]
    assert sentence.concept.text in UNASKED["templates"]
    assert sentence.teacher_concept().text == f"{sentence.concept.text}, with a watermark"
    assert sentence.neutral.text == f"{sentence.concept.text}, without any text"
    result = train_eraser(ComfyHost(patcher, clip), config)
    assert set(result.losses) == {"esd", "retain", "loss"} and result.verdict is not None
    with training_session(patcher) as model, torch.no_grad():
        cache = trajectory_cache.TrajectoryCache(model, plan)
        epoch = cache.epoch(0)
        row, step = (int(each[0]) for each in epoch.draws[0][0].erase)
        x_t = epoch.concept.x[row, step][None]
        cond = plan_module.conds(model, plan, [epoch.concept.sources[row].teacher_concept()])
        asked = model.velocity(x_t, epoch.concept.sigmas[step][None], cond, adapters=False)
        assert torch.allclose(epoch.concept.v[row, step], asked[0], atol=1e-5)


@pytest.mark.parametrize("change", [{"attn_weight": 0.1}, {"rsc_weight": 0.1}, {"retain_loss": "paper"}])
def test_such_a_look_has_no_word(clip, config, change):
    with pytest.raises(ValueError, match="has no word"):
        prepare(dataclasses.replace(config, **UNASKED | change), ComfyTextEncoder(clip))


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
    seen = dataclasses.replace(config, monitor_every=1, stop_drift=9.0, preview_images=1)
    for first, then, folder in ((config, seen, "looked at later"), (seen, config, "no more")):
        train_eraser(ComfyHost(patcher, clip), first, stop, tmp_path / folder)
        rest = train_eraser(ComfyHost(patcher, clip), then, run_dir=tmp_path / folder)
        assert rest.steps == 3 and all(torch.equal(rest.lora[k], whole.lora[k]) for k in whole.lora)
        assert rest.scores["pair"] == ([2, 3] if then is seen else [1])
        assert (rest.samples is not None) == (then is seen)
