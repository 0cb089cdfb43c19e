"""MultiEraseLoRA and EraseStrength on the real ComfyUI: what they make is what the stock nodes would do."""

import importlib.util
import logging
import sys
from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
import nodes
import pytest
import torch

from eraseanything_core.comfy_bridge.text import TextEncoder
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.lora import adapter, keys, strength
from eraseanything_core.lora.gate import Gate
from eraseanything_core.lora.headers import Erased

ROOT = Path(__file__).resolve().parents[3]
CONCEPTS = ("star", "tree", "dog")
WEIGHTS, TEXT = ROOT / "eraseanything_core" / "tinyflux" / "weights", "tinyflux_text.safetensors"


@pytest.fixture(scope="session")
def pack():
    spec = importlib.util.spec_from_file_location(
        "pack_with_loras", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack_with_loras"] = module
    spec.loader.exec_module(module)
    return {node.GET_SCHEMA().node_id.removeprefix("EraseAnything_"): node for node in module.NODES}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    loras = tmp_path / "loras"
    loras.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(loras)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "get_system_user_directory", lambda name: str(tmp_path / "user"))
    return loras


@pytest.fixture
def files(patcher, folder):
    """Three erasers of different rank and targets, with the header of the trainer."""
    for i, concept in enumerate(CONCEPTS):
        with training_session(patcher) as model:
            targets, rank = (("paper", 8), ("text_qkv", 4), ("to_q+single_k", 2))[i]
            made = model.attach(targets, rank, torch.Generator().manual_seed(i))
        for j, up in enumerate(made.up):
            up.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(10 * i + j))
        header = {"concept": concept, "irrelevant": '["box"]', "width": "96", "height": "96", "guidance": "2.0"}
        named = {f"eraseanything.{k}": v for k, v in header.items()}
        adapter.save_lora(made.tensors(torch.float32), folder / f"{concept}.safetensors", named)
    return "\n".join(f"{concept}.safetensors" for concept in CONCEPTS)


@pytest.fixture
def widgets(patcher, clip, files):
    texts = {"weights": "1", "prompt": "", "preserve": "", "concepts": ""}
    return {"model": patcher, "clip": clip, "files": files, "rank": 0, "energy": 1.0, "density": 0.5, "seed": 0} | texts


def execute(node, values):
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(None).execute(**values)


def velocity(patcher, t=0.6):
    """v of a MODEL as the sampler calls it, through its wrappers."""
    comfy.model_management.load_models_gpu([patcher])
    g = torch.Generator().manual_seed(9)
    x, context, pooled = (torch.randn(*s, generator=g) for s in ((2, 16, 12, 12), (2, 32, 128), (2, 64)))
    sigma = torch.full((2,), t)
    options = comfy.model_patcher.create_model_options_clone(patcher.model_options)["transformer_options"]
    options["wrappers"] = comfy.model_patcher.comfy.patcher_extension.copy_nested_dicts(patcher.wrappers)
    with torch.inference_mode():
        x_0 = patcher.model.apply_model(
            x, sigma, c_crossattn=context, y=pooled, guidance=torch.full((2,), 2.0), transformer_options=options
        )
    return (x - x_0) / t


def relative(a, b):
    return float((a - b).norm() / b.norm())


def chained(patcher, weights):
    for concept, weight in zip(CONCEPTS, weights, strict=True):
        patcher, _ = nodes.LoraLoader().load_lora(patcher, None, f"{concept}.safetensors", weight, 0)
    return patcher


WEIGHTED = "star.safetensors: 0.7\ntree.safetensors: -0.4\ndog.safetensors"


@pytest.mark.parametrize("mode, share", (("concatenate", 1), ("sum", 1), ("normalised sum", 3)))
def test_chained_stock_loaders_give_the_exact_sum(pack, widgets, patcher, mode, share):
    base = velocity(patcher)
    model, _, summary = execute(pack["MultiEraseLoRA"], widgets | {"mode": mode, "files": WEIGHTED}).args
    stock = velocity(chained(patcher, [0.7 / share, -0.4 / share, 1 / share]))
    assert relative(velocity(model), stock) < 1e-4 and relative(stock, base) > 0.01
    assert relative(velocity(patcher), base) == 0, "the caller's MODEL is as it was"
    assert "star.safetensors: weight 0.7" in summary


def test_one_file_for_the_stock_loader_and_diffusers(pack, widgets, patcher, folder, make_flux, to_diffusers, caplog):
    """Mixed ranks and targets, saved as one LoRA, mean the same everywhere."""
    from .test_lora_files import case, diffusers_velocity

    model, one, _ = execute(pack["MultiEraseLoRA"], widgets | {"mode": "concatenate"}).args
    execute(pack["SaveEraseLoRA"], {"lora": one, "output_name": "all"})
    with caplog.at_level(logging.WARNING):
        stock, _ = nodes.LoraLoader().load_lora(patcher, None, "all.safetensors", 1.0, 0)
    assert not [r for r in caplog.records if "not loaded" in r.message.lower()]
    assert relative(velocity(stock), velocity(model)) < 1e-5
    theirs = to_diffusers(make_flux())
    theirs.load_lora_adapter(str(folder), weight_name="all.safetensors", prefix="transformer")
    assert relative(diffusers_velocity(theirs, *case()), bridge_velocity(stock, *case())) < 1e-4
    assert adapter.load_lora(folder / "all.safetensors")[1]["eraseanything.concepts"] == '["star", "tree", "dog"]'


def bridge_velocity(patcher, x, sigma, cond):
    comfy.model_management.load_models_gpu([patcher])
    kept = {"c_crossattn": cond.context, "y": cond.pooled, "guidance": cond.guidance, "transformer_options": {}}
    with torch.inference_mode():
        return (x - patcher.model.apply_model(x, sigma, **kept)) / sigma[:, None, None, None]


def test_the_last_modulation_is_what_the_stock_loader_makes_of_it(pack, widgets, patcher, folder):
    """diffusers has its halves in the other order."""
    g = torch.Generator().manual_seed(0)
    shapes = {"A": (4, 256), "B": (512, 4)}
    made = {f"transformer.norm_out.linear.lora_{s}.weight": torch.randn(*x, generator=g) / 8 for s, x in shapes.items()}
    adapter.save_lora(made, folder / "last.safetensors", {})
    model = execute(pack["MultiEraseLoRA"], widgets | {"mode": "sum", "files": "last.safetensors"}).args[0]
    stock, _ = nodes.LoraLoader().load_lora(patcher, None, "last.safetensors", 1.0, 0)
    assert relative(velocity(model), velocity(stock)) < 1e-4 < relative(velocity(stock), velocity(patcher))


def test_the_benchmark_has_the_modes_and_defaults_of_the_node(pack):
    from lab.measurements import multi

    inputs = {i.id: i for i in pack["MultiEraseLoRA"].define_schema().inputs}
    assert set(multi.MODES) == set(inputs["mode"].options)
    assert [inputs[n].default for n in ("rank", "energy", "density")] == [multi.RANK, multi.ENERGY, multi.DENSITY]


def test_fusion_reads_states_once(pack, widgets, patcher, tmp_path):
    base = velocity(patcher)
    mode = widgets | {"mode": "closed-form fusion"}
    model, one, _ = execute(pack["MultiEraseLoRA"], mode).args
    states = sorted((tmp_path / "user" / "states").iterdir())
    times = [path.stat().st_mtime_ns for path in states]
    assert len(states) == 4, "a file a concept and one for what must stay"
    assert {t.dtype for path in states for t in adapter.load_lora(path)[0].values()} == {torch.bfloat16}
    again, same, _ = execute(pack["MultiEraseLoRA"], mode).args
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert [path.stat().st_mtime_ns for path in states] == times
    assert relative(velocity(model), base) > 1e-3 and relative(velocity(patcher), base) == 0
    execute(pack["MultiEraseLoRA"], mode | {"preserve": "a green box"})
    assert len(list((tmp_path / "user" / "states").iterdir())) == 5, "only what must stay is read again"


def test_gates_are_the_weights_of_the_sum(pack, widgets, patcher, clip, folder):
    """`a star` is about the first eraser; the result is the stock loaders' sum with the gates as strengths."""
    mode = widgets | {"mode": "prompt-gated", "prompt": "a star on the wall", "files": WEIGHTED}
    model, _, summary = execute(pack["MultiEraseLoRA"], mode).args
    erased = [Erased.of(adapter.load_lora(folder / f"{concept}.safetensors")[1], concept) for concept in CONCEPTS]
    gates = Gate(erased, TextEncoder(clip))("a star on the wall")
    assert gates[0] == 1 > max(gates[1:]) and "star.safetensors: weight 0.7, gate 1.00" in summary
    stock = chained(patcher, [w * g for w, g in zip((0.7, -0.4, 1), gates, strict=True)])
    assert relative(velocity(model), velocity(stock)) < 1e-4


def test_a_gated_model_refuses_another_prompt(pack, widgets, patcher, clip):
    """Its own is sampled as the saved LoRA samples it, and the file says whose it is."""
    mode = widgets | {"mode": "prompt-gated", "prompt": "a star on the wall", "files": WEIGHTED}
    model, one, _ = execute(pack["MultiEraseLoRA"], mode).args
    assert one.header["eraseanything.prompt"] == "a star on the wall"
    plain, _ = comfy.sd.load_lora_for_models(patcher, None, dict(one), 1.0, 0)

    def sample(model, prompt, negative=""):
        own, other = (
            [[context, {"pooled_output": pooled, "guidance": 2.0}]]
            for context, pooled in (clip.encode_from_tokens(clip.tokenize(p), True) for p in (prompt, negative))
        )
        latent = {"samples": torch.zeros(1, 16, 12, 12)}
        return nodes.KSampler().sample(model, 1, 2, 2.0, "euler", "simple", own, other, latent)[0]["samples"]

    assert torch.equal(sample(model, "a star on the wall"), sample(plain, "a star on the wall"))
    with pytest.raises(ValueError, match="not the one that Multi Erase LoRA gated the erasers for"):
        sample(model, "a tree on the wall")


def test_linked_loras_of_other_nodes(pack, widgets, folder):
    plain = adapter.load_lora(folder / "star.safetensors")[0]
    half = {key: tensor.bfloat16() for key, tensor in plain.items()}
    given = widgets | {"mode": "concatenate", "files": "", "loras": {"lora0": half, "lora1": plain}, "weights": "1, 2"}
    _, one, summary = execute(pack["MultiEraseLoRA"], given).args
    assert "the input lora1: weight 2" in summary
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}, "the widest of them"
    gated = given | {"mode": "prompt-gated", "prompt": "a tree", "concepts": "star\ntree, pine"}
    assert "lora1: weight 2, gate 1.00" in execute(pack["MultiEraseLoRA"], gated).args[2]


BAD = {
    "no lora": ({"files": ""}, "there is no LoRA"),
    "no clip": ({"mode": "prompt-gated", "clip": None}, "connect the CLIP"),
    "no prompt": ({"mode": "prompt-gated"}, "connect its text to `prompt`"),
    "a weight": ({"files": "star.safetensors: much"}, "'much' in 'star.safetensors: much' is no number"),
    "too many weights": ({"files": "", "loras": {"lora0": {}}, "weights": "1, 2"}, "2 weights for 1 linked"),
    "concepts": ({"mode": "prompt-gated", "concepts": "star"}, "1 lines of concepts for 3 LoRAs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, pack, widgets):
    change, words = BAD[name]
    with pytest.raises(ValueError, match=words) as caught:
        execute(pack["MultiEraseLoRA"], widgets | {"mode": "concatenate"} | change)
    assert "\n" not in str(caught.value)


def test_a_lora_of_another_model_is_refused(pack, widgets, folder):
    tensors = {f"transformer.transformer_blocks.7.attn.to_q.lora_{s}.weight": torch.ones(2, 2) for s in "AB"}
    adapter.save_lora(tensors, folder / "big.safetensors", {})
    with pytest.raises(ValueError, match="does not fit this MODEL at transformer_blocks.7.attn.to_q"):
        execute(pack["MultiEraseLoRA"], widgets | {"mode": "concatenate", "files": "big.safetensors"})


def test_the_form_names_missing_files(pack, files):
    node = pack["MultiEraseLoRA"]
    assert node.validate_inputs(files=files) is True
    assert "nothere.safetensors" in node.validate_inputs(files="nothere.safetensors")
    assert "no number" in node.validate_inputs(files="star.safetensors: x")
    before = node.fingerprint_inputs(files=files)
    path = Path(folder_paths.get_full_path("loras", "star.safetensors"))
    path.touch()
    assert node.fingerprint_inputs(files=files) != before


# --- EraseStrength


@pytest.fixture
def unmeasured(patcher, clip, files):
    values = {"model": patcher, "clip": clip, "file": "star.safetensors", "images": 2}
    return values | {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}


@pytest.fixture
def dial(unmeasured, folder):
    """With a curve as version 1 of the pack wrote it."""
    tensors, header = adapter.load_lora(folder / "star.safetensors")
    curve = '{"scale": [0.0, 0.4, 0.6, 1.0], "effect": [0.0, 0.25, 0.75, 1.0]}'
    adapter.save_lora(tensors, folder / "star.safetensors", header | {"eraseanything.strength": curve})
    return unmeasured | {"clip": None}


@pytest.fixture
def tinyflux(pack, unmeasured, folder, monkeypatch):
    """A model that knows what a star is, and a LoRA that is strong enough to spoil it."""
    tensors, header = adapter.load_lora(folder / "star.safetensors")
    strong = {name: 40 * t if "lora_B" in name else t for name, t in tensors.items()}
    adapter.save_lora(strong, folder / "star.safetensors", header)
    for kind in ("text_encoders", "vae"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(WEIGHTS)], {".safetensors"}))
    model = comfy.sd.load_diffusion_model(str(WEIGHTS / "tinyflux.safetensors"))
    return unmeasured | {"model": model, "clip": execute(pack["TinyFlux"], {"text_encoder": TEXT}).args[0]}


def test_the_dial_is_measured_once_and_kept_in_the_file(pack, tinyflux, folder):
    node, patcher = pack["EraseStrength"], tinyflux["model"]
    before = adapter.load_lora(folder / "star.safetensors")
    model, _, scale, _ = execute(node, tinyflux).args
    tensors, header = adapter.load_lora(folder / "star.safetensors")
    assert scale == 1 and relative(velocity(model), velocity(chained(patcher, [1, 0, 0]))) < 1e-2
    assert set(header) - set(before[1]) == {"eraseanything.strength"}
    assert all(torch.equal(tensors[k], before[0][k]) for k in tensors)
    half, made, scale, summary = execute(node, tinyflux | {"strength": 0.5, "clip": None}).args
    assert 0 < scale < 1 and relative(velocity(half), velocity(chained(patcher, [scale, 0, 0]))) < 1e-2
    assert made.header == header and "seeds" in summary


def test_a_dial_that_its_file_does_not_take_is_used_and_told(pack, tinyflux, folder, monkeypatch):
    """The folder is read-only, or Windows has the file open in a loader."""
    before = adapter.load_lora(folder / "star.safetensors")[1]

    def refuse(*_):
        raise PermissionError(13, "used by another process")

    monkeypatch.setattr(Path, "replace", refuse)
    _, made, scale, summary = execute(pack["EraseStrength"], tinyflux | {"strength": 0.5, "images": 1}).args
    told = "not kept in star.safetensors (used by another process): save the output lora with Save Erase LoRA"
    assert summary.endswith(told)
    assert strength.Curve.of(made.header).scale_at(0.5) == pytest.approx(scale, abs=1e-4)
    assert adapter.load_lora(folder / "star.safetensors")[1] == before


def test_the_middle_of_the_dial_is_where_the_seed_flips(pack, tinyflux, folder):
    """Sampled anew just below and just above the scale that the dial names, with the same seed."""
    scale = execute(pack["EraseStrength"], tinyflux | {"strength": 0.5, "images": 1}).args[2]
    tensors, header = adapter.load_lora(folder / "star.safetensors")
    erased, reader, eraser = Erased.of(header, "x"), strength.Moves(), keys.read(tensors, {}, "x")
    config = strength.StrengthConfig.like(erased, 1)
    with torch.inference_mode(False):
        prompts = [TextEncoder(tinyflux["clip"]).encode(sentence) for sentence in erased.asking()[:1]]
    painter, near = strength.Painter(prompts, config), 0.5**config.halvings
    with training_session(tinyflux["model"]) as model:
        painted = [painter.paint(model, eraser, torch.tensor([s])) for s in (0.0, 1.0, scale - near, scale + near)]
    assert reader.ends(*painted[:2]).all() and [bool(reader.lost(x)) for x in painted[2:]] == [False, True]


def test_the_dial_follows_a_judge(pack, tinyflux, folder):
    """Chosen by a node, it reads what the VAE makes of the latents; without one the dial that is there is taken."""
    vae = nodes.VAELoader().load_vae("tinyflux_vae.safetensors")[0]
    given = {"labels": "", "template": "{}", "weights": "", "threshold": 0.0}
    judge = execute(pack["ChooseJudge"], given | {"label": "star", "judge": "TinyFlux CNN"}).args[0]
    with pytest.raises(ValueError, match="connect the VAE"):
        execute(pack["EraseStrength"], tinyflux | {"judge": judge})
    asked = tinyflux | {"images": 4, "strength": 0.5, "judge": judge, "vae": vae}
    _, made, scale, summary = execute(pack["EraseStrength"], asked).args
    assert "by TinyFlux CNN (star)" in summary and strength.Curve.of(made.header).reader == "TinyFlux CNN (star)"
    again = execute(pack["EraseStrength"], tinyflux | {"strength": 0.5, "clip": None}).args
    assert again[2] == pytest.approx(scale, abs=1e-4) and again[1].header == made.header


def test_the_dial_is_measured_on_own_prompts(pack, tinyflux, monkeypatch):
    """They are painted in turn; again when the prompts are others, not when there are none or the same."""
    node, painted = pack["EraseStrength"], []
    merging = importlib.import_module(node.__module__).merging
    painter = merging.Painter
    monkeypatch.setattr(merging, "Painter", lambda prompts, config: painted.append(prompts) or painter(prompts, config))
    asked = tinyflux | {"images": 3, "strength": 0.5, "prompts": "a red star on a white background\n\n a star "}
    _, made, scale, _ = execute(node, asked).args
    encode = TextEncoder(tinyflux["clip"]).encode
    wanted = [encode(p) for p in ("a red star on a white background", "a star")]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(painted[0], wanted, strict=True))
    for prompts in ("", asked["prompts"]):
        again = execute(node, asked | {"prompts": prompts, "clip": None}).args
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
    tensors, header = adapter.load_lora(folder / "star.safetensors")
    adapter.save_lora({name: 0 * t for name, t in tensors.items()}, folder / "nothing.safetensors", header)
    for change, words in (
        ({"file": "nothing.safetensors"}, "by the model, none of 2 images .* loses it at scale 1"),
        ({"clip": None}, "was not measured so yet: connect the CLIP"),
        ({"file": "(the linked lora)"}, "there is no eraser"),
        ({"start_percent": 0.5, "end_percent": 0.5}, "must be below"),
    ):
        with pytest.raises(ValueError, match=words):
            execute(node, dial | change)
