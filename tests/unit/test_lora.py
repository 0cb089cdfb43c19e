import hashlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eraseanything_core import files, version
from eraseanything_core.lora import adapter, headers, keys
from eraseanything_core.lora import files as lora_files
from eraseanything_core.training.config import EraseConfig

ROOT = Path(__file__).resolve().parents[2]


def parts(targets="add_q+add_k+single_mlp"):
    return keys.target_slices(targets, width=8, dual=2, single=1, mlp_ratio=4.0)


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
    assert torch.equal(made.add_to_output(indices, x, y), y), "B starts at zero"
    for up in made.up:
        up.data.normal_()
    found = made.add_to_output(indices, x, y)
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
    path = lora_files.save_lora(
        made.tensors(torch.float32), tmp_path / "x.safetensors", headers.training_header(config, "abc")
    )
    tensors, header = lora_files.load_lora(path)
    again = adapter.Lora(parts(), rank=2)
    again.load(tensors)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
    assert header["eraseanything.concept"] == "star" and header["eraseanything.synonyms"] == '["sun"]'
    assert header["eraseanything.base_model"] == "abc" and header["modelspec.title"] == "eraser of star"
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has mapped")
def test_a_loaded_file_may_be_replaced(tmp_path):
    """Windows refuses it while the file is mapped."""
    path = lora_files.save_lora(adapter.Lora(parts(), rank=2).tensors(), tmp_path / "x.safetensors", {})
    mapped = lambda: str(path) in Path("/proc/self/maps").read_text()  # noqa: E731
    plain = lora_files.load_lora(path)
    assert plain and not mapped()
    left_in_the_file = lora_files.load_lora(path, mapped=True)
    assert left_in_the_file and mapped()


def test_unknown_targets():
    with pytest.raises(ValueError, match="no target 'add_z'"):
        keys.target_names("add_q+add_z")


def test_presets():
    assert keys.target_names("paper") == ("add_q", "add_k") == keys.target_names("add_q + add_k+add_q")
    assert all(keys.target_names(name) for name in keys.TARGETS)


def test_equal_loras_are_equal_files(tmp_path):
    """Whatever the order of the tensors and of the header; the library's own writer orders headers at random."""
    header = {f"eraseanything.field_{i}": i for i in range(20)}
    tensors = adapter.Lora(parts(), rank=2, generator=torch.Generator().manual_seed(0)).tensors()
    one = lora_files.save_lora(tensors, tmp_path / "one.safetensors", header)
    backwards = dict(reversed(tensors.items()))
    two = lora_files.save_lora(backwards, tmp_path / "two.safetensors", dict(reversed(header.items())))
    assert hashlib.sha256(one.read_bytes()).hexdigest() == hashlib.sha256(two.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", lora_files.TYPE_NAMES, ids=str)
def test_every_dtype_is_read_back_by_the_library(tmp_path, dtype):
    tensors = {
        "wide": torch.arange(6, dtype=torch.float64).reshape(2, 3),
        "x": torch.tensor([[1, 0, 2]]).T.to(dtype),  # not contiguous
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 3).to(dtype),
    }
    path = lora_files.save_lora(tensors, tmp_path / "x.safetensors", {"concept": "ÿ 猫", "list": ["猫"]})
    again = load_file(path)
    assert set(again) == set(tensors)
    for key, tensor in tensors.items():
        assert again[key].dtype == tensor.dtype and again[key].shape == tensor.shape
        assert torch.equal(again[key].double(), tensor.double())
    assert lora_files.load_lora(path)[1] == {"format": "pt", "concept": "ÿ 猫", "list": json.dumps(["猫"])}


def test_a_hash_names_tensors_and_not_their_order_or_header():
    tensors = adapter.Lora(parts(), rank=2, generator=torch.Generator().manual_seed(0)).tensors()
    name = lora_files.tensors_sha256(tensors)
    assert name == lora_files.tensors_sha256(dict(reversed(tensors.items())))
    key = next(iter(tensors))
    assert name != lora_files.tensors_sha256(tensors | {key: tensors[key] + 1})


def test_the_version_is_the_packages():
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert declared == version.VERSION
    assert headers.model_spec("star")["eraseanything.version"] == declared


def test_a_wheel_has_its_version_from_pip(monkeypatch, tmp_path):
    """It leaves pyproject.toml out."""
    monkeypatch.setattr(version, "__file__", str(tmp_path / "eraseanything_core" / "version.py"))
    monkeypatch.setattr(version.metadata, "version", {"eraseanything": "7.8.9"}.__getitem__)
    assert version.read_version() == "7.8.9"


NAMELESS = ("", "  ", "..", ".hidden", "a/b", "a\\b", "c:d", "a\nb", ".safetensors")
DEVICES = ("CON", "nul", "Com1", "lpt9.safetensors", "COM²", "aux.txt", "prn .x", "conin$")
DEEP = "a/" * 2000 + "b"
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


def test_names_in_subfolders():
    assert files.check_name("people/star", subfolders=True) == "people/star"
    assert files.check_name("a\\b/star.safetensors", subfolders=True) == "a/b/star", "as Windows lists it"
    assert files.check_name("star", subfolders=True) == "star"
    for name in (
        "/star",
        "people/",
        "a//b",
        "../star",
        "a/../b",
        "a/.b",
        "CON/star",
        "a:b/star",
        "x" * 240 + "/a",
        DEEP,
    ):
        with pytest.raises(ValueError, match="output name") as caught:
            files.check_name(name, subfolders=True)
        assert "\n" not in str(caught.value)


def test_a_free_path_is_free_in_its_own_folder(tmp_path):
    assert files.free_path(tmp_path, "people/star") == tmp_path / "people" / "star.safetensors"
    (tmp_path / "star.safetensors").touch()
    assert files.free_path(tmp_path, "people/star").name == "star.safetensors"
    (tmp_path / "people" / "Star.SAFETENSORS").touch()
    assert files.free_path(tmp_path, "people/star") == tmp_path / "people" / "star_2.safetensors"
    assert files.free_path(tmp_path, "star").name == "star_2.safetensors"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write into"):
        files.free_path(tmp_path, "file/star")


def test_a_disk_without_room_is_found_out_before(tmp_path):
    files.check_room(tmp_path, 1)
    with pytest.raises(ValueError, match="has room for .* GB and the file needs 1000000000.0: make room"):
        files.check_room(tmp_path, 10**18)


@pytest.mark.parametrize(
    "name", ("x" * 240, "猫" * 70, "x" * 1_000_000, "\ud800"), ids=("long", "wide", "huge", "half")
)
def test_names_that_no_disk_takes(name):
    """Before any work: a temporary name is longer than the name itself, and a file system counts bytes."""
    with pytest.raises(ValueError, match="output name") as error:
        files.check_name(name)
    message = str(error.value)
    assert len(message.encode()) < 300 and "\n" not in message


def test_the_longest_name_is_written(tmp_path):
    longest = "x" * files.MAX_NAME_BYTES
    path = files.writable_path(tmp_path, longest)
    assert not list(tmp_path.iterdir()), "the proof leaves nothing behind"
    files.write_atomic(path, b"")
    for taken in ({longest}, {longest.upper()}, {"猫" * 66}):
        (name,) = taken
        numbered = files.free_name(name.lower(), taken)
        assert numbered.endswith("_2") and files.check_name(numbered) == numbered
        files.write_atomic(files.writable_path(tmp_path, numbered), b"")


def test_a_disk_with_shorter_names_is_found_out(tmp_path, monkeypatch):
    """eCryptfs takes 143 bytes."""
    original = Path.touch

    def touch(path, *args, **kwargs):
        if len(path.name) > 143:
            raise OSError(36, "File name too long")
        original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "touch", touch)
    files.writable_path(tmp_path, "x" * 100)
    with pytest.raises(ValueError, match="cannot write 'xxx.* into .*: File name too long"):
        files.writable_path(tmp_path, "x" * 140)


NOT_LORAS = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "pointer of Git LFS"),
    "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "zip": (b"PK\x03\x04archive/data.pkl", r"\.pt file under another name, which is never opened"),
    "pickle": (b"\x80\x02cposix\nsystem\n", r"\.pt file under another name, which is never opened"),
    "empty": (b"", "damaged"),
    "cut": (b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "damaged"),
}


@pytest.mark.parametrize("kind", NOT_LORAS)
def test_a_file_that_is_no_lora_is_named(tmp_path, kind):
    content, words = NOT_LORAS[kind]
    path = tmp_path / "star.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^star.safetensors is .*{words}") as error:
        lora_files.read_lora(path)
    assert "\n" not in str(error.value)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """The tests may run as a user who may read everything, so the system's answers are made up."""
    path = tmp_path / "star.safetensors"
    path.write_bytes(b"")
    monkeypatch.setattr(lora_files.os, "access", lambda path, mode: False)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lora_files, "safe_open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match="^star.safetensors may not be read: give ComfyUI the permission"):
        lora_files.read_lora(path)


def test_a_folder_or_nothing_is_no_lora(tmp_path):
    for path in (tmp_path, tmp_path / "gone.safetensors"):
        with pytest.raises(ValueError, match=f"^{path.name} is no file"):
            lora_files.read_lora(path)
