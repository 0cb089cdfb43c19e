"""MultiEraseLoRA on the real ComfyUI: what it makes is what the stock nodes would do."""

import json
import logging
from pathlib import Path

import comfy.model_management
import comfy.patcher_extension
import folder_paths
import nodes
import pytest
import torch

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.lora import merge
from eraseanything_core.lora.files import load_lora, save_lora
from eraseanything_core.lora.headers import ErasedConcept
from eraseanything_core.lora.key_styles import read_eraser
from eraseanything_core.lora.transport import transport
from tests.comfy.training.loras.cases import CONCEPTS, chained, chosen, execute, relative, velocity
from tests.comfy.training.node_runs import said
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


def test_a_gated_combination_is_saved_as_the_plain_sum(pack, widgets, patcher):
    """A file has no gates: its erasers are all on, and its header says so."""
    _, one, summary = execute(pack["MultiEraseLoRA"], widgets | WEIGHTED | {"mode": "prompt-gated"}).args
    _, same, _ = execute(pack["MultiEraseLoRA"], widgets | WEIGHTED | {"mode": "concatenate"}).args
    assert one.header == same.header and all(torch.equal(one[key], same[key]) for key in same)
    assert "star.safetensors: weight 0.7" in summary and "opens its own gates" in summary


def test_gates_scale_each_eraser_in_each_row(pack, widgets, patcher, clip):
    """Of LoRAs with different ranks and targets, on an encoder that does not zero its padding."""
    model, _, _ = execute(pack["MultiEraseLoRA"], widgets | WEIGHTED | {"mode": "prompt-gated"}).args
    contexts, pooled = zip(
        *(clip.encode_from_tokens(clip.tokenize(f"a {word} on the wall"), True) for word in (*CONCEPTS, "box")),
        strict=True,
    )
    x = torch.randn(4, 16, 12, 12, generator=torch.Generator().manual_seed(3))

    def predicted(patcher, rows):
        comfy.model_management.load_models_gpu([patcher])
        options = {"wrappers": comfy.patcher_extension.copy_nested_dicts(patcher.wrappers)}
        kept = {"c_crossattn": torch.cat(contexts)[rows], "y": torch.cat(pooled)[rows]}
        kept |= {"guidance": torch.full((4,), 2.0)[rows], "transformer_options": options}
        with torch.inference_mode():
            return patcher.model.apply_model(x[rows], torch.full((4,), 0.6)[rows], **kept)

    made = predicted(model, slice(None))
    (wrapper,) = model.wrappers[comfy.patcher_extension.WrappersMP.APPLY_MODEL]["eraseanything"]
    gates = wrapper.__self__.gates(x, torch.cat(contexts), None)
    # The states of this encoder are random, so that a gate may be open by a hundredth where it is not asked for.
    assert torch.allclose(gates, torch.eye(4, 3), atol=0.05)
    for i, row in enumerate(gates.tolist()):
        weights = [gate * weight for gate, weight in zip(row, (0.7, -0.4, 1), strict=True)]
        assert relative(made[i : i + 1], predicted(chained(patcher, weights), slice(i, i + 1))) < 1e-4


def test_transport_is_the_sum_of_what_the_prompt_is_about(pack, widgets, patcher):
    """By stock loaders at the strengths of lora.transport, which tests/unit/test_compose.py holds to the equation."""
    encoder = ComfyHost(patcher, widgets["clip"]).text_encoder()
    prompt = "a star beside a tree"
    strengths = transport(prompt, [ErasedConcept((name,)) for name in CONCEPTS], encoder)
    assert strengths[:2] == [1, 1] and strengths[2] < 0.5
    given = widgets | WEIGHTED | {"mode": "facilitated transport", "prompt": prompt}
    model, one, summary = execute(pack["MultiEraseLoRA"], given).args
    weights = [gamma * weight for gamma, weight in zip(strengths, (0.7, -0.4, 1), strict=True)]
    assert relative(velocity(model), velocity(chained(patcher, weights))) < 1e-4
    assert relative(velocity(model), velocity(chained(patcher, (0.7, -0.4, 1)))) > 1e-3
    stored = json.loads(one.header["eraseanything.weights"])
    assert stored == pytest.approx(weights) and f"dog.safetensors: weight {weights[2]:g}" in summary


def test_linked_loras_of_other_nodes(pack, widgets, folder):
    plain = load_lora(folder / "star.safetensors")[0]
    half = {key: tensor.bfloat16() for key, tensor in plain.items()}
    linked = {"loras": {"lora0": half, "lora1": plain}, "weights": "1, 2"}
    given = widgets | chosen() | {"mode": "concatenate"} | linked
    _, one, summary = execute(pack["MultiEraseLoRA"], given).args
    assert "the input lora1: weight 2" in summary
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}, "the widest of them"
    gated = given | {"mode": "prompt-gated", "concepts": "star\ntree, pine"}
    assert "2 erasers by prompt-gated" in execute(pack["MultiEraseLoRA"], gated).args[2]


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
    "infinite": (chosen(("star.safetensors", float("inf"))), "weight_1 is inf: set a number"),
    "not a number": (LINKED | {"weights": "nan"}, "'nan' in 'nan' is no finite number"),
    "no lora": (chosen(), "there is no LoRA: choose a file, or link one"),
    "no clip": ({"mode": "prompt-gated", "clip": None}, "connect the CLIP"),
    "a weight": (LINKED | {"weights": "1, much"}, "'much' in '1, much' is no number"),
    "too many weights": (LINKED | {"weights": "1, 2"}, "2 weights for 1 linked"),
    "no prompt": ({"mode": "facilitated transport"}, "is for one prompt: type it into `prompt`"),
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
    assert node.validate_inputs(weights="1, 2", loras={"lora0": None}) is True
    assert "no number" in said(node, weights="1, x", loras={"lora0": None})


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
