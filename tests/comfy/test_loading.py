"""ComfyUI loads the pack: it changes nothing on the way, and needs no package that only single nodes use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.comfy.conftest import COMFYUI
from tests.unit.test_package import shipped_files

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = ("matplotlib", "peft", "openai", "nltk", "torchmetrics", "torch_fidelity", "nudenet")

LOAD = """
import importlib.util, json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = ["main.py", "--cpu", "--base-directory", BASE]
sys.path.insert(0, COMFYUI)
import comfy.options
comfy.options.enable_args_parsing()
import asyncio, logging, torch
import comfy.model_management, folder_paths, nodes
from comfy.cli_args import args
import comfy_api.latest, server

def state():
    flags = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed(),
             torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark,
             torch.are_deterministic_algorithms_enabled(), logging.getLogger().level)
    folders = {name: (list(paths), sorted(endings))
               for name, (paths, endings) in folder_paths.folder_names_and_paths.items()}
    return repr(vars(args)), flags, folders, sorted(nodes.NODE_CLASS_MAPPINGS), len(sys.path)

before = state()
spec = importlib.util.spec_from_file_location("the_pack", PACK + "/__init__.py", submodule_search_locations=[PACK])
pack = importlib.util.module_from_spec(spec)
sys.modules["the_pack"] = pack
spec.loader.exec_module(pack)
assert state() == before, "the import changes something"

async def load():
    extension = await pack.comfy_entrypoint()
    await extension.on_load()
    return [node.GET_SCHEMA().node_id for node in await extension.get_node_list()]

ids = asyncio.run(load())
assert "erase_judges" in folder_paths.folder_names_and_paths
print("NODES", json.dumps(ids))
"""


def load(pack: Path, base: Path, blocked: tuple[str, ...] = ()) -> list[str]:
    """The ids of the nodes that a fresh process gets from a pack."""
    values = {"PACK": str(pack), "BASE": str(base), "COMFYUI": str(COMFYUI), "BLOCKED": blocked}
    code = "\n".join(f"{name} = {value!r}" for name, value in values.items()) + LOAD
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=base)
    assert result.returncode == 0, result.stderr[-3000:]
    line = next(line for line in result.stdout.splitlines() if line.startswith("NODES "))
    return [node.strip('" ') for node in line.removeprefix("NODES ").strip("[]").split(",")]


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The registry's package, unpacked."""
    folder = tmp_path_factory.mktemp("package") / "eraseanything"
    for name in shipped_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return folder


def test_the_pack_loads_without_optional_packages_and_changes_nothing(tmp_path, pack):
    assert set(load(ROOT, tmp_path, OPTIONAL)) == set(pack)


def test_the_registrys_package_loads_with_a_help_page_for_each_node(tmp_path, pack, package):
    """Without the small models, whose loader and judges it does not offer."""
    nodes = load(package, tmp_path, OPTIONAL)
    assert set(nodes) == set(pack) - {"EraseAnything_TinyFlux"}
    pages = {page.stem for page in (package / "web" / "docs").glob("*.md")}
    assert pages == set(nodes)
