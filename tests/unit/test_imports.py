"""Who may import whom: nodes -> bridge and core -> torch, and no room of the core one above it."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "eraseanything_core"
BRIDGE = "comfy_bridge"
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
# The rooms of the core from the bottom up. One may import its own files and those of lower layers.
LAYERS = (
    {"quoting"},
    {"protocols", "files", "intervals", "packages", "sampling", "transfers", "version"},
    {"concepts", "lora", "attention"},
    {"training"},
    {"erasers"},
    {"evaluation"},
    {"tinyflux"},
    {"fleet"},
)
# Within the second layer, where attention and lora read where a concept stands.
SIDEWAYS = {"attention": {"concepts"}, "lora": {"concepts"}}
BRIDGE_MAY = {
    *("protocols", "files", "packages", "quoting", "sampling", "transfers", "version"),
    *("concepts", "lora", "attention"),
}

core_files = sorted(CORE.rglob("*.py"))
node_files = sorted((ROOT / "nodes").rglob("*.py"))
pack_files = [ROOT / "__init__.py", *node_files, *core_files]
lab_files = sorted((ROOT / "lab").rglob("*.py"))


@cache
def nodes_of(source: str) -> list[ast.AST]:
    """Every syntax node of a source, parsed once for all tests."""
    return list(ast.walk(ast.parse(source)))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(path: Path) -> str:
    """The module of a file, such as eraseanything_core.lora.keys; a package's is the folder's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in core_files}


def absolute_imports(source: str) -> set[str]:
    """What a module imports absolutely, wherever in the file; of `from a import b` both a and a.b."""
    modules = set()
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def packages(source: str) -> set[str]:
    """The top-level packages of them."""
    return {module.partition(".")[0] for module in absolute_imports(source)}


def relative_imports(path: Path, source: str | None = None) -> set[str]:
    """The modules of the core that a file imports relatively, wherever in it."""
    source = path.read_text(encoding="utf-8") if source is None else source
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    modules = set()
    for node in nodes_of(source):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            for alias in node.names:
                # `from .lora import keys` names a module, `from .keys import read` something in one.
                full = f"{base}.{alias.name}"
                modules.add(full if full in MODULES else base)
    return modules


def room(module: str) -> str:
    """concepts of eraseanything_core.concepts.matching, files of eraseanything_core.files."""
    return module.split(".")[1] if "." in module else ""


def allowed(own: str) -> set[str]:
    """The rooms that a room may import."""
    if own == BRIDGE:
        return BRIDGE_MAY | {BRIDGE}
    level = next(i for i, layer in enumerate(LAYERS) if own in layer)
    return {own}.union(*LAYERS[:level]) | SIDEWAYS.get(own, set())


@pytest.mark.parametrize(
    "path", [path for path in core_files if path.parent != CORE or path.stem != "__init__"], ids=name
)
def test_a_room_of_the_core_imports_nothing_above_it(path):
    own = room(dotted(path))
    above = {module for module in relative_imports(path) if room(module) not in allowed(own)}
    assert not above, f"{own} is below"


def test_every_room_has_a_layer():
    rooms = {room(module) for module in MODULES} - {""}
    assert rooms == set().union(*LAYERS, {BRIDGE})


def test_no_two_modules_of_the_core_import_each_other():
    graph = {module: relative_imports(path) - {module} for module, path in MODULES.items()}
    remaining = dict(graph)
    while remaining:
        free = [module for module, imported in remaining.items() if not imported & set(remaining)]
        assert free, f"these import each other: {sorted(remaining)}"
        remaining = {module: imported for module, imported in remaining.items() if module not in free}


@pytest.mark.parametrize("path", [path for path in core_files if CORE / BRIDGE not in path.parents], ids=name)
def test_only_the_bridge_of_the_core_imports_comfyui(path):
    assert not packages(path.read_text(encoding="utf-8")) & COMFYUI


@pytest.mark.parametrize("path", node_files, ids=name)
def test_nodes_leave_comfyuis_models_to_the_bridge(path):
    imported = absolute_imports(path.read_text(encoding="utf-8"))
    assert not {module for module in imported if f"{module}.".startswith("comfy.ldm.")}


@pytest.mark.parametrize("path", [p for p in (ROOT / "nodes").glob("*.py") if p.stem != "__init__"], ids=name)
def test_nodes_import_shared_and_core_and_no_other_node_module(path):
    for node in nodes_of(path.read_text(encoding="utf-8")):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            assert (node.module or "").partition(".")[0] == "shared", f"line {node.lineno}"


@pytest.mark.parametrize("path", pack_files, ids=name)
def test_the_pack_imports_itself_relatively_and_never_the_laboratory(path):
    own = {"eraseanything_core", "lab", "scripts", "tests"} & packages(path.read_text(encoding="utf-8"))
    assert not own, "ComfyUI imports the pack under a name of its own"


@pytest.mark.parametrize("path", lab_files, ids=name)
def test_the_laboratory_imports_no_tests(path):
    assert "tests" not in packages(path.read_text(encoding="utf-8"))


def exported(path: Path) -> set[str]:
    """The names that a module's own statements bind, its imports left out."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.If | ast.Try | ast.For | ast.With):
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names


EXPORTS = {module: exported(path) for module, path in MODULES.items()}


@pytest.mark.parametrize("path", [*node_files, *core_files, *lab_files], ids=name)
def test_what_is_imported_comes_from_the_module_that_defines_it(path):
    """Modules hand on nothing of others, so that every name has one place."""
    wrong = []
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in nodes_of(path.read_text(encoding="utf-8")):
        if not isinstance(node, ast.ImportFrom):
            continue
        above = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            if base in EXPORTS and f"{base}.{alias.name}" not in MODULES and alias.name not in EXPORTS[base]:
                wrong.append(f"{base}.{alias.name}")
    assert not wrong


PURE = sorted(module for module in MODULES if room(module) != BRIDGE)
OPTIONAL = ("matplotlib", "peft", "openai", "nltk", "torchmetrics", "torch_fidelity", "nudenet", "bitsandbytes", "ray")
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def run_python(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_core_is_importable_without_comfyui_and_without_optional_packages():
    blocked = sorted({*COMFYUI - {"nodes"}, *OPTIONAL, "transformers"})
    code = f"BLOCKED = {blocked}\n{BLOCKER}\nimport importlib\nfor name in {PURE}: importlib.import_module(name)"
    run_python(code)


def test_importing_the_core_changes_no_setting_of_torch():
    code = f"""
import torch, importlib, random
def state():
    return (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed(),
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
            torch.are_deterministic_algorithms_enabled(), random.getstate(), torch.get_rng_state().tolist())
before = state()
for name in {PURE}: importlib.import_module(name)
assert state() == before
"""
    run_python(code)


def test_the_reader_of_imports_sees_all_forms():
    inside = "def f():\n    from folder_paths import x\n"
    source = f"import comfy.ops as ops\n{inside}from ..lora import keys\n"
    source += "from .losses import esd_loss\nfrom .. import files\n"
    assert packages(source) == {"comfy", "folder_paths"}
    found = relative_imports(CORE / "training" / "trainer.py", source)
    assert found == {
        "eraseanything_core.lora.keys",
        "eraseanything_core.training.losses",
        "eraseanything_core.files",
    }
    assert "comfy.ldm" in absolute_imports("from comfy import ldm") & absolute_imports("def f():\n    import comfy.ldm")
