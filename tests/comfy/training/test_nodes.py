"""The nodes in process: what they save, what they return, and how they refuse."""

import functools
import re
from pathlib import Path

import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.supported_models
import folder_paths
import pytest
import torch

from eraseanything_core.concepts.concept_set import ConceptSet, Word
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.lora.files import load_lora
from tests.comfy.training.node_runs import SMALL, execute, losses_of, said, stop_after, written

ROOT = Path(__file__).resolve().parents[3]


def nothing_written(folder):
    return not folder.exists() or not list(folder.iterdir())


def test_trains_saves_and_returns(trainer_node, widgets, loras):
    output = execute(trainer_node, widgets)
    erased, tensors, report, pictures = output.args
    path = written(output, loras)
    assert [p.name for p in loras.iterdir()] == ["eraser.safetensors"] == [path.name]
    assert "eraser.safetensors" in folder_paths.get_filename_list("loras")
    saved, header = load_lora(path)
    assert len(saved) == 4 * 2 and all(torch.equal(saved[k], tensors[k]) for k in saved)
    assert all(t.dtype == torch.bfloat16 for t in saved.values())
    assert header["eraseanything.concept"] == "red star" and header["eraseanything.synonyms"] == '["crimson star"]'
    assert header["eraseanything.seed"] == "0" and len(header["eraseanything.base_model"]) == 64
    losses = losses_of()
    assert {len(values) for values in losses.values()} == {2}
    assert set(losses) == {"esd", "attn", "retain", "loss"}
    assert "2 of 2 steps" in report and "eraser.safetensors" in report
    assert not widgets["model"].patches, "the model that came in stays as it was"
    assert [patch[0] for patches in erased.patches.values() for patch in patches] == [1.0] * 4
    assert pictures.shape == (2, 96, 192, 3) and len(output.ui["images"]) == 1
    assert (pictures[:, :, :96] != pictures[:, :, 96:]).all(), "left the original, right the erased"


def test_the_header_says_what_was_measured_and_nothing_else(trainer_node, widgets, loras):
    looked = execute(trainer_node, widgets, monitor_every=2, look_pictures=2, look_steps=2)
    _, header = load_lora(written(looked, loras))
    measured = header["eraseanything.measured"]
    assert " of 2 held-out pictures" in measured and measured in looked.args[2]
    unwatched = execute(trainer_node, widgets)
    _, header = load_lora(written(unwatched, loras))
    assert "eraseanything.measured" not in header and "was not measured" in unwatched.args[2]


def test_a_concept_set_takes_the_place_of_the_typed_words(trainer_node, widgets, loras):
    concepts = ConceptSet(
        "red star",
        synonyms=("crimson star",),
        irrelevant={"no_relation": (Word("tree", 0.1),), "far": (Word("house", 0.4),), "mid": (Word("dog", 0.6),)},
        prompts=("a photo of a red star",),
        neutral="{house}",
    )
    output = execute(trainer_node, widgets | {"concept": "cat", "concepts": concepts, "settings": SMALL})
    _, header = load_lora(written(output, loras))
    kept = {name: header[f"eraseanything.{name}"] for name in ("concept", "synonyms", "templates", "neutral", "tiers")}
    assert kept == {
        "concept": "red star",
        "synonyms": '["crimson star"]',
        "templates": '["a photo of a {}"]',
        "neutral": "{house}",
        "tiers": '[["tree"], ["house"], ["dog"]]',
    }
    assert concepts.text() in output.args[2]


@pytest.mark.parametrize("concept", ["cat", "above", "Pablo Picasso", "embrace", "nude"])
def test_a_word_is_all_that_a_training_needs(concept, trainer_node, widgets, loras):
    """The report shows what was found for it."""
    found = sample_offline(ConceptRequest(concept))
    output = execute(trainer_node, widgets | {"concept": concept, "settings": SMALL})
    assert len(losses_of()["retain"]) == 2 and found.text() in output.args[2]


def test_a_name_without_other_words_is_trained_without_the_rsc_loss(trainer_node, widgets, loras):
    output = execute(trainer_node, widgets | {"concept": "Brad Pitt", "settings": SMALL})
    assert "no other word is known" in output.args[2]
    losses = losses_of()
    assert set(losses) == {"esd", "attn", "retain", "loss"} and len(losses["esd"]) == 2


def test_equal_seeds_give_equal_loras(trainer_node, widgets, loras):
    def run(**change):
        return load_lora(written(execute(trainer_node, widgets | change), loras))

    (first, header), (again, same), (other, _) = run(), run(), run(seed=1)
    assert header == same and all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_an_interrupt_keeps_what_is_trained(trainer_node, widgets, loras, monkeypatch, caplog):
    """The LoRA and its header say three steps; nothing that comes after the node runs."""
    stop_after(3, monkeypatch)
    with caplog.at_level("INFO"), pytest.raises(comfy.model_management.InterruptProcessingException):
        execute(trainer_node, widgets, steps=50)
    tensors, header = load_lora(loras / "eraser.safetensors")
    assert header["eraseanything.steps"] == "3" and len(losses_of()["loss"]) == 3
    assert any(t.abs().max() > 0 for k, t in tensors.items() if "lora_B" in k)
    assert "stopped at 3 of 50; press Run to go on" in caplog.text
    assert not comfy.model_management.in_training


def test_an_interrupt_before_the_first_pair_writes_nothing(trainer_node, widgets, loras):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        execute(trainer_node, widgets)
    runs = Path(folder_paths.get_output_directory()) / "eraseanything"
    assert nothing_written(loras) and nothing_written(runs) and not comfy.model_management.in_training


def test_save_node(pack, loras):
    key = "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight"
    node = pack["EraseAnything_SaveEraseLoRA"]
    (path,) = execute(node, {"lora": {key: torch.ones(2, 2)}, "output_name": "mine", "concept": "star"}).args
    tensors, header = load_lora(Path(path))
    assert torch.equal(tensors[key], torch.ones(2, 2)) and header["modelspec.title"] == "eraser of star"


BAD = {
    "empty concept": ({"concept": "  "}, "the concept is empty"),
    "nothing that can be seen": ({"concept": "\u200b\u200d"}, "the concept is empty"),
    "only unknown characters": ({"concept": "\u16a0\u16a2"}, "no token"),
    "concept not in the prompt": (
        {"templates": ("a photo of a dog",)},
        "red star.*its words are: a, photo, of, a, dog",
    ),
    "path separators": ({"output_name": "../out/eraser"}, "output name"),
    "an absolute path": ({"output_name": "/abs"}, "output name"),
    "an empty folder": ({"output_name": "people//alice"}, "output name"),
    "a drive": ({"output_name": "C:\\x"}, "output name"),
    "a way out": ({"output_name": "people\\..\\..\\x"}, "output name"),
    "no name": ({"output_name": " "}, "no file name"),
    "no synonyms": ({"synonyms": (), "rsc_weight": 0.1}, "needs a synonym"),
    "kept and erased": ({"retain": ("two red stars",)}, "is to be kept and holds 'red star'"),
    "odd resolution": ({"width": 100}, "multiple of 16"),
    "a prompt too long": ({"templates": ("{} " + "very " * 60, "{}")}, "differ in encoded length"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(name, trainer_node, widgets, loras):
    change, words = BAD[name]
    typed = {name: value for name, value in change.items() if name in widgets}
    settings = {name: value for name, value in change.items() if name not in widgets}
    with pytest.raises(ValueError, match=words) as caught:
        execute(trainer_node, widgets | typed, **settings)
    assert "\n" not in str(caught.value)
    assert nothing_written(loras) and not comfy.model_management.in_training


def test_a_loss_that_is_not_a_number(trainer_node, widgets, loras, monkeypatch):
    """In the second pair: the first one is thrown away with it, and so are the pools, unless a state was saved."""
    from pack_under_test.eraseanything_core.training import losses

    original, calls, runs = losses.esd_loss, [], Path(folder_paths.get_output_directory()) / "eraseanything"

    def broken(*args):
        calls.append(1)
        return original(*args) * (float("nan") if len(calls) % 2 == 0 else 1)

    monkeypatch.setattr(losses, "esd_loss", broken)
    with pytest.raises(FloatingPointError, match="the esd loss became nan at step 2") as caught:
        execute(trainer_node, widgets)
    assert "\n" not in str(caught.value)
    assert nothing_written(loras) and nothing_written(runs) and not comfy.model_management.in_training
    with pytest.raises(FloatingPointError):
        execute(trainer_node, widgets, save_every=1)
    assert [run.name for run in runs.iterdir()] == ["eraser"] and nothing_written(loras)
    assert {file.name for file in (runs / "eraser").iterdir()} == {"state.safetensors", "pools-0.safetensors"}
    monkeypatch.setattr(losses, "esd_loss", original)
    execute(trainer_node, widgets)
    assert [file.name for file in loras.iterdir()] == ["eraser.safetensors"], "it went on from the saved state"
    assert [run.name for run in runs.iterdir()] == ["eraser"]


def test_unwritable_folder(trainer_node, widgets, loras):
    loras.write_text("a file stands where the folder should be")
    with pytest.raises(ValueError, match="cannot write into"):
        execute(trainer_node, widgets)


def test_a_full_disk_leaves_the_old_file(trainer_node, widgets, loras, monkeypatch):
    path = written(execute(trainer_node, widgets), loras)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left.*make room"):
        execute(trainer_node, widgets | {"seed": 2})
    assert path.read_bytes() == before and len(list(loras.iterdir())) == 1


def test_a_lora_that_could_not_be_written_is_handed_out_by_the_next_run(trainer_node, widgets, loras, monkeypatch):
    """The run itself has ended: its last state is on another disk than the LoRA."""
    from pack_under_test.nodes import train

    whole, _ = load_lora(written(execute(trainer_node, widgets | {"output_name": "whole"}), loras))
    pairs = []
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(train, "save_lora", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        execute(trainer_node, widgets)
    monkeypatch.setattr(train.TrainingDisplay, "progress", lambda self, step, losses: pairs.append(step))
    rest, _ = load_lora(written(execute(trainer_node, widgets), loras))
    assert not pairs and all(torch.equal(rest[k], whole[k]) for k in whole)
    assert {file.name for file in loras.iterdir()} == {"whole.safetensors", "eraser.safetensors"}


def test_the_form_is_checked_before_queueing(trainer_node):
    """A linked input comes as None, and one that is not there does not come at all."""
    check = functools.partial(said, trainer_node)
    assert check(concept="cat", output_name="eraser") is True
    assert check(concept=None, output_name=None) is True
    assert check(concept=" ", output_name="eraser", concepts=None) is True
    assert check(concept=" ", output_name="eraser").startswith("`concept` is empty")
    assert check(concept="cat", output_name="people/alice") is True
    for hostile in ("../x", "/abs", "a//b", "C:\\x", "a\\..\\b", "a/.hidden", "a/", "people/con"):
        assert "output name" in check(concept="cat", output_name=hostile), hostile


def test_a_model_without_a_class_of_its_own_is_named_by_its_configuration(trainer_node, widgets, loras):
    base = widgets["model"].model
    base.__class__ = comfy.model_base.BaseModel
    base.model_config = comfy.supported_models.SD15({})
    base.diffusion_model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="the MODEL is a SD15: its class .*Linear is not known"):
        execute(trainer_node, widgets)


def test_every_input_and_output_has_a_tooltip(pack):
    for node in pack.values():
        schema = node.define_schema()
        assert all(x.tooltip for x in (*schema.inputs, *schema.outputs)), schema.node_id


def test_every_node_has_a_help_page(pack):
    for node_id in pack:
        if node_id.startswith("EraseAnything_"):
            assert (ROOT / "web" / "docs" / f"{node_id}.md").exists(), node_id


def test_a_stopped_run_goes_on_with_the_next(trainer_node, widgets, loras, monkeypatch):
    """Stopped after two of four pairs, run again: the LoRA of a run that was never stopped. Names are numbered."""
    widgets |= {"settings": widgets["settings"] | {"steps": 4}}
    runs = Path(folder_paths.get_output_directory()) / "eraseanything"
    whole, _ = load_lora(written(execute(trainer_node, widgets), loras))
    with monkeypatch.context() as patch, pytest.raises(comfy.model_management.InterruptProcessingException):
        stop_after(2, patch)
        execute(trainer_node, widgets)
    assert (loras / "eraser_2.safetensors").exists() and len(losses_of("eraser_2")["loss"]) == 2
    execute(trainer_node, widgets, eta=0.3)
    assert (loras / "eraser_3.safetensors").exists(), "with other settings another run begins"
    output = execute(trainer_node, widgets, save_every=1, monitor_every=0)
    path = written(output, loras)
    rest, _ = load_lora(path)
    assert path.name == "eraser_2_2.safetensors" and all(torch.equal(rest[k], whole[k]) for k in whole)
    assert "4 of 4 steps" in output.args[2] and path.name in output.args[2]
    execute(trainer_node, widgets)
    assert sorted(run.name for run in runs.iterdir()) == ["eraser", "eraser_2", "eraser_3", "eraser_4"]


def test_a_run_in_a_sub_folder_goes_on_there(trainer_node, widgets, loras, monkeypatch):
    """As people/alice: the LoRA and the state lie in folders of that name, and each folder has its own numbers."""
    widgets |= {"settings": widgets["settings"] | {"steps": 4}}
    whole, _ = load_lora(written(execute(trainer_node, widgets | {"output_name": "alice"}), loras))
    with monkeypatch.context() as patch, pytest.raises(comfy.model_management.InterruptProcessingException):
        stop_after(2, patch)
        execute(trainer_node, widgets | {"output_name": "people/alice"})
    assert (loras / "people" / "alice.safetensors").exists() and len(losses_of("people/alice")["loss"]) == 2
    output = execute(trainer_node, widgets | {"output_name": "people\\alice"})
    assert output.ui["lora"] == ["people/alice_2.safetensors"] and "people/alice_2" in output.args[2]
    rest, _ = load_lora(written(output, loras))
    assert all(torch.equal(rest[k], whole[k]) for k in whole) and len(losses_of("people/alice")["loss"]) == 4
    execute(trainer_node, widgets | {"output_name": "people"})
    assert (loras / "people_2.safetensors").exists(), "the folder's own name is taken"
    files = sorted(file.relative_to(loras).with_suffix("").as_posix() for file in loras.rglob("*.safetensors"))
    assert files == ["alice", "people/alice", "people/alice_2", "people_2"]


def test_a_run_of_another_name_or_length_is_not_gone_on_with(trainer_node, widgets, loras, monkeypatch):
    """A longer one has pairs that a shorter one must not have; more pairs are fine."""
    with monkeypatch.context() as patch, pytest.raises(comfy.model_management.InterruptProcessingException):
        stop_after(2, patch)
        execute(trainer_node, widgets, steps=4)
    runs = Path(folder_paths.get_output_directory()) / "eraseanything"
    execute(trainer_node, widgets | {"output_name": "erase"}, steps=4)
    execute(trainer_node, widgets, steps=1)
    assert sorted(run.name for run in runs.iterdir()) == ["erase", "eraser", "eraser_2"]
    assert len(losses_of("eraser")["loss"]) == 2
    execute(trainer_node, widgets, steps=5)
    assert len(losses_of("eraser")["loss"]) == 5


def test_an_interrupt_within_a_pair_waits_for_its_end(trainer_node, widgets, loras, monkeypatch):
    """ComfyUI looks for the cross in every linear; here it comes after the erasing loss of the third pair."""
    from pack_under_test.eraseanything_core.training import losses

    widgets |= {"settings": widgets["settings"] | {"steps": 5}}
    whole, _ = load_lora(written(execute(trainer_node, widgets), loras))
    original, calls = losses.esd_loss, []

    def cross(*args):
        calls.append(1)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()
        return original(*args)

    monkeypatch.setattr(losses, "esd_loss", cross)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        execute(trainer_node, widgets)
    assert len(losses_of("eraser_2")["loss"]) == 3
    rest, _ = load_lora(written(execute(trainer_node, widgets), loras))
    assert len(calls) == 5 and all(torch.equal(rest[k], whole[k]) for k in whole)


def test_the_trainer_has_ten_inputs_at_most(trainer_node):
    assert [i.id for i in trainer_node.define_schema().inputs] == [
        "model",
        "clip",
        "vae",
        "concept",
        "preset",
        "output_name",
        "seed",
        "concepts",
        "settings",
    ]


def test_memory_is_estimated_and_told(trainer_node, widgets, loras):
    """Unless somebody has decided on it."""
    told = r"estimated peak [\d.]+ GiB of [\d.]+ GiB free; blocks are kept for backward"
    assert re.search(told, execute(trainer_node, widgets).args[2])
    assert not re.search(told, execute(trainer_node, widgets, gradient_checkpointing=True).args[2])


def test_it_is_watched_and_stops(trainer_node, widgets, loras, monkeypatch):
    """Curves come with the bar, then under pictures; a bound on the drift ends the run and says why."""
    shown, update = [], comfy.utils.ProgressBar.update_absolute

    def see(self, value, total=None, preview=None):
        shown.append((value, preview))
        return update(self, value, total, preview)

    monkeypatch.setattr("comfy.utils.ProgressBar.update_absolute", see)
    change = {"steps": 9, "monitor_every": 2, "stop_drift": 1e-6, "lr_up": 0.01}
    report = execute(trainer_node, widgets, **change).args[2]
    assert len(losses_of()["loss"]) == 2 and "stopped after step 2: the drift of" in report
    drawn, watched, last = [entry for entry in shown if entry[1]]
    assert (drawn[0], watched[0], last[0]) == (1, 2, 9), "after a step, after a measurement, and at the end"
    heights = [image.height for _, (_, image, _) in (drawn, watched)]
    assert heights[0] < heights[1], "the pictures stand over the curves"
