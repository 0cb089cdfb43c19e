"""MultiEraseLoRA on the real ComfyUI: what it makes is what the stock nodes would do."""

import logging
from pathlib import Path

import comfy.model_management
import comfy.samplers
import comfy.sd
import folder_paths
import nodes
import pytest
import torch

from eraseanything_core.comfy_bridge.text import ComfyTextEncoder
from eraseanything_core.lora import merge
from eraseanything_core.lora.files import load_lora, save_lora
from eraseanything_core.lora.gate import PromptGate
from eraseanything_core.lora.headers import ErasedConcept
from eraseanything_core.lora.key_styles import read_eraser
from tests.comfy.training.loras.cases import CONCEPTS, chained, chosen, execute, relative, velocity
from tests.comfy.training.test_lora_files import case, diffusers_velocity

WEIGHTED = chosen(("star.safetensors", 0.7), ("tree.safetensors", -0.4), "dog.safetensors")


@pytest.mark.parametrize("mode, share", (("concatenate", 1), ("sum", 1), ("normalised sum", 3)))
def test_chained_stock_loaders_give_the_exact_sum(pack, widgets, patcher, mode, share):
    base = velocity(patcher)
    model, _, summary = execute(pack["MultiEraseLoRA"], widgets | WEIGHTED | {"mode": mode}).args
    stock = velocity(chained(patcher, [0.7 / share, -0.4 / share, 1 / share]))
    assert relative(velocity(model), stock) < 1e-4 and relative(stock, base) > 0.01
    assert relative(velocity(patcher), base) == 0, "the caller's MODEL is as it was"
    assert "star.safetensors: weight 0.7" in summary


def test_one_file_for_the_stock_loader_and_diffusers(pack, widgets, patcher, folder, make_flux, to_diffusers, caplog):
    """Mixed ranks and targets, saved as one LoRA, mean the same everywhere."""
    model, one, _ = execute(pack["MultiEraseLoRA"], widgets | {"mode": "concatenate"}).args
    execute(pack["SaveEraseLoRA"], {"lora": one, "output_name": "all"})
    with caplog.at_level(logging.WARNING):
        stock, _ = nodes.LoraLoader().load_lora(patcher, None, "all.safetensors", 1.0, 0)
    assert not [r for r in caplog.records if "not loaded" in r.message.lower()]
    assert relative(velocity(stock), velocity(model)) < 1e-5
    theirs = to_diffusers(make_flux())
    theirs.load_lora_adapter(str(folder), weight_name="all.safetensors", prefix="transformer")
    assert relative(diffusers_velocity(theirs, *case()), bridge_velocity(stock, *case())) < 1e-4
    assert load_lora(folder / "all.safetensors")[1]["eraseanything.concepts"] == '["star", "tree", "dog"]'


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
    save_lora(made, folder / "last.safetensors", {})
    model = execute(pack["MultiEraseLoRA"], widgets | chosen("last.safetensors") | {"mode": "sum"}).args[0]
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
    assert {t.dtype for path in states for t in load_lora(path)[0].values()} == {torch.bfloat16}
    again, same, _ = execute(pack["MultiEraseLoRA"], mode).args
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert [path.stat().st_mtime_ns for path in states] == times
    assert relative(velocity(model), base) > 1e-3 and relative(velocity(patcher), base) == 0
    execute(pack["MultiEraseLoRA"], mode | {"preserve": "a green box"})
    assert len(list((tmp_path / "user" / "states").iterdir())) == 5, "only what must stay is read again"


def test_gates_are_the_weights_of_the_sum(pack, widgets, patcher, clip, folder):
    """`a star` is about the first eraser; the result is the stock loaders' sum with the gates as strengths."""
    mode = widgets | WEIGHTED | {"mode": "prompt-gated", "prompt": "a star on the wall"}
    model, _, summary = execute(pack["MultiEraseLoRA"], mode).args
    erased = [
        ErasedConcept.from_header(load_lora(folder / f"{concept}.safetensors")[1], concept) for concept in CONCEPTS
    ]
    gates = PromptGate(erased, ComfyTextEncoder(clip))("a star on the wall")
    assert gates[0] == 1 > max(gates[1:]) and "star.safetensors: weight 0.7, gate 1.00" in summary
    stock = chained(patcher, [w * g for w, g in zip((0.7, -0.4, 1), gates, strict=True)])
    assert relative(velocity(model), velocity(stock)) < 1e-4


def test_a_gated_model_refuses_another_prompt(pack, widgets, patcher, clip):
    """Its own is sampled as the saved LoRA samples it, and the file says whose it is."""
    mode = widgets | WEIGHTED | {"mode": "prompt-gated", "prompt": "a star on the wall"}
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
    plain = load_lora(folder / "star.safetensors")[0]
    half = {key: tensor.bfloat16() for key, tensor in plain.items()}
    linked = {"loras": {"lora0": half, "lora1": plain}, "weights": "1, 2"}
    given = widgets | chosen() | {"mode": "concatenate"} | linked
    _, one, summary = execute(pack["MultiEraseLoRA"], given).args
    assert "the input lora1: weight 2" in summary
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}, "the widest of them"
    gated = given | {"mode": "prompt-gated", "prompt": "a tree", "concepts": "star\ntree, pine"}
    assert "lora1: weight 2, gate 1.00" in execute(pack["MultiEraseLoRA"], gated).args[2]


@pytest.mark.parametrize("mode", ("concatenate", "sum", "normalised sum", "truncated", "ties_svd"))
@pytest.mark.parametrize("alpha", (False, True), ids=("no alpha", "alpha"))
def test_8_bit_factors_count_as_bf16(pack, widgets, folder, mode, alpha):
    """torch neither promotes nor multiplies them, and sums of them are no 8-bit numbers."""
    if mode in merge.SPARSE_MODES:
        pytest.importorskip("peft")
    tensors = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in load_lora(folder / "star.safetensors")[0].items()}
    same = {key: tensor.float() for key, tensor in tensors.items()}
    if alpha:
        scales = {key.replace("lora_A.weight", "alpha"): torch.tensor(8.0) for key in tensors if "lora_A" in key}
        tensors, same = tensors | scales, same | scales
    node, settings = pack["MultiEraseLoRA"], widgets | chosen() | {"mode": mode}
    one = execute(node, settings | {"loras": {"lora0": tensors, "lora1": tensors}}).args[1]
    wanted = execute(node, settings | {"loras": {"lora0": same, "lora1": same}}).args[1]
    assert {tensor.dtype for tensor in one.values()} == {torch.float32 if alpha else torch.bfloat16}
    for key in read_eraser(one, {}, "one"):
        change, right = (f.up @ f.down for f in (read_eraser(lora, {}, "x")[key] for lora in (one, wanted)))
        assert relative(change, right) < 0.01, "8-bit numbers would be 5 % off"


LINKED = chosen() | {"loras": {"lora0": {}}}
BAD = {
    "infinite": (chosen(("star.safetensors", float("inf"))), "the weight of star.safetensors is inf: set a number"),
    "not a number": (LINKED | {"weights": "nan"}, "'nan' in 'nan' is no finite number"),
    "no lora": (chosen(), "there is no LoRA: choose a file, or link one"),
    "no clip": ({"mode": "prompt-gated", "clip": None}, "connect the CLIP"),
    "no prompt": ({"mode": "prompt-gated"}, "connect its text to `prompt`"),
    "a weight": (LINKED | {"weights": "1, much"}, "'much' in '1, much' is no number"),
    "too many weights": (LINKED | {"weights": "1, 2"}, "2 weights for 1 linked"),
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
    save_lora(tensors, folder / "big.safetensors", {})
    with pytest.raises(ValueError, match="does not fit this MODEL at transformer_blocks.7.attn.to_q"):
        execute(pack["MultiEraseLoRA"], widgets | chosen("big.safetensors") | {"mode": "concatenate"})


def test_a_missing_file_and_a_typed_weight_are_named(pack, widgets):
    node = pack["MultiEraseLoRA"]
    with pytest.raises(FileNotFoundError, match=r"nothere\.safetensors"):
        execute(node, widgets | chosen("nothere.safetensors") | {"mode": "sum"})
    assert node.validate_inputs(weights="1, 2") is True
    assert "no number" in node.validate_inputs(weights="1, x")


def test_a_file_that_changed_is_read_again(pack, files):
    node = pack["MultiEraseLoRA"]
    before = node.fingerprint_inputs(**files)
    assert len(before) == 3
    path = Path(folder_paths.get_full_path("loras", "star.safetensors"))
    path.touch()
    assert node.fingerprint_inputs(**files) != before


def test_files_in_subfolders_are_listed_and_read(pack, widgets, folder):
    (folder / "people").mkdir()
    (folder / "star.safetensors").rename(folder / "people" / "star.safetensors")
    name = str(Path("people", "star.safetensors"))  # with the system's own separator, as ComfyUI lists it
    inputs = {each.id: each for each in pack["MultiEraseLoRA"].define_schema().inputs}
    assert name in inputs["file_1"].options and inputs["file_1"].default == "none"
    summary = execute(pack["MultiEraseLoRA"], widgets | chosen(name) | {"mode": "sum"}).args[2]
    assert f"{name}: weight 1" in summary


# Texts that the gate was not made for, joined with the gated prompt in every way that the stock nodes have.
def combined_rows(gated, other):
    return nodes.ConditioningCombine().combine(gated, other)[0]


def windowed_rows(gated, other):
    early = nodes.ConditioningSetTimestepRange().set_range(other, 0.0, 0.9)[0]
    late = nodes.ConditioningSetTimestepRange().set_range(gated, 0.9, 1.0)[0]
    return nodes.ConditioningCombine().combine(early, late)[0]


def area_rows(gated, other):
    left = nodes.ConditioningSetArea().append(other, 48, 96, 0, 0, 1.0)[0]
    right = nodes.ConditioningSetArea().append(gated, 48, 96, 48, 0, 1.0)[0]
    return nodes.ConditioningCombine().combine(left, right)[0]


def concatenated_rows(gated, other):
    return nodes.ConditioningConcat().concat(gated, other)[0]


def averaged_rows(gated, other):
    return nodes.ConditioningAverage().addWeighted(gated, other, 0.5)[0]


def other_pooled_rows(gated, other):
    """As CLIPTextEncodeFlux makes them of two texts."""
    return [[gated[0][0], gated[0][1] | {"pooled_output": other[0][1]["pooled_output"]}]]


JOINED = (combined_rows, windowed_rows, area_rows, concatenated_rows, averaged_rows, other_pooled_rows)


@pytest.fixture
def gated_output(pack, widgets):
    values = widgets | chosen("star.safetensors") | {"mode": "prompt-gated", "prompt": "a box on the wall"}
    return execute(pack["MultiEraseLoRA"], values).args


@pytest.fixture
def gated(gated_output):
    """A MODEL that is gated for a prompt without the concept."""
    return gated_output[0]


@pytest.fixture
def ungated(gated_output, patcher):
    """The same weights as a stock LoRA, which takes every prompt."""
    return comfy.sd.load_lora_for_models(patcher, None, dict(gated_output[1]), 1.0, 0)[0]


@pytest.fixture
def encode(clip):
    def encoded(prompt):
        context, pooled = clip.encode_from_tokens(clip.tokenize(prompt), True)
        return [[context, {"pooled_output": pooled, "guidance": 2.0}]]

    return encoded


def sample(model, positive, negative):
    latent = {"samples": torch.zeros(1, 16, 12, 12)}
    return nodes.KSampler().sample(model, 1, 3, 2.0, "euler", "simple", positive, negative, latent)[0]["samples"]


@pytest.mark.parametrize("join", JOINED)
def test_a_gate_belongs_to_every_positive_row(gated, encode, join):
    """Another prompt would be drawn with the erasers of the gated one, which are weak or off."""
    own, star = encode("a box on the wall"), encode("a star")
    with pytest.raises(ValueError, match="not the one that Multi Erase LoRA gated the erasers for"):
        sample(gated, join(own, star), encode(""))
    with pytest.raises(ValueError, match="not the one that Multi Erase LoRA gated the erasers for"):
        sample(gated, star, own)


@pytest.mark.parametrize("join", JOINED)
def test_the_gated_prompt_may_be_joined_with_itself_and_negatives_are_free(gated, ungated, encode, join):
    own, star = encode("a box on the wall"), encode("a star")
    if join is not concatenated_rows:  # twice the prompt is another prompt
        same = join(own, own)
        assert torch.equal(sample(gated, same, star), sample(ungated, same, star))
    negative = join(own, star)
    assert torch.equal(sample(gated, own, negative), sample(ungated, own, negative))


def test_guiders_with_more_than_two_prompts(gated, encode):
    """The middle prompt of DualCFGGuider is drawn; the empty one of PerpNegGuider is subtracted."""
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    own, star, empty = encode("a box on the wall"), encode("a star"), encode("")

    def sampled(guider, conditioning):
        guider.set_conds(*conditioning)
        noise = torch.zeros(1, 16, 12, 12)
        sampler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, noise, sampler, torch.tensor([1.0, 0.5, 0.0]), seed=0)

    dual, perpendicular = Guider_DualCFG(gated), Guider_PerpNeg(gated)
    dual.set_cfg(2.0, 2.0)
    perpendicular.set_cfg(2.0, 1.0)
    with torch.inference_mode():
        assert sampled(dual, (own, own, star)).isfinite().all()
        assert sampled(perpendicular, (own, star, empty)).isfinite().all()
        with pytest.raises(ValueError, match="not the one that Multi Erase LoRA gated"):
            sampled(dual, (own, star, empty))


def test_a_second_text_encoder_may_be_left_empty(gated, ungated, encode):
    own, empty = encode("a box on the wall"), encode("")
    half = other_pooled_rows(own, empty)
    assert torch.equal(sample(gated, half, empty), sample(ungated, half, empty))
