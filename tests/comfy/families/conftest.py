"""The folder of LoRAs, as the trainer's tests have it."""

import pytest


@pytest.fixture
def loras(tmp_path, monkeypatch):
    """The folder of LoRAs; runs are in the output folder beside it."""
    import folder_paths

    folder = tmp_path / "loras"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return folder
