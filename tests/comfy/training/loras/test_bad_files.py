"""Files and numbers that are nonsense: each is one sentence that names it, before anything is sampled or trained."""

import importlib

import folder_paths
import pytest
import torch

from eraseanything_core.comfy_bridge.combining import StatesFile
from eraseanything_core.lora.files import load_lora, save_lora
from tests.comfy.training.loras.cases import chosen, execute

PATTERNS = {".safetensors", ".pt", ".ckpt", ".bin"}  # as ComfyUI lists them


@pytest.fixture
def run_folder(pack, folder, tmp_path, monkeypatch):
    """The check that Erase Trainer does first, with settings of which no run has been started."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    check = importlib.import_module("pack_with_loras.nodes.shared.folders").run_folder
    config = importlib.import_module("pack_with_loras.eraseanything_core.training.config").EraseConfig("star")
    return lambda name: check(name, config, "base")


def test_pickles_are_neither_listed_nor_opened(pack, widgets, folder, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], PATTERNS))
    (folder / "old.pt").write_bytes(b"\x80\x02cposix\nsystem\n")
    assert "old.pt" in folder_paths.get_filename_list("loras")
    for node, name in (("EraseStrength", "file"), ("MultiEraseLoRA", "file_8"), ("ExportCheckpoint", "file")):
        options = {each.id: each for each in pack[node].define_schema().inputs}[name].options
        assert "star.safetensors" in options and "old.pt" not in options
    words = "'old.pt' is no .safetensors file, and other formats are never opened"
    with pytest.raises(ValueError, match=words):
        execute(pack["MultiEraseLoRA"], widgets | {"mode": "sum"} | chosen("old.pt"))


def test_what_a_file_holds_besides_is_said(pack, widgets, folder):
    tensors, header = load_lora(folder / "star.safetensors")
    save_lora(tensors | {"lora_te1_x.lora_up.weight": torch.ones(2, 2)}, folder / "more.safetensors", header)
    node, values = pack["MultiEraseLoRA"], widgets | {"mode": "concatenate"}
    _, plain, summary = execute(node, values | chosen("star.safetensors")).args
    assert "left out" not in summary
    _, one, summary = execute(node, values | chosen("more.safetensors")).args
    note = "more.safetensors: only its transformer's part is used; tensors of the text encoder are left out (1)"
    assert summary.splitlines()[-1] == note
    assert plain.keys() == one.keys() and all(torch.equal(plain[key], one[key]) for key in plain)


@pytest.mark.parametrize("change", ({"weights": "1e39"}, chosen(("star.safetensors", -1e39))))
def test_weights_beyond_float32(pack, widgets, folder, change):
    linked = chosen() | {"loras": {"lora0": load_lora(folder / "star.safetensors")[0]}}
    with pytest.raises(ValueError, match="with these weights holds NaN or infinite numbers"):
        execute(pack["MultiEraseLoRA"], widgets | {"mode": "concatenate"} | linked | change)


@pytest.mark.parametrize("name", ("energy", "density"))
def test_settings_that_are_no_number(pack, widgets, name):
    with pytest.raises(ValueError, match=f"{name} is nan: set a number"):
        execute(pack["MultiEraseLoRA"], widgets | {"mode": "truncated", name: float("nan")})


def test_what_must_stay_holds_nothing_that_is_erased(pack, widgets, tmp_path):
    """Also in the plural, and before the text encoder reads anything; the other modes do not read `preserve`."""
    values = widgets | {"preserve": "a green box\nred stars at night"}
    with pytest.raises(ValueError, match="'red stars at night' is to be kept and holds 'star', which is to be erased"):
        execute(pack["MultiEraseLoRA"], values | {"mode": "closed-form fusion"})
    assert not (tmp_path / "user" / "states").exists()
    execute(pack["MultiEraseLoRA"], values | {"mode": "sum"})


def test_damaged_states_of_fusion_are_named(tmp_path):
    path = tmp_path / "states.safetensors"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match=r"states\.safetensors is damaged .*header too large.*: delete it"):
        StatesFile(path)["double_blocks.0.txt_attn.qkv"]


def test_a_header_with_a_broken_curve_is_named(pack, widgets, folder):
    tensors, header = load_lora(folder / "star.safetensors")
    save_lora(tensors, folder / "bent.safetensors", header | {"eraseanything.strength": "{}"})
    values = {"model": widgets["model"], "file": "bent.safetensors", "images": 1, "strength": 0.5}
    with pytest.raises(ValueError, match="the header of bent.safetensors holds no strength curve"):
        execute(pack["EraseStrength"], values | {"start_percent": 0.0, "end_percent": 1.0})


def test_names_of_a_run_are_proved(run_folder, folder, tmp_path):
    """Before the training: the LoRA, the state and their temporary names."""
    runs = tmp_path / "output" / "eraseanything"
    with pytest.raises(ValueError, match="the output name .* has 240 bytes: take one of at most 200"):
        run_folder("x" * 240)
    assert run_folder("x" * 200) == runs / ("x" * 200)
    assert not list(runs.iterdir()) and not list(folder.iterdir()), "the proof leaves nothing behind"
    (folder / f"{'X' * 200}.safetensors").touch()
    assert run_folder("x" * 200).name == "x" * 198 + "_2"


def test_names_that_differ_by_case_only(run_folder, folder, tmp_path):
    (folder / "Eraser.SAFETENSORS").touch()
    assert run_folder("eraser").name == "eraser_2"
    (tmp_path / "output" / "eraseanything" / "ERASER_2").mkdir()
    assert run_folder("eraser").name == "eraser_3"


def test_a_lora_of_nan_is_not_saved(pack, folder):
    lora = {"x.lora_up.weight": torch.tensor([[1.0, torch.nan]])}
    with pytest.raises(ValueError, match="the LoRA holds NaN or infinite numbers at 'x.lora_up.weight'"):
        execute(pack["SaveEraseLoRA"], {"lora": lora, "output_name": "x"})
    assert not list(folder.iterdir())
