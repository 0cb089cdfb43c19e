"""The one import rule: nodes -> eraseanything_core -> torch, and only the bridge knows ComfyUI."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "eraseanything_core"
BRIDGE = CORE / "comfy_bridge"
COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "nodes",
    "server",
}
PURE = {"files", "losses", "attention", "tokens", "prompts", "sampling", "lora", "compose"}

core_files = sorted(CORE.rglob("*.py"))
pack_files = [ROOT / "__init__.py", *sorted((ROOT / "nodes").glob("*.py")), *core_files]


def modules(source: str) -> set[str]:
    """What a module imports absolutely, wherever in the file; of `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def absolute_imports(source: str) -> set[str]:
    """The top-level packages of them."""
    return {module.partition(".")[0] for module in modules(source)}


def sibling_imports(source: str) -> set[str]:
    """The modules of the same folder that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module.partition(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [path for path in core_files if BRIDGE not in path.parents], ids=name)
def test_only_the_bridge_of_the_core_imports_comfyui(path):
    assert not absolute_imports(path.read_text(encoding="utf-8")) & COMFYUI


@pytest.mark.parametrize("path", sorted((ROOT / "nodes").glob("*.py")), ids=name)
def test_nodes_leave_comfyuis_models_to_the_bridge(path):
    assert not {m for m in modules(path.read_text(encoding="utf-8")) if f"{m}.".startswith("comfy.ldm.")}


@pytest.mark.parametrize("path", pack_files, ids=name)
def test_the_pack_imports_itself_relatively(path):
    own = {"eraseanything_core", "scripts", "tests"} & absolute_imports(path.read_text(encoding="utf-8"))
    assert not own, "ComfyUI imports the pack under a name of its own"


def test_pure_modules_import_only_each_other_and_never_in_a_loop():
    graph = {
        path.stem: sibling_imports(path.read_text(encoding="utf-8"))
        for path in core_files
        if path.parent == CORE and path.stem in PURE
    }
    for module, imported in graph.items():
        assert imported <= PURE, f"{module} imports {imported - PURE}"
    remaining = dict(graph)
    while remaining:
        free = [module for module, imported in remaining.items() if not imported & set(remaining)]
        assert free, f"these import each other: {sorted(remaining)}"
        remaining = {module: imported for module, imported in remaining.items() if module not in free}


def test_the_core_is_importable_without_comfyui():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in core_files if path.parent == CORE]
    modules = [module for module in modules if not module.endswith("__init__")]
    check = f"import sys, {', '.join(modules) or 'eraseanything_core'}\nassert 'comfy' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_reader_of_imports_sees_all_forms():
    inside = "def f():\n    from folder_paths import x\n"
    source = f"import comfy.ops as ops\n{inside}from . import lora\nfrom .losses import esd\n"
    assert absolute_imports(source) == {"comfy", "folder_paths"}
    assert sibling_imports(source) == {"lora", "losses"}
    assert "comfy.ldm" in modules("from comfy import ldm") & modules("def f():\n    import comfy.ldm")
