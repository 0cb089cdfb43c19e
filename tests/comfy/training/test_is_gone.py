"""The look at an eraser from elsewhere says what a training says of its own."""

import dataclasses
from pathlib import Path

import comfy.ldm.flux.model
import comfy.model_management
import comfy.sd
import pytest
import torch

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.evaluation import report, report_text
from eraseanything_core.evaluation.gone_answers import gone_answers
from eraseanything_core.lora.files import LoraModel, header_strings
from eraseanything_core.lora.headers import training_header
from eraseanything_core.training.gone_check import Erased, Seen, check_gone, held_out_sentences
from eraseanything_core.training.presets import run_config
from eraseanything_core.training.recipe import train_eraser
from tests.comfy.training.node_runs import execute


@pytest.fixture
def small(config):
    change = {"batch_size": 1, "retain_batch_size": 1, "monitor_every": 2}
    return dataclasses.replace(config, **change)


@pytest.fixture
def trained(patcher, clip, small):
    return train_eraser(ComfyHost(patcher, clip), dataclasses.replace(small, steps=2, lr_low=3e-2, lr_up=3e-2))


def test_it_agrees_with_the_trainings_own_look(patcher, clip, small, trained):
    host = ComfyHost(patcher, clip)
    said = []
    verdict = check_gone(host, Erased(host, trained.lora), small, said.append)
    ours = dataclasses.asdict(verdict)
    own = dataclasses.asdict(trained.verdict)
    assert ours == pytest.approx(own, rel=1e-3) and own["drift"] > 1e-4
    assert "looking at 6 pictures" in said[0]


def test_a_lora_at_strength_0_shows_everything(patcher, clip, small, trained):
    host = ComfyHost(patcher, clip)
    verdict = check_gone(host, Erased(host, trained.lora, 0.0), small, lambda message: None)
    assert verdict.shown == verdict.readable == 4 and verdict.drift < 1e-5 and not verdict.gone


def test_the_models_stay_as_they_are(patcher, clip, small, trained):
    host = ComfyHost(patcher, clip)
    before = {name: weight.clone() for name, weight in patcher.model.diffusion_model.state_dict().items()}
    check_gone(host, Erased(host, trained.lora), small, lambda message: None)
    after = patcher.model.diffusion_model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_held_out_prompts_of_the_word_alone_are_compared_with_others(patcher, clip):
    """Concept Sampler writes the concept into them; the neutral sentence must be without it."""
    config = run_config(sample_offline(ConceptRequest("star")).settings(), "balanced", {})
    sentences, _ = held_out_sentences(ComfyHost(patcher, clip), config)
    assert sentences and all("star" in sentence.concept.text for sentence in sentences)
    assert not [sentence for sentence in sentences if "star" in sentence.neutral.text]


def test_a_lora_of_another_model_is_refused(patcher, clip, small):
    host = ComfyHost(patcher, clip)
    with pytest.raises(ValueError):
        check_gone(host, Erased(host, {"nonsense.lora_A.weight": torch.zeros(4, 4)}), small, lambda message: None)


def test_an_empty_concept_is_refused(patcher, clip, small):
    host = ComfyHost(patcher, clip)
    with pytest.raises(ValueError, match="concept"):
        check_gone(host, Erased(host, {}), dataclasses.replace(small, concept=" "), lambda message: None)


def test_a_broken_eraser_is_not_called_gone(patcher, clip, small, trained):
    host = ComfyHost(patcher, clip)
    broken = {name: torch.full_like(tensor, 1e30) for name, tensor in trained.lora.items()}
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        check_gone(host, Erased(host, broken), small, lambda message: None)


def test_a_report_without_a_judge_counts_what_the_look_has_seen(patcher, clip, small, trained):
    host = ComfyHost(patcher, clip)
    verdict = check_gone(host, Erased(host, trained.lora), small, lambda message: None)
    made = report.make_report("red star", gone_answers(host, Erased(host, trained.lora), small, print), draws=50)
    gone, kept = made.cells["acc_e"], made.cells["acc_ir"]
    assert (gone.after.n, kept.after.n) == (verdict.readable, verdict.neighbours)
    assert (sum(gone.shown_after), sum(kept.shown_after)) == (verdict.shown, verdict.kept)
    assert all(gone.shown_before) and all("red star" in prompt for prompt in gone.prompts)
    assert made.judge["name"] == "the gone score" and made.judge["threshold"] == 0.7
    text = report_text.markdown(made)
    assert "Judge: name the gone score" in text and "Note: the gone score is no judge" in text
    assert not any("cannot be repeated" in warning for warning in made.warnings)


def test_a_report_of_what_the_original_model_does_not_draw_is_refused(patcher, clip, small, trained, monkeypatch):
    from eraseanything_core.evaluation import gone_answers as module

    unread = Seen(["a red star"], [False], [True])
    monkeypatch.setattr(module, "seen_pictures", lambda *args: (unread, unread))
    with pytest.raises(ValueError, match="in none of 1 held-out pictures .*: link a judge's answers as acc_e"):
        gone_answers(None, None, small, print)


def test_what_cannot_be_read_is_left_out_of_a_report(small, monkeypatch):
    from eraseanything_core.evaluation import gone_answers as module

    concept = Seen(["a", "b", "c"], [True, False, True], [False, True, True])
    monkeypatch.setattr(module, "seen_pictures", lambda *args: (concept, Seen(["d"], [False], [False])))
    answers = gone_answers(None, None, small, print)
    assert set(answers) == {"acc_e"} and answers["acc_e"].prompts == ("a", "c")
    assert answers["acc_e"].outcomes() == ([True, True], [False, True])


@pytest.fixture
def look(pack, patcher, clip, monkeypatch):
    """Runs Is It Gone? on a few small pictures; returns what it gives, and what it has told on the way."""
    from pack_under_test.nodes import gone as module

    told = []
    monkeypatch.setattr(module, "show_text", lambda text, node: told.append(text))
    values = {"model": patcher, "clip": clip, "concept": "red star", "file": "(the linked lora)", "strength": 1.0}
    values |= {"pictures": 4, "size": 96, "steps": 3, "guidance": 3.5, "seed": 0}

    def run(**links):
        return execute(pack["EraseAnything_IsItGone"], values | links).args, told

    return run


def baked(patcher, lora):
    """Another model: the same weights with a LoRA in them, as its own loader gives it."""
    stock, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)
    comfy.model_management.load_models_gpu([stock])
    state = {name: weight.clone() for name, weight in stock.model.diffusion_model.state_dict().items()}
    stock.unpatch_model()
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(state)


def test_an_erased_checkpoint_is_looked_at_as_its_lora_is(look, patcher, trained):
    """The original model reads the pictures of the other one, whose weights hold what the LoRA adds."""
    strong = {name: 20 * tensor if "lora_B" in name else tensor for name, tensor in trained.lora.items()}
    (gone, shown, text), _ = look(lora=strong)
    (same_gone, same_shown, same_text), _ = look(erased=baked(patcher, strong))
    assert (same_gone, same_shown, same_text) == (gone, shown, text)
    (_, shown_by_itself, plain), _ = look(erased=baked(patcher, {name: 0 * each for name, each in strong.items()}))
    assert shown_by_itself == 1.0 and plain != text and "others moved by 0%" in plain


def test_it_tells_beforehand_how_many_forwards_it_takes(look, trained, monkeypatch):
    """Counted in pictures that go through the model."""
    counted = []
    forward = comfy.ldm.flux.model.Flux.forward_orig

    def counts(self, img, *args, **kwargs):
        counted.append(len(img))
        return forward(self, img, *args, **kwargs)

    monkeypatch.setattr(comfy.ldm.flux.model.Flux, "forward_orig", counts)
    _, told = look(lora=trained.lora)
    assert told[0] == f"looking at 6 pictures: {sum(counted)} forwards of the model" and sum(counted) == 162


def test_the_report_node_needs_answers_or_a_model(pack, patcher, clip, small, trained, tmp_path, monkeypatch):
    node = pack["EraseAnything_ErasureReport"]
    values = {"concept": "red star", "strength": 1.0, "model": "", "output_name": "without_a_judge"}
    with pytest.raises(ValueError, match="link answers of Judge Pictures, or original, clip and lora"):
        execute(node, values | {"original": patcher, "clip": clip})
    header = header_strings(training_header(trained.config, ""))
    linked = {"original": patcher, "clip": clip, "lora": LoraModel(trained.lora, header)}
    _, text, _, path = execute(node, values | linked).args
    made = report.from_json(Path(path).read_text(encoding="utf-8"))
    assert made.cells["acc_e"].after.n <= 24 and made.judge["name"] == "the gone score"
    assert made.lora_sha256 and "no judge" in text
