"""The nodes in process: what they save, what they return, and how they refuse."""

import dataclasses
import re
from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from comfy_api.latest import io

from eraseanything_core.concepts.concept_set import ConceptSet, Word
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.lora.files import load_lora
from eraseanything_core.training.presets import PRESETS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def trainer_node(pack):
    return pack["EraseAnything_EraseTrainer"]


@pytest.fixture
def loras(tmp_path, monkeypatch):
    folder = tmp_path / "loras"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return folder


@pytest.fixture
def widgets(trainer_node, patcher, clip):
    """The node's own defaults, made small."""
    values = {i.id: i.default for i in trainer_node.define_schema().inputs if isinstance(i, io.WidgetInput)}
    small = {
        "width": 96,
        "height": 96,
        "steps": 2,
        "sampling_steps": 3,
        "cached_trajectories": 2,
        "batch_size": 1,
        "retain_batch_size": 1,
    }
    small |= {"preset": "custom"}
    words = {"concept": "red star", "synonyms": "crimson star", "irrelevant": "tree, house\ndog"}
    return {"model": patcher, "clip": clip} | values | small | words


def execute(node, values):
    """As the executor does: a locked clone of the class, inside inference mode."""
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**values)


def nothing_written(folder):
    return not folder.exists() or not list(folder.iterdir())


def test_trains_saves_and_returns(trainer_node, widgets, loras):
    tensors, losses, path, summary, _ = execute(trainer_node, widgets).args
    assert [p.name for p in loras.iterdir()] == ["eraser.safetensors"] and path == str(loras / "eraser.safetensors")
    assert "eraser.safetensors" in folder_paths.get_filename_list("loras")
    saved, header = load_lora(Path(path))
    assert len(saved) == 4 * 2 and all(torch.equal(saved[k], tensors[k]) for k in saved)
    assert all(t.dtype == torch.bfloat16 for t in saved.values())
    assert header["eraseanything.concept"] == "red star" and header["eraseanything.synonyms"] == '["crimson star"]'
    assert header["eraseanything.seed"] == "0" and len(header["eraseanything.base_model"]) == 64
    assert {len(values) for values in losses.values()} == {2}
    assert set(losses) == {"esd", "attn", "retain", "rsc", "loss"}
    assert "2 of 2 steps" in summary


def test_core_plots_the_losses(trainer_node, widgets, loras, monkeypatch):
    """Plot Loss Graph takes `losses`: its line falls or rises as their weighted sum does."""
    from comfy_extras import nodes_train

    monkeypatch.setattr(nodes_train.ui, "PreviewImage", lambda image, cls: image[0])
    losses = execute(trainer_node, widgets).args[1]
    drawn = nodes_train.LossGraphNode.execute(losses, "x").ui
    blue = ((drawn[..., 2] == 1) & (drawn[..., 0] == 0)).nonzero()  # row and column, from the top left
    first, last = (blue[blue[:, 1] == column, 0].float().mean() for column in (blue[:, 1].min(), blue[:, 1].max()))
    assert (first < last) == (losses["loss"][0] > losses["loss"][1]) and abs(first - last) > 100


def test_a_concept_set_takes_the_place_of_the_typed_words(trainer_node, widgets, loras):
    concepts = ConceptSet(
        "red star",
        synonyms=("crimson star",),
        irrelevant={"no_relation": (Word("tree", 0.1),), "far": (Word("house", 0.4),), "mid": (Word("dog", 0.6),)},
        prompts=("a photo of a red star",),
        neutral="{house}",
    )
    typed = {"concept": "", "synonyms": "", "irrelevant": "", "templates": "{} at night", "concepts": concepts}
    (path,) = execute(trainer_node, widgets | typed).args[2:3]
    _, header = load_lora(Path(path))
    kept = {name: header[f"eraseanything.{name}"] for name in ("concept", "synonyms", "templates", "neutral", "tiers")}
    assert kept == {
        "concept": "red star",
        "synonyms": '["crimson star"]',
        "templates": '["a photo of a {}"]',
        "neutral": "{house}",
        "tiers": '[["tree"], ["house"], ["dog"]]',
    }


@pytest.mark.parametrize("concept", ["cat", "above", "Pablo Picasso", "embrace", "nude"])
def test_a_word_is_all_that_a_training_needs(concept, trainer_node, widgets, loras):
    found = sample_offline(ConceptRequest(concept, category="style" if concept == "Pablo Picasso" else "auto"))
    typed = {"concept": "", "synonyms": "", "irrelevant": "", "templates": "", "retain": "", "concepts": found}
    losses = execute(trainer_node, widgets | typed).args[1]
    assert len(losses["rsc"]) == 2


def test_a_name_without_other_words_is_trained_without_the_rsc_loss(trainer_node, widgets, loras):
    found = sample_offline(ConceptRequest("Brad Pitt"))
    assert (
        widgets["rsc_weight"] > 0 and "no other word is known: Erase Trainer does without its rsc loss" in found.text()
    )
    losses = execute(trainer_node, widgets | {"concept": "", "synonyms": "", "concepts": found}).args[1]
    assert set(losses) == {"esd", "attn", "retain", "loss"} and len(losses["esd"]) == 2


def test_equal_seeds_give_equal_loras(trainer_node, widgets, loras):
    def run(**change):
        return load_lora(Path(execute(trainer_node, widgets | change).args[2]))

    (first, header), (again, same), (other, _) = run(), run(), run(seed=1)
    assert header == same and all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_an_interrupt_keeps_what_is_trained(trainer_node, widgets, loras, monkeypatch):
    def update(self, value, *args, **kwargs):
        if value == 3:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr("comfy.utils.ProgressBar.update_absolute", update)
    tensors, losses, path, summary, _ = execute(trainer_node, widgets | {"steps": 50}).args
    assert "interrupted after 3 of 50" in summary and len(losses["loss"]) == 3
    assert Path(path).exists() and any(t.abs().max() > 0 for k, t in tensors.items() if "lora_B" in k)
    assert not comfy.model_management.in_training


def test_an_interrupt_before_the_first_pair_writes_nothing(trainer_node, widgets, loras):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        execute(trainer_node, widgets)
    runs = Path(folder_paths.get_output_directory()) / "eraseanything"
    assert nothing_written(loras) and nothing_written(runs) and not comfy.model_management.in_training


def test_pictures_with_a_vae(trainer_node, widgets, loras, monkeypatch):
    class Vae:
        def decode(self, latent):
            return torch.zeros(len(latent), 96, 96, 3)

    shown = execute(trainer_node, widgets | {"vae": Vae()}).ui
    assert len(shown["images"]) == 4 and "erased" in shown["text"][0]


def test_save_node(pack, loras):
    key = "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight"
    node = pack["EraseAnything_SaveEraseLoRA"]
    (path,) = execute(node, {"lora": {key: torch.ones(2, 2)}, "output_name": "mine", "concept": "star"}).args
    tensors, header = load_lora(Path(path))
    assert torch.equal(tensors[key], torch.ones(2, 2)) and header["modelspec.title"] == "erases star"


BAD = {
    "empty concept": ({"concept": "  "}, "the concept is empty"),
    "no token": ({"concept": "\u200b\u200d"}, "no token"),
    "only unknown characters": ({"concept": "\u16a0\u16a2"}, "no token"),
    "concept not in the prompt": ({"templates": "a photo of a dog"}, "red star.*its words are: a, photo, of, a, dog"),
    "path separators": ({"output_name": "../out/eraser"}, "output name"),
    "windows separators": ({"output_name": "a\\b"}, "output name"),
    "no name": ({"output_name": " "}, "no file name"),
    "no synonyms": ({"synonyms": ""}, "needs a synonym"),
    "kept and erased": ({"retain": "two red stars"}, "is to be kept and holds 'red star'"),
    "odd resolution": ({"width": 100}, "multiple of 16"),
    "a prompt too long": ({"templates": "{} " + "very " * 60 + "\n{}"}, "differ in encoded length"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(name, trainer_node, widgets, loras):
    change, words = BAD[name]
    with pytest.raises(ValueError, match=words) as caught:
        execute(trainer_node, widgets | change)
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
        execute(trainer_node, widgets | {"save_every": 1})
    assert [run.name for run in runs.iterdir()] == ["eraser"] and nothing_written(loras)
    assert {file.name for file in (runs / "eraser").iterdir()} == {"state.safetensors", "pools-0.safetensors"}
    monkeypatch.setattr(losses, "esd_loss", original)
    execute(trainer_node, widgets | {"resume": "eraser"})
    assert [file.name for file in loras.iterdir()] == ["eraser.safetensors"]


def test_unwritable_folder(trainer_node, widgets, loras):
    loras.write_text("a file stands where the folder should be")
    with pytest.raises(ValueError, match="cannot write into"):
        execute(trainer_node, widgets)


def test_a_full_disk_leaves_the_old_file(trainer_node, widgets, loras, monkeypatch):
    path = Path(execute(trainer_node, widgets).args[2])
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left.*make room"):
        execute(trainer_node, widgets | {"seed": 2})
    assert path.read_bytes() == before and len(list(loras.iterdir())) == 1


def test_the_form_is_checked_before_queueing(trainer_node):
    assert trainer_node.validate_inputs(output_name="eraser") is True
    assert trainer_node.validate_inputs(output_name=None) is True
    assert "output name" in trainer_node.validate_inputs(output_name="a/b")


def test_every_input_and_output_has_a_tooltip(pack):
    for node in pack.values():
        schema = node.define_schema()
        assert all(x.tooltip for x in (*schema.inputs, *schema.outputs)), schema.node_id


def test_every_node_has_a_help_page(pack):
    for node_id in pack:
        if node_id.startswith("EraseAnything_"):
            assert (ROOT / "web" / "docs" / f"{node_id}.md").exists(), node_id


def test_a_stopped_run_goes_on_by_its_name(trainer_node, widgets, loras, monkeypatch):
    """Interrupted after two of four pairs, resumed: the LoRA of a run that was never stopped. Names are numbered."""
    widgets |= {"steps": 4}
    whole, _ = load_lora(Path(execute(trainer_node, widgets).args[2]))
    update = comfy.utils.ProgressBar.update_absolute

    def stop(self, value, *args, **kwargs):
        if value == 2:
            comfy.model_management.interrupt_current_processing()
        return update(self, value, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("comfy.utils.ProgressBar.update_absolute", stop)
        _, losses, path, summary, _ = execute(trainer_node, widgets).args
    assert "resume = eraser_2" in summary and Path(path).name == "eraser_2.safetensors" and len(losses["loss"]) < 4
    path = Path(execute(trainer_node, widgets | {"resume": "eraser_2"}).args[2])
    rest, _ = load_lora(path)
    assert path.name == "eraser_2_2.safetensors" and all(torch.equal(rest[k], whole[k]) for k in whole)
    again, _ = load_lora(Path(execute(trainer_node, widgets | {"resume": "eraser_2"}).args[2]))
    assert all(torch.equal(again[k], whole[k]) for k in whole), "a finished run hands back its LoRA"
    assert len(list(loras.iterdir())) == 4
    with pytest.raises(ValueError, match="no run 'other' to resume; there are: eraser, eraser_2"):
        execute(trainer_node, widgets | {"resume": "other"})


def test_an_interrupt_within_a_pair_waits_for_its_end(trainer_node, widgets, loras, monkeypatch):
    """ComfyUI looks for the cross in every linear; here it comes after the erasing loss of the third pair."""
    from pack_under_test.eraseanything_core.training import losses

    widgets |= {"steps": 5}
    whole, _ = load_lora(Path(execute(trainer_node, widgets).args[2]))
    original, calls = losses.esd_loss, []

    def cross(*args):
        calls.append(1)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()
        return original(*args)

    monkeypatch.setattr(losses, "esd_loss", cross)
    _, _, path, summary, _ = execute(trainer_node, widgets).args
    assert "interrupted after 3 of 5" in summary
    rest, _ = load_lora(Path(execute(trainer_node, widgets | {"resume": "eraser_2"}).args[2]))
    assert len(calls) == 5 and all(torch.equal(rest[k], whole[k]) for k in whole)


@pytest.fixture
def asked(trainer_node, widgets, loras, monkeypatch):
    """The configuration that the node would train with, as a table."""

    class Seen(Exception):
        pass

    def train(host, config, *args):
        raise Seen(dataclasses.asdict(config))

    monkeypatch.setattr("pack_under_test.nodes.train.train_eraser", train)

    def configured(**change):
        with pytest.raises(Seen) as seen:
            execute(trainer_node, widgets | change)
        return seen.value.args[0]

    return configured


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_goes_over_its_inputs_and_no_others(asked, preset):
    plain, changed = (asked(preset=name, eta=0.3, max_grad_norm=0.5) for name in ("custom", preset))
    assert (plain["eta"], plain["max_grad_norm"]) == (0.3, 0.5)
    assert {k for k in plain if plain[k] != changed[k]} <= set(PRESETS[preset])
    assert all(changed[k] == v for k, v in PRESETS[preset].items())


def test_the_summary_names_what_a_preset_replaced(trainer_node, widgets, loras, monkeypatch):
    """Not what is the widget's default, nor what the preset would have set, nor anything without a preset."""
    from pack_under_test.eraseanything_core.training.presets import PRESETS as presets

    monkeypatch.setitem(
        presets, "quick", presets["quick"] | {"steps": 1, "sampling_steps": 2, "cached_trajectories": 2}
    )
    plain = {"steps": 200, "sampling_steps": 28, "cached_trajectories": 8}
    said = "the preset quick replaced typed inputs: "

    def summary(preset, **typed):
        return execute(trainer_node, widgets | plain | {"preset": preset} | typed).args[3]

    assert said + "steps 1 instead of 3, cached_trajectories 2 instead of 5; with custom they count" in summary(
        "quick", steps=3, cached_trajectories=5
    )
    assert said not in summary("quick", cached_trajectories=2)
    assert said not in summary("custom", steps=1, sampling_steps=2, cached_trajectories=3)


def another(widget):
    """A value that is not the default."""
    if isinstance(widget, io.Combo.Input):
        return next(option for option in widget.options if option != widget.default)
    if isinstance(widget, io.String.Input):
        return "blue heart"
    return not widget.default if isinstance(widget, io.Boolean.Input) else widget.max


def test_every_widget_reaches_its_setting_and_no_other(trainer_node, asked):
    """All but these, which are the node's own."""
    own = {"output_name", "preset", "resume", "memory"}
    inputs = [i for i in trainer_node.define_schema().inputs if isinstance(i, io.WidgetInput) and i.id not in own]
    plain = asked()
    for widget in inputs:
        changed = asked(**{widget.id: another(widget)})
        moved = {name for name in plain if plain[name] != changed[name]}
        assert moved == {widget.id}, widget.id


def test_all_but_what_is_erased_and_the_preset_is_advanced(trainer_node):
    inputs = [i for i in trainer_node.define_schema().inputs if isinstance(i, io.WidgetInput)]
    plain = {"concept", "synonyms", "irrelevant", "templates", "neutral", "retain", "output_name", "preset"}
    assert {i.id for i in inputs if not i.advanced} == plain


def test_memory_is_estimated_and_told(trainer_node, widgets, loras):
    summary = execute(trainer_node, widgets | {"memory": "auto"}).args[3]
    assert re.search(r"estimated peak [\d.]+ GiB of [\d.]+ GiB free; blocks are kept for backward", summary)


def test_it_is_watched_and_stops(trainer_node, widgets, loras, monkeypatch):
    """Curves come with the bar, then under pictures; a bound on the drift ends the run and says why."""
    shown, update = [], comfy.utils.ProgressBar.update_absolute

    def see(self, value, total=None, preview=None):
        shown.append((value, preview))
        return update(self, value, total, preview)

    monkeypatch.setattr("comfy.utils.ProgressBar.update_absolute", see)
    change = {"steps": 9, "monitor_every": 2, "stop_drift": 1e-6, "lr_up": 0.01}
    result = execute(trainer_node, widgets | change)
    _, losses, _, summary, picture = result.args
    assert len(losses["loss"]) == 2 and "stopped after step 2: the drift of" in summary
    (first, (_, drawn, _)), (second, (kind, image, _)) = [entry for entry in shown if entry[1]]
    assert (first, second, kind) == (1, 2, "JPEG") and drawn.size == (960, 240), "five losses, three in a row"
    assert image.size == (960, 160 + 360), "and three looks, and the pictures"
    assert picture.shape[0] == 1 and picture.shape[3] == 3 and picture.min() < 0.5
