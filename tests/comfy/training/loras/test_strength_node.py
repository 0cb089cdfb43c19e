"""EraseStrength on the real ComfyUI: a dial that is measured once, and a window of the sampling."""

import importlib
from pathlib import Path

import comfy.sd
import folder_paths
import nodes
import pytest
import torch

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.text import ComfyTextEncoder
from eraseanything_core.erasers import uce
from eraseanything_core.lora import strength
from eraseanything_core.lora.dials import DialFolder
from eraseanything_core.lora.files import load_lora, save_lora
from eraseanything_core.lora.headers import ErasedConcept
from eraseanything_core.lora.key_styles import read_eraser
from eraseanything_core.training import gone_check, gone_dial
from eraseanything_core.training.monitor import held_out
from tests.comfy.training.loras.cases import ROOT, chained, execute, relative, velocity

OWN = ["a red star on a white background", "a star"]  # prompts that a user types
WEIGHTS, TEXT = ROOT / "eraseanything_core" / "tinyflux" / "weights", "tinyflux_text.safetensors"


@pytest.fixture
def unmeasured(patcher, clip, files):
    values = {"model": patcher, "clip": clip, "file": "star.safetensors", "images": 2}
    return values | {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}


@pytest.fixture
def dial(unmeasured, folder):
    """With a curve in its header."""
    tensors, header = load_lora(folder / "star.safetensors")
    curve = '{"scale": [0.0, 0.4, 0.6, 1.0], "effect": [0.0, 0.25, 0.75, 1.0], "reader": "the gone score"}'
    save_lora(tensors, folder / "star.safetensors", header | {"eraseanything.strength": curve})
    return unmeasured | {"clip": None}


@pytest.fixture
def tinyflux(pack, unmeasured, folder, monkeypatch):
    """A model that knows what a star is, and a LoRA that makes it read the sentences of the tests without the star."""
    for kind in ("text_encoders", "vae"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(WEIGHTS)], {".safetensors"}))
    model = comfy.sd.load_diffusion_model(str(WEIGHTS / "tinyflux.safetensors"))
    clip = execute(pack["TinyFlux"], {"text_encoder": TEXT}).args[0]
    _, header = load_lora(folder / "star.safetensors")
    header |= {"eraseanything.held_out": '["a red {} on a white background"]', "eraseanything.neutral": "{box}"}
    save_lora(closed_form(model, clip, header), folder / "star.safetensors", header)
    return unmeasured | {"model": model, "clip": clip}


def closed_form(model, clip, header):
    """UCE's eraser of the sentences that the tests draw: no training is needed."""
    config = gone_dial.dial_config(header, "", False, 1)
    headerless = gone_dial.dial_config({}, "star", False, 3)
    sentences = [
        *gone_check.held_out_sentences(ComfyHost(model, clip), config)[0],
        *gone_check.held_out_sentences(ComfyHost(model, clip), headerless)[0],
        *gone_dial.own_sentences(OWN, len(OWN), config.concept, config.neutral),
        *gone_dial.own_sentences(["a red star"], 1, "", ""),
    ]
    flux = model.model.diffusion_model
    weights = (flux.txt_in.weight.detach().float(), flux.vector_in.in_layer.weight.detach().float())
    with torch.inference_mode(False):
        encode = ComfyTextEncoder(clip).encode
        erased = [encode(sentence.concept.text) for sentence in sentences]
        guides = [encode(sentence.neutral.text) for sentence in sentences]
        kept = [encode("a green tree")]
    layers = {}
    for i, (name, weight) in enumerate(zip(uce.LAYERS, weights, strict=True)):
        states = [torch.cat([each[i].flatten(0, -2) for each in texts]) for texts in (erased, guides, kept)]
        layers[name] = uce.LinearStates(weight, *states)
    return uce.lora(layers, lam=1e-3)


def test_the_dial_is_measured_once_and_kept_in_the_user_folder(pack, tinyflux, folder, tmp_path):
    """Not in the LoRA's own file, which is the user's."""
    node, patcher, path = pack["EraseStrength"], tinyflux["model"], folder / "star.safetensors"
    before, written = path.read_bytes(), path.stat().st_mtime_ns
    scale = execute(node, tinyflux | {"strength": 0.5}).args[2]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, written) and 0 < scale < 1
    model, _, full, _ = execute(node, tinyflux | {"clip": None}).args
    assert full == 1 and relative(velocity(model), velocity(chained(patcher, [1, 0, 0]))) < 1e-2
    (kept,) = (tmp_path / "user" / "dials").iterdir()
    assert kept == DialFolder(tmp_path / "user" / "dials").path(load_lora(path)[0])
    measured = kept.stat().st_mtime_ns
    half, lora, again, summary = execute(node, tinyflux | {"strength": 0.5, "clip": None}).args
    assert (
        again == pytest.approx(scale, abs=1e-4)
        and relative(velocity(half), velocity(chained(patcher, [scale, 0, 0]))) < 1e-2
    )
    assert lora.header["eraseanything.strength"] == kept.read_text() and "seeds" in summary
    assert kept.stat().st_mtime_ns == measured and path.read_bytes() == before
    path.rename(folder / "another_name.safetensors")
    renamed = execute(node, tinyflux | {"file": "another_name.safetensors", "strength": 0.5, "clip": None}).args
    assert renamed[2] == again, "the dial is of the tensors, whatever their file is called"


@pytest.mark.parametrize("strength", (0.0, 1.0, -1.0, 1.5))
def test_where_the_strength_is_the_scale_nothing_is_measured(pack, unmeasured, tmp_path, strength):
    """No CLIP is needed there, and the saved LoRA gets no curve."""
    asked = unmeasured | {"strength": strength, "clip": None}
    _, lora, scale, summary = execute(pack["EraseStrength"], asked).args
    assert scale == strength and "nothing was measured" in summary
    assert "eraseanything.strength" not in lora.header and not (tmp_path / "user" / "dials").exists()


def test_a_measurement_says_what_it_takes_before_it_begins(pack, tinyflux, monkeypatch):
    node, shown = pack["EraseStrength"], []
    monkeypatch.setattr(importlib.import_module(node.__module__), "show_text", lambda text, _: shown.append(text))
    execute(node, tinyflux | {"strength": 0.5, "images": 1})
    assert shown[0] == "measures the strength of this eraser once: 126 forwards of the model"
    assert shown[1].startswith("measuring the strength: 36 of 126 forwards, about ")
    assert shown[-1] == "measuring the strength: 126 of 126 forwards, about 0 s left"
    tooltips = {each.id: each.tooltip for each in node.define_schema().inputs}
    assert "1,512 forwards" in tooltips["strength"] and "1,680 with a judge" in tooltips["strength"]
    assert "126 forwards" in tooltips["images"] and "140 with a judge" in tooltips["images"]


def test_the_forwards_that_are_told_are_those_that_are_taken(pack, tinyflux, monkeypatch):
    """Counted in the model itself, a picture each."""
    node, taken = pack["EraseStrength"], []
    model = importlib.import_module("pack_with_loras.eraseanything_core.comfy_bridge.model").FluxModel
    run = model._run
    monkeypatch.setattr(
        model, "_run", lambda self, x_t, *rest, **more: taken.append(len(x_t)) or run(self, x_t, *rest, **more)
    )
    execute(node, tinyflux | {"strength": 0.5, "images": 3})
    assert sum(taken) == 3 * 126


def test_a_dial_of_an_earlier_version_is_measured_again(pack, tinyflux, folder):
    """It followed another reading, which was up to 61 points off."""
    tensors, header = load_lora(folder / "star.safetensors")
    curve = '{"scale": [0.0, 0.4, 0.6, 1.0], "effect": [0.0, 0.25, 0.75, 1.0]}'
    save_lora(tensors, folder / "star.safetensors", header | {"eraseanything.strength": curve})
    with pytest.raises(ValueError, match="was not measured so yet: connect the CLIP"):
        execute(pack["EraseStrength"], tinyflux | {"strength": 0.5, "clip": None})
    lora = execute(pack["EraseStrength"], tinyflux | {"strength": 0.5}).args[1]
    assert curve_of(lora).reader == "the gone score"


def test_the_time_left_is_that_of_the_forwards_after_the_first(pack, monkeypatch):
    """The first one may load the model."""
    module, shown, times = importlib.import_module(pack["EraseStrength"].__module__), [], iter((100.0, 102.0))
    monkeypatch.setattr(module, "show_text", lambda text, node: shown.append((text, node)))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    display = module.MeasurementDisplay(5120, "7")
    display.progress(4)
    display.progress(8)
    assert shown[1:] == [("measuring the strength: 8 of 5,120 forwards, about 43 min left", "7")]
    assert [module.duration(s) for s in (3.4, 89, 100, 7200)] == ["3 s", "89 s", "2 min", "2.0 h"]


def test_a_saved_lora_brings_its_dial_along(pack, tinyflux, tmp_path):
    """For another computer, whose user folder does not have it."""
    _, lora, scale, _ = execute(pack["EraseStrength"], tinyflux | {"strength": 0.5, "images": 1}).args
    execute(pack["SaveEraseLoRA"], {"lora": lora, "output_name": "taken_along"})
    (kept,) = (tmp_path / "user" / "dials").iterdir()
    kept.unlink()
    saved = tinyflux | {"file": "taken_along.safetensors", "strength": 0.5, "clip": None}
    assert execute(pack["EraseStrength"], saved).args[2] == pytest.approx(scale, abs=1e-4)


def test_a_dial_that_the_user_folder_does_not_take_is_used_and_told(pack, tinyflux, folder, monkeypatch):
    """The folder is read-only, or Windows has the file open."""
    before = load_lora(folder / "star.safetensors")[1]

    def refuse(*_):
        raise PermissionError(13, "used by another process")

    monkeypatch.setattr(Path, "replace", refuse)
    _, lora, scale, summary = execute(pack["EraseStrength"], tinyflux | {"strength": 0.5, "images": 1}).args
    note = summary.splitlines()[-1]
    assert note.startswith("the strength of star.safetensors is not kept in") and "used by another process" in note
    assert note.endswith("save the output lora with Save Erase LoRA, or it is measured again")
    assert curve_of(lora).scale_at(0.5) == pytest.approx(scale, abs=1e-4)
    assert load_lora(folder / "star.safetensors")[1] == before


def curve_of(lora):
    return strength.StrengthCurve.from_json(lora.header["eraseanything.strength"])


@pytest.fixture
def headerless(pack, tinyflux, folder, monkeypatch):
    """As the paper's authors published theirs: tensors and nothing else. Measured at the size of TinyFlux."""
    module = importlib.import_module("pack_with_loras.eraseanything_core.training.gone_dial")
    monkeypatch.setattr(module, "training_size", lambda *_: {"width": 96, "height": 96, "guidance": 2.0})
    save_lora(load_lora(folder / "star.safetensors")[0], folder / "published.safetensors", {})
    return tinyflux | {"file": "published.safetensors", "images": 1, "strength": 0.5}


def test_a_lora_without_a_header_needs_a_concept_or_prompts(pack, headerless, folder):
    node = pack["EraseStrength"]
    with pytest.raises(ValueError, match="published.safetensors does not say .* `concept`, or prompts .* `prompts`"):
        execute(node, headerless)
    own = execute(node, headerless | {"prompts": "a red star"}).args
    assert 0 < own[2] < 1
    typed = execute(node, headerless | {"concept": "star", "images": 3}).args
    assert 0 < typed[2] < 1 and curve_of(typed[1]).prompts != curve_of(own[1]).prompts
    again = execute(node, headerless | {"concept": "star", "images": 3, "clip": None}).args
    assert again[2] == pytest.approx(typed[2], abs=1e-4), "it is measured once"


def test_a_lora_without_a_header_is_saved_with_a_concept(pack, headerless, folder):
    lora = dict(load_lora(folder / "published.safetensors")[0])
    execute(pack["SaveEraseLoRA"], {"lora": lora, "output_name": "named", "concept": "star, sun"})
    header = load_lora(folder / "named.safetensors")[1]
    assert ErasedConcept.from_header(header, "x").names == ("star", "sun")
    assert 0 < execute(pack["EraseStrength"], headerless | {"file": "named.safetensors", "images": 3}).args[2] < 1


def test_the_middle_of_the_dial_is_where_the_seed_flips(pack, tinyflux, folder):
    """Drawn anew just below and just above the scale that the dial names, from the same noise."""
    scale = execute(pack["EraseStrength"], tinyflux | {"strength": 0.5, "images": 1}).args[2]
    tensors, header = load_lora(folder / "star.safetensors")
    host, config = ComfyHost(tinyflux["model"], tinyflux["clip"]), gone_dial.dial_config(header, "", False, 1)
    sentences, _ = gone_check.held_out_sentences(host, config)
    plan, near = gone_check.encoded_plan(host, config, sentences, []), 0.5**strength.StrengthConfig.halvings
    with host.session() as model, torch.no_grad():
        before = {name for name, linear in model.module.named_modules() if linear._forward_hooks}
        dial = gone_dial.GoneDial(model, held_out(model, plan, sentences, 0), read_eraser(tensors, {}, "x"))
        drawn = [dial.sample(torch.tensor([s])) for s in (0.0, 1.0, scale - near, scale + near)]
        assert torch.equal(drawn[0], dial.pictures.x_c), "without the LoRA it is the original model's picture"
        assert dial.set_ends(*drawn[:2]).all() and [bool(dial.lost(x)) for x in drawn[2:]] == [False, True]
        left = {name for name, linear in model.module.named_modules() if linear._forward_hooks}
        assert left == before, "the LoRA's hooks are taken off again"


def test_the_dial_follows_a_judge(pack, tinyflux, folder):
    """Chosen by a node, it reads what the VAE makes of the latents; without one the dial that is there is taken."""
    vae = nodes.VAELoader().load_vae("tinyflux_vae.safetensors")[0]
    given = {"labels": "", "template": "{}", "weights": "", "threshold": 0.0}
    judge = execute(pack["ChooseJudge"], given | {"label": "star", "judge": "TinyFlux CNN"}).args[0]
    with pytest.raises(ValueError, match="connect the VAE"):
        execute(pack["EraseStrength"], tinyflux | {"judge": judge})
    asked = tinyflux | {"images": 4, "strength": 0.5, "judge": judge, "vae": vae}
    _, made, scale, summary = execute(pack["EraseStrength"], asked).args
    assert "by TinyFlux CNN (star)" in summary and curve_of(made).reader == "TinyFlux CNN (star)"
    again = execute(pack["EraseStrength"], tinyflux | {"strength": 0.5, "clip": None}).args
    assert again[2] == pytest.approx(scale, abs=1e-4) and again[1].header == made.header


def test_the_dial_is_measured_on_own_prompts(pack, tinyflux, monkeypatch):
    """They are painted in turn; again when the prompts are others, not when there are none or the same."""
    node, painted = pack["EraseStrength"], []
    dial = importlib.import_module(node.__module__).gone_dial
    curve = dial.gone_curve
    spy = lambda *args: painted.append(args[4]) or curve(*args)  # noqa: E731
    monkeypatch.setattr(dial, "gone_curve", spy)
    asked = tinyflux | {"images": 3, "strength": 0.5, "prompts": "a red star on a white background\n\n a star "}
    _, made, scale, _ = execute(node, asked).args
    drawn = [(each.concept.text, each.neutral.text) for each in painted[0]]
    first = (OWN[0], "a red box on a white background")
    assert drawn == [first, (OWN[1], "a box"), first]
    for typed in ("", asked["prompts"]):
        again = execute(node, asked | {"prompts": typed, "clip": None}).args
        assert again[2] == pytest.approx(scale, abs=1e-4) and again[1].header == made.header
    with pytest.raises(ValueError, match="connect the CLIP"):
        execute(node, asked | {"prompts": "a blue star", "clip": None})


def test_zero_is_untouched_and_below_it_is_the_opposite(pack, dial, patcher):
    base = velocity(patcher)
    assert execute(pack["EraseStrength"], dial | {"strength": 0.5}).args[2] == pytest.approx(0.5)
    assert execute(pack["EraseStrength"], dial | {"strength": 0.125}).args[2] == pytest.approx(0.2)
    model, _, scale, _ = execute(pack["EraseStrength"], dial | {"strength": 0.0}).args
    assert scale == 0 and relative(velocity(model), base) == 0
    assert execute(pack["EraseStrength"], dial | {"strength": -1.5}).args[2] == pytest.approx(-1.5)


def test_a_window_of_the_sampling(pack, dial, patcher):
    """Inside the window the velocity is the erased one, outside the frozen one, in weights that are not changed."""
    base = {t: velocity(patcher, t) for t in (0.9, 0.6, 0.2)}
    erased = {t: velocity(chained(patcher, [1, 0, 0]), t) for t in base}
    model = execute(pack["EraseStrength"], dial | {"start_percent": 0.5, "end_percent": 0.8}).args[0]
    sampling = patcher.get_model_object("model_sampling")
    start, end = (sampling.percent_to_sigma(p) for p in (0.5, 0.8))
    for t in base:
        wanted = erased if end <= t <= start else base
        assert relative(velocity(model, t), wanted[t]) < 1e-4, t
    assert {end <= t <= start for t in base} == {True, False}
    assert all(relative(velocity(patcher, t), base[t]) == 0 for t in base)


def test_a_window_through_the_stock_sampler(pack, dial, patcher, clip):
    """KSampler hands the step's sigma to the wrapper: a window over all steps is the same as none."""
    context, pooled = torch.randn(1, 32, 128), torch.randn(1, 64)
    cond = [[context, {"pooled_output": pooled, "guidance": 2.0}]]
    latent = {"samples": torch.zeros(1, 16, 12, 12)}
    always, never, part = (
        execute(pack["EraseStrength"], dial | window).args[0]
        for window in ({}, {"strength": 0.0}, {"end_percent": 0.999})
    )
    drawn = [nodes.KSampler().sample(m, 1, 3, 1.0, "euler", "simple", cond, cond, latent)[0]["samples"]
             for m in (always, never, part)]  # fmt: skip
    assert relative(drawn[2], drawn[0]) < 1e-3 < relative(drawn[1], drawn[0])


def test_what_strength_refuses(pack, unmeasured, folder):
    node, dial = pack["EraseStrength"], unmeasured
    tensors, header = load_lora(folder / "star.safetensors")
    save_lora({name: 0 * t for name, t in tensors.items()}, folder / "nothing.safetensors", header)
    dial = dial | {"strength": 0.5}
    for change, words in (
        ({"file": "nothing.safetensors"}, "by the gone score, none of 2 images .* loses it at scale 1"),
        ({"clip": None}, "was not measured so yet: connect the CLIP"),
        ({"file": "(the linked lora)"}, "there is no eraser"),
        ({"start_percent": 0.5, "end_percent": 0.5}, "must be below"),
        ({"strength": float("nan")}, "strength is nan: set a number"),
    ):
        with pytest.raises(ValueError, match=words):
            execute(node, dial | change)
