"""Tests with the real ComfyUI, in process and over HTTP; `python scripts/dev.py test` sets it up."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.base import prepare_base
from scripts.server import ComfyServer

ROOT = Path(__file__).resolve().parents[2]
# One for each process of pytest-xdist: their servers must not share folders.
BASE = ROOT / ".cache" / ("test-base-" + os.environ.get("PYTEST_XDIST_WORKER", "alone"))


def prepare(comfyui: Path) -> None:
    """A fresh base directory, and ComfyUI on the path, set to the CPU before its other modules are imported."""
    for folder in ("output", "models/loras"):
        shutil.rmtree(BASE / folder, ignore_errors=True)
    prepare_base(BASE, ROOT)
    # In front: ComfyUI has a module `nodes` and the pack a folder of that name.
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = str(BASE)


# Without it the test files here are skipped, see tests/conftest.py.
COMFYUI = Path(os.environ.get("COMFYUI_PATH", ""))
if "COMFYUI_PATH" in os.environ:
    prepare(COMFYUI)


@pytest.fixture(scope="session")
def server():
    """One real ComfyUI with the pack, for all tests over HTTP."""
    with ComfyServer(COMFYUI, BASE, BASE / "server.log") as running:
        yield running


@pytest.fixture(scope="session")
def pack_nodes(server):
    """What /object_info says about the nodes of the pack."""
    info = server.object_info()
    return {name: node for name, node in info.items() if node["python_module"] == "custom_nodes.eraseanything"}


@pytest.fixture(scope="session")
def pack():
    """The pack as ComfyUI imports it: under a name of its own, by relative imports."""
    spec = importlib.util.spec_from_file_location(
        "pack_under_test", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack_under_test"] = module
    spec.loader.exec_module(module)
    return {node.GET_SCHEMA().node_id: node for node in module.NODES}


@pytest.fixture(scope="session")
def core(pack):
    """The pack's modules that AttentionErase is made of."""
    from pack_under_test.eraseanything_core.attention import hooks
    from pack_under_test.eraseanything_core.attention.blocks import Blocks
    from pack_under_test.eraseanything_core.attention.erase import MapErasure
    from pack_under_test.eraseanything_core.attention.located_prompt import LocatedPrompt, locate_concepts
    from pack_under_test.eraseanything_core.comfy_bridge.context_pieces import context_pieces
    from pack_under_test.eraseanything_core.comfy_bridge.families import layout
    from pack_under_test.eraseanything_core.comfy_bridge.sampler_hooks import with_hook

    return SimpleNamespace(
        layout=layout,
        context_pieces=context_pieces,
        hooks=hooks,
        LocatedPrompt=LocatedPrompt,
        locate_concepts=locate_concepts,
        Blocks=Blocks,
        MapErasure=MapErasure,
        with_hook=with_hook,
    )
