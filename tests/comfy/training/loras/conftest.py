"""Three erasers in a loras folder, and the inputs of the nodes that take them."""

import importlib.util
import sys

import folder_paths
import pytest
import torch

from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.lora.files import save_lora
from tests.comfy.training.loras.cases import CONCEPTS, ROOT, chosen


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
        save_lora(made.tensors(torch.float32), folder / f"{concept}.safetensors", named)
    return chosen(*(f"{concept}.safetensors" for concept in CONCEPTS))


@pytest.fixture
def widgets(patcher, clip, files):
    texts = {"weights": "1", "preserve": "", "concepts": ""}
    numbers = {"rank": 0, "energy": 1.0, "density": 0.5, "seed": 0}
    return {"model": patcher, "clip": clip} | files | numbers | texts
