"""Files and numbers that are nonsense: each is one sentence that names it, before anything is sampled or trained."""

import importlib

import folder_paths
import pytest
import torch

from eraseanything_core.lora.files import load_lora, save_lora
from tests.comfy.training.loras.cases import execute

PATTERNS = {".safetensors", ".pt", ".ckpt", ".bin"}  # as ComfyUI lists them


@pytest.fixture
def run_folder(pack, folder, tmp_path, monkeypatch):
    """The check that Erase Trainer does first."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    return importlib.import_module("pack_with_loras.nodes.shared.folders").run_folder


def test_pickles_are_neither_listed_nor_opened(pack, widgets, folder, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], PATTERNS))
    (folder / "old.pt").write_bytes(b"\x80\x02cposix\nsystem\n")
    assert "old.pt" in folder_paths.get_filename_list("loras")
    options = {each.id: each for each in pack["EraseStrength"].define_schema().inputs}["file"].options
    assert "star.safetensors" in options and "old.pt" not in options
    words = "'old.pt' is no .safetensors file, and other formats are never opened"
    assert words in pack["MultiEraseLoRA"].validate_inputs(files="old.pt")
    with pytest.raises(ValueError, match=words):
        execute(pack["MultiEraseLoRA"], widgets | {"mode": "sum", "files": "old.pt"})


def test_what_a_file_holds_besides_is_said(pack, widgets, folder):
    tensors, header = load_lora(folder / "star.safetensors")
    save_lora(tensors | {"lora_te1_x.lora_up.weight": torch.ones(2, 2)}, folder / "more.safetensors", header)
    node, values = pack["MultiEraseLoRA"], widgets | {"mode": "concatenate"}
    _, plain, summary = execute(node, values | {"files": "star.safetensors"}).args
    assert "left out" not in summary
    _, one, summary = execute(node, values | {"files": "more.safetensors"}).args
    note = "more.safetensors: only its transformer's part is used; tensors of the text encoder are left out (1)"
    assert summary.splitlines()[-1] == note
    assert plain.keys() == one.keys() and all(torch.equal(plain[key], one[key]) for key in plain)


@pytest.mark.parametrize("change", ({"weights": "1e39"}, {"files": "star.safetensors: -1e39"}))
def test_weights_beyond_float32(pack, widgets, folder, change):
    linked = {"loras": {"lora0": load_lora(folder / "star.safetensors")[0]}, "files": ""}
    with pytest.raises(ValueError, match="with these weights holds NaN or infinite numbers"):
        execute(pack["MultiEraseLoRA"], widgets | {"mode": "concatenate"} | linked | change)


@pytest.mark.parametrize("name", ("energy", "density"))
def test_settings_that_are_no_number(pack, widgets, name):
    with pytest.raises(ValueError, match=f"{name} is nan: set a number"):
        execute(pack["MultiEraseLoRA"], widgets | {"mode": "truncated", name: float("nan")})


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
        run_folder("x" * 240, "")
    with pytest.raises(ValueError, match="the run to resume, 'a/b' holds '/'"):
        run_folder("x", "a/b")
    with pytest.raises(ValueError, match="the run to resume, .* has 240 bytes"):
        run_folder("x", "y" * 240)
    assert run_folder("x" * 200, "") == runs / ("x" * 200)
    assert not list(runs.iterdir()) and not list(folder.iterdir()), "the proof leaves nothing behind"
    (folder / f"{'X' * 200}.safetensors").touch()
    assert run_folder("x" * 200, "").name == "x" * 198 + "_2"
    (runs / ("z" * 200)).mkdir()
    (folder / f"{'z' * 200}.safetensors").touch()
    assert run_folder("x", "z" * 200).name == "z" * 200, "the LoRA of a resumed run gets a number that fits"


def test_names_that_differ_by_case_only(run_folder, folder, tmp_path):
    (folder / "Eraser.SAFETENSORS").touch()
    assert run_folder("eraser", "").name == "eraser_2"
    (tmp_path / "output" / "eraseanything" / "ERASER_2").mkdir()
    assert run_folder("eraser", "").name == "eraser_3"


def test_a_lora_of_nan_is_not_saved(pack, folder):
    lora = {"x.lora_up.weight": torch.tensor([[1.0, torch.nan]])}
    with pytest.raises(ValueError, match="the LoRA holds NaN or infinite numbers at 'x.lora_up.weight'"):
        execute(pack["SaveEraseLoRA"], {"lora": lora, "output_name": "x"})
    assert not list(folder.iterdir())
