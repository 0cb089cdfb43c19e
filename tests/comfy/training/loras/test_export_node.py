"""A whole model with an eraser in its weights: the file is what the stock loaders make of model and LoRA."""

import importlib
import json

import comfy.model_management
import comfy.sd
import folder_paths
import nodes
import pytest
import torch
from safetensors import safe_open

from eraseanything_core.comfy_bridge.training_session import fingerprint
from eraseanything_core.lora.files import load_lora, tensors_sha256
from tests.comfy.training.loras.cases import ROOT, execute, velocity
from tests.comfy.training.node_runs import said
from tests.comfy.training.test_formats import quantised

TINYFLUX = ROOT / "eraseanything_core" / "tinyflux" / "weights" / "tinyflux.safetensors"
SCALED = "float8_e4m3fn (scaled)"


@pytest.fixture
def models(tmp_path, monkeypatch):
    """ComfyUI's folders of diffusion models, the older one first."""
    folders = [tmp_path / "models" / "unet", tmp_path / "models" / "diffusion_models"]
    listed = ([str(folder) for folder in folders], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", listed)
    return folders[1]


@pytest.fixture
def values(patcher, files):
    return {"model": patcher, "file": "star.safetensors", "strength": 0.8, "output_name": "erased"}


def loaded(name):
    return nodes.UNETLoader().load_unet(name, "default")[0]


def stock(patcher, strength=0.8):
    return nodes.LoraLoader().load_lora(patcher, None, "star.safetensors", strength, 0)[0]


def weights(patcher):
    """The transformer's weights as they are while it samples; quantised ones unpacked."""
    comfy.model_management.load_models_gpu([patcher])
    named = patcher.model.diffusion_model.named_parameters()
    return {name: weight.dequantize().float().clone() for name, weight in named}


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_the_file_samples_as_model_and_lora_do(pack, values, patcher, models):
    """In float32, bit for bit, and the MODEL is as it was."""
    base, before = velocity(patcher), weights(patcher)
    path, report = execute(pack["ExportCheckpoint"], values).args
    assert path == str(models / "erased.safetensors")
    erased = loaded("erased.safetensors")
    expected = stock(patcher)
    check_equal(weights(erased), weights(expected))
    assert torch.equal(velocity(erased), velocity(expected)) and not torch.equal(velocity(erased), base)
    check_equal(weights(patcher), before)
    assert "float32: 100% of the entries differ" in report and "100% of the change is kept" in report
    assert "WARNING" not in report


def test_tinyflux_in_its_own_precision(pack, values, models):
    base = comfy.sd.load_diffusion_model(str(TINYFLUX))
    execute(pack["ExportCheckpoint"], values | {"model": base})
    erased, expected = loaded("erased.safetensors"), stock(base)
    assert erased.model_dtype() == base.model_dtype()
    check_equal(weights(erased), weights(expected))
    assert torch.equal(velocity(erased), velocity(expected))
    with safe_open(TINYFLUX, "pt") as file, safe_open(models / "erased.safetensors", "pt") as other:
        assert set(file.keys()) == set(other.keys()), "the names of the stock checkpoint"


def test_bfloat16_and_plain_8_bit_bases(pack, values, flux_weights, models):
    """The precision stays, the rounding is that of the stock loader, and what it costs is told."""
    for dtype, strength in ((torch.bfloat16, 0.8), (torch.float8_e4m3fn, 0.01)):
        name = str(dtype).removeprefix("torch.")
        state = {key: tensor.to(torch.bfloat16) for key, tensor in flux_weights.items()}
        base = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})
        asked = values | {"model": base, "output_name": name, "strength": strength}
        _, report = execute(pack["ExportCheckpoint"], asked).args
        tensors, _ = load_lora(models / f"{name}.safetensors")
        expected = stock(base, strength)
        comfy.model_management.load_models_gpu([expected])
        held = expected.model.diffusion_model.state_dict()
        assert tensors.keys() == held.keys() and tensors["double_blocks.0.txt_attn.qkv.weight"].dtype == dtype
        assert all(torch.equal(tensors[key].float(), held[key].float()) for key in tensors)
        assert f"{name}: " in report
        assert ("WARNING: float8_e4m3fn is too coarse" in report) == (name == "float8_e4m3fn")


def test_a_scaled_8_bit_base(pack, values, make_flux, models):
    packed, _ = quantised(dict(make_flux(torch.bfloat16).state_dict()), "float8_e4m3fn")
    with torch.inference_mode():
        base = comfy.sd.load_diffusion_model_state_dict({key: tensor.clone() for key, tensor in packed.items()})
    _, report = execute(pack["ExportCheckpoint"], values | {"model": base}).args
    assert f"{SCALED}: " in report
    check_equal(weights(loaded("erased.safetensors")), weights(stock(base)))


def test_the_header_says_what_it_is(pack, values, patcher, folder, models):
    execute(pack["ExportCheckpoint"], values)
    header = load_lora(models / "erased.safetensors")[1]
    told = {key.removeprefix("eraseanything."): value for key, value in header.items()}
    assert json.loads(told["concepts"]) == ["star"] and json.loads(told["strength"]) == 0.8
    assert told["base_model"] == fingerprint(patcher)
    assert told["lora_sha256"] == tensors_sha256(load_lora(folder / "star.safetensors")[0])
    assert header["modelspec.architecture"] == "flux-1-dev"
    assert header["modelspec.title"] == "model with the eraser of star"


def test_it_says_that_a_lora_that_is_not_loaded_protects_nobody(pack, values):
    """Before it is run, where the node is chosen, and in its report."""
    said = "a LoRA that is not loaded protects nobody"
    assert said in pack["ExportCheckpoint"].define_schema().description
    assert said in execute(pack["ExportCheckpoint"], values).args[1]


def test_no_file_of_the_user_is_written_over(pack, values, models):
    (models / "people").mkdir(parents=True)
    mine = models / "people" / "Erased.safetensors"
    mine.write_bytes(b"mine")
    path = execute(pack["ExportCheckpoint"], values | {"output_name": "people/erased"}).args[0]
    assert path == str(models / "people" / "erased_2.safetensors") and mine.read_bytes() == b"mine"


def test_a_cancelled_one_leaves_nothing(pack, values, models, monkeypatch):
    def cancelled(done):
        if done == 5:
            raise comfy.model_management.InterruptProcessingException

    module = importlib.import_module(pack["ExportCheckpoint"].__module__)
    monkeypatch.setattr(module, "progress_bar", lambda total: cancelled)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        execute(pack["ExportCheckpoint"], values)
    assert not list(models.iterdir())


def test_what_is_refused(pack, values, patcher, folder, models, monkeypatch):
    node = pack["ExportCheckpoint"]
    (folder / "broken.safetensors").write_bytes(b"\xff" * 64)
    for change, words in (
        ({"strength": 0.0}, "strength is 0: set a number that is not 0"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"file": "broken.safetensors"}, "broken.safetensors is damaged .*header too large"),
        ({"file": "(the linked lora)"}, "there is no eraser"),
        ({"model": stock(patcher)}, "already patched"),
        ({"output_name": "../x"}, "is no file name"),
    ):
        with pytest.raises(ValueError, match=words):
            execute(node, values | change)
    assert "is no file name" in said(node, output_name="a//b")
    assert node.validate_inputs(output_name="a/b") is True
    usage = importlib.import_module("pack_with_loras.eraseanything_core.files").shutil._ntuple_diskusage(1, 1, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match="has room for 0.0 GB and the file needs"):
        execute(node, values)
    assert not list(models.rglob("*.safetensors"))
