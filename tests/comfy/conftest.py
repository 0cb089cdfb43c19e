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

if "COMFYUI_PATH" not in os.environ:
    pytest.exit("tests/comfy needs ComfyUI: run `python scripts/dev.py test`, or `pytest tests/unit`", returncode=4)
COMFYUI = Path(os.environ["COMFYUI_PATH"])

for folder in ("output", "models/loras"):
    shutil.rmtree(BASE / folder, ignore_errors=True)
prepare_base(BASE, ROOT)

# ComfyUI first: it has a module `nodes` and the pack a folder of that name.
sys.path.insert(0, str(COMFYUI))
from comfy.cli_args import args  # noqa: E402

# Read when the other modules of ComfyUI are imported.
args.cpu = True
args.base_directory = str(BASE)


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
    from pack_under_test.eraseanything_core.attention.columns import Blocks
    from pack_under_test.eraseanything_core.attention.erase import MapErasure
    from pack_under_test.eraseanything_core.comfy_bridge.families import layout
    from pack_under_test.eraseanything_core.comfy_bridge.text import context_pieces
    from pack_under_test.nodes.attention import hooked

    return SimpleNamespace(
        layout=layout,
        context_pieces=context_pieces,
        hooks=hooks,
        Blocks=Blocks,
        MapErasure=MapErasure,
        hooked=hooked,
    )
