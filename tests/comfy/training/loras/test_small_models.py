"""TinyFlux's files are found where nobody has copied them, behind those of the user."""

import asyncio
import importlib

import folder_paths
import pytest

KINDS = {
    "diffusion_models": "tinyflux.safetensors",
    "text_encoders": "tinyflux_text.safetensors",
    "vae": "tinyflux_vae.safetensors",
}


@pytest.fixture
def empty(pack, tmp_path, monkeypatch):
    """Folders of a ComfyUI without any model; the pack is imported by now."""
    for kind in KINDS:
        listed = ([str(tmp_path / kind)], {".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, listed)
    return tmp_path


def load_pack():
    asyncio.run(importlib.import_module("pack_with_loras").EraseAnything().on_load())


def test_the_pack_brings_them_once_it_is_loaded(empty):
    assert not any(folder_paths.get_full_path(kind, name) for kind, name in KINDS.items()), "not at the import"
    load_pack()
    load_pack()
    for kind, name in KINDS.items():
        assert name in folder_paths.get_filename_list(kind) and folder_paths.get_full_path(kind, name)
        assert len(folder_paths.get_folder_paths(kind)) == 2, "once, however often it is loaded"


def test_a_file_of_the_user_comes_first(empty):
    mine = empty / "vae" / "tinyflux_vae.safetensors"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    load_pack()
    assert folder_paths.get_full_path("vae", mine.name) == str(mine)
    assert folder_paths.get_folder_paths("vae")[0] == str(mine.parent), "what other nodes write goes there"


def test_a_package_without_the_weights_registers_nothing(pack, empty, monkeypatch):
    files = importlib.import_module("pack_with_loras.nodes.shared.small_models")
    monkeypatch.setattr(files, "WEIGHTS", empty / "nothing")
    load_pack()
    assert all(len(folder_paths.get_folder_paths(kind)) == 1 for kind in KINDS)
