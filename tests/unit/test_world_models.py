"""The models of the world of real pictures: their forwards, their checkpoints and what captions say."""

import random

import numpy as np
import pytest
import torch

pytest.importorskip("comfy")

from lab.world import (
    captions,
    ceilings,
    export,
    files,
    flow,
    generators,
    judge,
    judge_training,
    latents,
    muon,
    pictures,
    questions,
    run,
    text,
)
from lab.world.generators import GENERATORS, TinyZ
from lab.world.scenes import LAYOUTS, STYLES
from lab.world.things import THINGS
from lab.world.words import RELATION_WORDS, STYLE_WORDS

SCENES = pictures.scenes(24)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """No checkpoint of this machine is read or written."""
    monkeypatch.setattr(run, "CACHE", tmp_path)
    monkeypatch.setattr(run, "newest", lambda name: next(iter(tmp_path.glob(f"{name}.safetensors")), None))
    monkeypatch.setattr(run, "Log", lambda name: lambda step, values: None)


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """The module with weights that are nowhere zero, so that every part of it matters."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return module


def test_plain_forward_of_krea_equals_comfyuis():
    generator = filled(TinyZ())
    x = torch.randn(2, 16, 12, 12)
    time = torch.tensor([0.3, 0.9])
    states = torch.randn(2, 24, 160)
    with torch.no_grad():
        ours = generator.velocity(x, time, states, torch.zeros(2, 64), torch.ones(2))
        comfys = generator.net(x, time, states)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, comfys, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", GENERATORS)
def test_comfyuis_loader_reads_every_size_off_the_weights(name):
    import comfy.sd

    net = GENERATORS[name]().net
    loaded = comfy.sd.load_diffusion_model_state_dict(net.state_dict()).model.diffusion_model
    assert type(loaded) is type(net)
    assert {k: v.shape for k, v in loaded.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}


@pytest.mark.parametrize("name", GENERATORS)
def test_every_weight_of_a_generator_learns(name):
    generator = filled(GENERATORS[name]())
    teaching = flow.Teaching(generator, np.random.randn(24, 16, 12, 12).astype(np.float16), SCENES, 1, compiled=False)
    loss = teaching.flow(24)["flow"]
    loss.backward()
    silent = {key for key, p in generator.named_parameters() if p.grad is None or not p.grad.any()}
    if name == "tinyz":
        # Krea 2 takes no pooled vector; one layer of states attends to nothing but itself.
        idle = [f"net.txtfusion.layerwise_blocks.{i}.attn." for i in (0, 1)]
        silent -= {"encoder.pool.weight", "encoder.pool.bias"}
        silent -= {f"{layer}{key}" for layer in idle for key in ("wq.weight", "wk.weight")}
        silent -= {f"{layer}qknorm.{key}.scale" for layer in idle for key in ("qnorm", "knorm")}
    assert not silent


def test_a_run_goes_on_where_it_stopped(tmp_path):
    def make() -> run.Run:
        module = torch.nn.Linear(3, 1)
        return run.Run(
            "line", module, [torch.optim.SGD(module.parameters(), 0.1)], run.Pace(steps=10, lr=0.1, warmup=1)
        )

    first = make()
    first.pace = run.Pace(steps=4, lr=0.1, warmup=1)
    first.go(lambda: {"loss": first.module(torch.ones(2, 3)).pow(2).mean()}, minutes=1)
    second = make()
    assert second.step == 4
    torch.testing.assert_close(second.module.state_dict(), first.module.state_dict())
    torch.testing.assert_close(second.ema, first.ema)
    second.go(lambda: {"loss": second.module(torch.ones(2, 3)).pow(2).mean()}, minutes=1)
    assert second.step == 10
    assert not torch.equal(second.module.weight, first.module.weight)


def test_captions_of_training_and_of_measurements_share_no_template():
    for kind in ("alone", "styled", "related", "grounds"):
        assert not set(getattr(captions.TRAIN, kind)) & set(getattr(captions.HELD_OUT, kind))


def test_every_style_and_relation_has_three_more_names():
    assert set(STYLE_WORDS) == set(STYLES) and set(RELATION_WORDS) == set(LAYOUTS)
    for words in (STYLE_WORDS, RELATION_WORDS):
        names = [name for key, others in words.items() for name in (key, *others)]
        assert len(names) == len(set(names))


def test_captions_name_both_things_in_order():
    rng = random.Random(2)
    scene = next(scene for scene in SCENES if scene.relation)
    first, second = (captions.BY_NAME[placed.name] for placed in scene.things[:2])
    for _ in range(20):
        said = captions.caption(rng, scene)
        names = [(*thing.synonyms, thing.name, thing.held_out_synonym, *thing.hypernyms) for thing in (first, second)]
        places = [min(said.find(name) for name in group if name in said) for group in names]
        assert 0 <= places[0] and places[1] >= 0, said


def test_a_false_caption_exchanges_the_two_things():
    scene = next(scene for scene in SCENES if scene.relation)
    other = text.swapped(scene)
    assert [placed.name for placed in other.things[:2]] == [placed.name for placed in scene.things[1::-1]]
    assert other.relation == scene.relation and len(other.things) == len(scene.things)


def test_spoilt_pictures_ask_for_the_last_answer():
    labels = judge_training.labels_of(SCENES)
    spoilt = torch.arange(len(SCENES)) % 2 == 0
    logits = {name: torch.zeros(len(SCENES), len(answers)) for name, answers in judge.HEADS.items()}
    for name in logits:
        right = labels[name][:, 0] if labels[name].ndim == 2 else labels[name]
        logits[name][torch.arange(len(SCENES)), torch.where(spoilt, len(judge.HEADS[name]) - 1, right)] = 50.0
    losses = judge_training.judge_losses(logits, labels, spoilt)
    assert losses["style"] < 1e-4 and losses["relation"] < 1e-4
    assert all((judge.HEADS["thing"][i] == scene.things[0].name) for i, scene in zip(labels["thing"][:, 0], SCENES))


@pytest.mark.parametrize("body", judge.BODIES)
def test_a_judge_reads_pictures_of_its_size(body):
    readings = judge.read(judge.Judge(body), torch.rand(3, 3, 96, 96))
    assert len(readings) == 3
    assert all(reading.style in (*STYLES, judge.NOTHING) for reading in readings)


def test_comfyui_decodes_the_file_as_the_space_does():
    from lab.world import autoencoder

    taesd = autoencoder.fresh()
    space = latents.Space(taesd, mean=0.3, std=1.7)
    model = torch.randn(2, 16, 12, 12)
    file = model / generators.FORMAT_SCALE + generators.FORMAT_SHIFT
    taesd.load_state_dict(space.file())
    with torch.no_grad():
        comfys = taesd.decode(file) / 2 + 0.5
    torch.testing.assert_close(space.decode(model), comfys.clamp(0, 1), atol=2e-2, rtol=0)


def test_latents_come_back_from_a_models_own_format():
    generator = TinyZ()
    common = torch.randn(2, 16, 12, 12)
    torch.testing.assert_close(generator.common(generator.own(common)), common)
    assert 0.7 < generator.own(common).std() < 2


def test_steps_of_muon_have_adamws_size_in_every_direction():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(16, 8, 3, 3))
    weight.grad = torch.randn_like(weight) * 1e-3
    muon.Muon([weight], lr=0.1).step()
    assert weight.pow(2).mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.2)
    singular = torch.linalg.svdvals(weight.detach().reshape(16, -1))
    assert singular.max() / singular.min() < 2


def test_things_are_drawn_equally_often():
    firsts = [pictures.scene_of(number) for number in range(len(THINGS))]
    shown = [{placed.name for placed in scene.things} for scene in firsts]
    assert all(thing.name in names for thing, names in zip(THINGS, shown))


@pytest.mark.parametrize("cell", questions.CELLS)
def test_questions_use_held_out_templates_and_known_answers(cell):
    asked = questions.ask(cell, 40, seed=1)
    assert asked == questions.ask(cell, 40, seed=1) != questions.ask(cell, 40, seed=2)
    for question in asked:
        assert question.right and question.right <= set(judge.HEADS[question.head])
        if cell != "distorted":
            assert question.prompt.startswith(("there is", "an illustration")) or " made " in question.prompt


def test_a_question_counts_its_own_head():
    asked = questions.Question("there is a dog", "dog", "thing", frozenset({"dog"}))
    assert asked.hit(judge.Reading(("dog", "cat"), "noto", "alone"))
    assert not asked.hit(judge.Reading(("cat", "dog"), "noto", "alone"))


def test_rates_name_what_misses():
    asked = [questions.Question("", name, "thing", frozenset({name})) for name in ("dog", "dog", "cat", "cat")]
    cell = ceilings.rates(asked, [True, True, True, False])
    assert cell["mean"] == 0.75 and cell["n"] == 4 and cell["below"] == {"cat": 0.5}


def test_what_one_judge_misses_cannot_be_erased():
    cells = {
        "styles": {"plain": {"below": {"blob": 0.5}}, "oracle": {"below": {"neon": 0.8}}},
        "synonyms": {"plain": {"below": {}}},
    }
    found = ceilings.erasable({"styles": questions.ask("styles", 12, 0)}, cells)
    assert found == {"styles": sorted(set(STYLES) - {"blob", "neon"})}


def test_styles_that_are_misread_are_counted():
    shown = [scene for scene in SCENES if scene.style == "noto"][:2]
    readings = [judge.Reading((s.things[0].name, ""), style, "alone") for s, style in zip(shown, ("noto", "blob"))]
    told = ceilings._told(shown, readings)
    assert told["styles"] == {"noto": {"noto": 1, "blob": 1}} and told["style"] == [0.5, 2]


def test_a_committed_checkpoint_is_gone_on_from(tmp_path, monkeypatch):
    saved = {"now.weight": torch.ones(1, 3), "ema.weight": torch.full((1, 3), 2.0), "step": torch.tensor(7)}
    files.save(saved | {"ema.bias": torch.zeros(1), "std": torch.tensor(1.5)}, tmp_path / "match.safetensors")
    monkeypatch.setattr(export, "newest", lambda name: tmp_path / "match.safetensors" if name == "match" else None)
    (written,) = export.resume(tmp_path / "committed")
    monkeypatch.setattr(run, "newest", lambda name: written)
    module = torch.nn.Linear(3, 1)
    gone_on = run.Run("match", module, [torch.optim.SGD(module.parameters(), 0.1)], run.Pace(steps=9, lr=0.1))
    assert gone_on.step == 7 and gone_on.kept["std"] == 1.5
    assert (module.weight == 2).all() and (gone_on.ema["weight"] == 2).all()
