import re
import sys
from pathlib import Path

import pytest
import torch

from eraseanything_core import files
from eraseanything_core.lora import adapter
from eraseanything_core.training.config import EraseConfig

ROOT = Path(__file__).resolve().parents[2]


def parts(targets="add_q+add_k+single_mlp"):
    return adapter.slices(targets, width=8, dual=2, single=1, mlp_ratio=4.0)


def test_the_papers_targets_are_four_tensors_a_dual_block():
    made = adapter.Lora(parts("paper"), rank=2)
    assert sorted(made.tensors()) == sorted(
        f"transformer.transformer_blocks.{n}.attn.{name}.lora_{side}.weight"
        for n in range(2)
        for name in ("add_q_proj", "add_k_proj")
        for side in "AB"
    )


def test_an_adapter_adds_b_a_x_to_its_rows_only():
    made = adapter.Lora(parts("add_k+add_q"), rank=2, generator=torch.Generator().manual_seed(0))
    x, y = torch.randn(3, 5, 8), torch.randn(3, 5, 24)
    indices = made.by_module()["double_blocks.1.txt_attn.qkv"]
    assert torch.equal(made.add(indices, x, y), y), "B starts at zero"
    for up in made.up:
        up.data.normal_()
    found = made.add(indices, x, y)
    tensors = made.tensors(torch.float32)
    for name, start in (("add_q_proj", 0), ("add_k_proj", 8)):
        key = f"transformer.transformer_blocks.1.attn.{name}"
        delta = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
        assert torch.allclose(found[..., start : start + 8], y[..., start : start + 8] + x @ delta.T, atol=1e-5)
    assert torch.equal(found[..., 16:], y[..., 16:])


def test_masters_are_float32_and_files_bf16():
    made = adapter.Lora(parts(), rank=2)
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    assert {t.dtype for t in made.tensors().values()} == {torch.bfloat16}


def test_a_snapshot_does_not_move_with_training():
    made = adapter.Lora(parts(), rank=2)
    before = made.tensors(torch.float32)
    made.up[0].data += 1
    assert not before["transformer.transformer_blocks.0.attn.add_q_proj.lora_B.weight"].any()


def test_save_and_load(tmp_path):
    made = adapter.Lora(parts(), rank=2, generator=torch.Generator().manual_seed(0))
    config = EraseConfig(concept="star", synonyms=("sun",), seed=4)
    path = adapter.save_lora(made.tensors(torch.float32), tmp_path / "x.safetensors", adapter.header(config, "abc"))
    tensors, header = adapter.load_lora(path)
    again = adapter.Lora(parts(), rank=2)
    again.load(tensors)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
    assert header["eraseanything.concept"] == "star" and header["eraseanything.synonyms"] == '["sun"]'
    assert header["eraseanything.base_model"] == "abc" and header["modelspec.title"] == "erases star"
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has mapped")
def test_a_loaded_file_may_be_replaced(tmp_path):
    """Windows refuses it while the file is mapped."""
    path = adapter.save_lora(adapter.Lora(parts(), rank=2).tensors(), tmp_path / "x.safetensors", {})
    mapped = lambda: str(path) in Path("/proc/self/maps").read_text()  # noqa: E731
    plain = adapter.load_lora(path)
    assert plain and not mapped()
    left_in_the_file = adapter.load_lora(path, mapped=True)
    assert left_in_the_file and mapped()


def test_unknown_targets():
    with pytest.raises(ValueError, match="no target 'add_z'"):
        adapter.target_names("add_q+add_z")


def test_presets():
    assert adapter.target_names("paper") == ("add_q", "add_k") == adapter.target_names("add_q + add_k+add_q")
    assert all(adapter.target_names(name) for name in adapter.PRESETS)


def test_the_version_is_the_packages():
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert declared == adapter.VERSION


NAMELESS = ("", "  ", "..", ".hidden", "a/b", "a\\b", "c:d", "a\nb", ".safetensors")
DEVICES = ("CON", "nul", "Com1", "lpt9.safetensors", "COM²", "aux.txt", "prn .x", "conin$")
ENDS = ("eraser.", "eraser ..", "a .safetensors")


@pytest.mark.parametrize("name", NAMELESS + DEVICES + ENDS)
def test_names_that_are_no_file_names(name):
    with pytest.raises(ValueError, match="output name") as caught:
        files.check_name(name)
    assert "\n" not in str(caught.value)


def test_names_that_are():
    assert files.check_name("my eraser v1.2") == "my eraser v1.2"
    assert files.check_name("star.safetensors") == "star"
    assert files.check_name(" star ") == "star"
    assert all(files.check_name(name) == name for name in ("aux2", "console", "COM", "a.con"))
