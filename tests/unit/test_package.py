"""The registry's package: what is in it, what it says of itself, and that nothing in it points at what is not."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
MOST_BYTES = 15 * 10**6
REPOSITORY = "https://github.com/OWNER/ComfyUI-EraseAnything/"
RAW = "https://raw.githubusercontent.com/OWNER/ComfyUI-EraseAnything/main/"

# What the registry's specification and comfy-cli 1.23.0 take. comfy-cli warns of most mistakes only, and then sends
# an empty value.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_.][A-Za-z0-9]+)*")
VERSION = re.compile(r"\d+\.\d+\.\d+")
VERSION_BOUND = re.compile(r"([=!~<>]=|<>|[<>=])?\s*\d+\.\d+\.\d+(-[a-zA-Z0-9]+)?")  # commas lie between several
SYSTEMS = ("OS Independent", "Microsoft", "POSIX", "MacOS")
ACCELERATORS = {
    "GPU :: NVIDIA CUDA",
    "GPU :: AMD ROCm",
    "GPU :: Intel Arc",
    "NPU :: Huawei Ascend",
    "GPU :: Apple Metal",
}
PICTURES = (".svg", ".png", ".jpg", ".gif")
LARGEST_ICON = 400  # pixels
SCANNED = "S102,S307,E702"  # exec, eval and two statements in a line
# ComfyUI serves all folders of these names at one address, and the first one that exists hides the others.
TEMPLATE_FOLDERS = ("example_workflows", "example", "examples", "workflow", "workflows")


def git_files(*options: str) -> set[str]:
    """Files that git lists, new ones that are not ignored included."""
    command = ["git", "ls-files", "-z", *options]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in output.split("\0") if name and (ROOT / name).is_file()}


def shipped_files() -> list[str]:
    """What comfy-cli packs once new files are committed: git's files without those of .comfyignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository: what is shipped cannot be told")
    every = git_files("--cached", "--others", "--exclude-standard")
    ignored = git_files("--cached", "--others", "--ignored", "--exclude-from=.comfyignore")
    return sorted(every - ignored)


@pytest.fixture(scope="module")
def shipped() -> list[str]:
    return shipped_files()


@pytest.fixture(scope="module")
def package(shipped, tmp_path_factory) -> Path:
    """The package, unpacked."""
    folder = tmp_path_factory.mktemp("package") / "eraseanything"
    for name in shipped:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return folder


def setting(name: str) -> str:
    """A string of pyproject.toml; Python 3.10 reads no TOML."""
    return re.search(rf'^{name} = "(.+)"$', PROJECT, re.MULTILINE)[1]


def strings(name: str) -> list[str]:
    """A list of strings of pyproject.toml."""
    return ast.literal_eval(re.search(rf"^{name} = (\[.*?\])", PROJECT, re.MULTILINE | re.DOTALL)[1])


def test_it_is_small(shipped):
    sizes = {name: (ROOT / name).stat().st_size for name in shipped}
    largest = sorted(sizes, key=sizes.get, reverse=True)[:5]
    assert sum(sizes.values()) <= MOST_BYTES, {name: sizes[name] for name in largest}


def test_the_laboratory_is_not_in_it(shipped):
    tops = {name.partition("/")[0] for name in shipped}
    assert not tops & {"lab", "scripts", "tests", "benchmarks", "demo", ".ci", ".github"}
    needed = {"__init__.py", "nodes", "eraseanything_core", "web", "workflows", "subgraphs", "README.md", "LICENSE"}
    assert needed <= tops
    assert "web/js/texts.js" in shipped
    assert not [name for name in shipped if "tinyflux" in name.lower()]


def test_its_project_file_names_nothing_of_the_laboratory():
    """Packages and entry points; ruff's settings are for the whole repository."""
    assert "entry-points" not in PROJECT
    assert strings("include") == ["eraseanything_core*"]


def test_comfy_cli_packs_every_file_of_it(shipped):
    """It takes names as git prints them, so one that git puts in quotes is lost. `includes` would add ignored files."""
    assert not [name for name in shipped if not re.fullmatch(r"[ -~]+", name) or "\\" in name or '"' in name]
    assert not re.search(r"^includes\b", PROJECT, re.MULTILINE)


def test_every_room_of_the_laboratory_is_installed():
    laboratory = (ROOT / "lab" / "pyproject.toml").read_text(encoding="utf-8")
    listed = ast.literal_eval(re.search(r"^packages = (\[.*?\])", laboratory, re.MULTILINE | re.DOTALL)[1])
    rooms = [path.parent for path in (ROOT / "lab").rglob("__init__.py")]
    assert sorted(listed) == sorted(".".join(room.relative_to(ROOT).parts) for room in rooms)
    assert setting("version") not in laboratory, "the version stands in one place"


def test_name_version_and_licence_are_the_registrys():
    name = setting("name")
    assert NAME.fullmatch(name) and len(name) < 100 and "comfyui" not in name.lower()
    assert VERSION.fullmatch(setting("version"))
    assert all(VERSION_BOUND.fullmatch(bound.strip()) for bound in setting("requires-comfyui").split(","))
    assert setting("license") == "Apache-2.0"
    assert strings("license-files") == ["LICENSE"] and "Apache License" in (ROOT / "LICENSE").read_text("utf-8")


def test_what_the_registry_requires_or_shows_is_there():
    assert setting("description") and setting("DisplayName") and setting("PublisherId")
    assert setting("Repository") + "/" == REPOSITORY


def test_classifiers_are_the_registrys():
    classifiers = strings("classifiers")
    systems = [c.removeprefix("Operating System :: ") for c in classifiers if c.startswith("Operating System")]
    accelerators = [c.removeprefix("Environment :: ") for c in classifiers if c.startswith("Environment")]
    assert systems and all(system.startswith(SYSTEMS) for system in systems)
    assert accelerators and set(accelerators) <= ACCELERATORS
    assert len(systems) + len(accelerators) == len(classifiers)


@pytest.mark.parametrize("name, ratio", [("Icon", 1), ("Banner", 21 / 9)])
def test_icon_and_banner_are_there(name, ratio):
    url = setting(name)
    assert url.startswith(RAW) and url.endswith(PICTURES)
    width, height = Image.open(ROOT / url.removeprefix(RAW)).size
    assert abs(width / height - ratio) < 0.01 and (name == "Banner" or width <= LARGEST_ICON)


def test_comfy_clis_scan_finds_nothing():
    """It scans the whole repository. Here no setting of the project and no comment can hide a finding."""
    command = ["ruff", "check", ".", "--isolated", "--ignore-noqa", "--no-cache", "--select", SCANNED]
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_nothing_in_it_starts_a_program(shipped):
    """The registry allows no installing of packages at run time."""
    starts = re.compile(r"\bsubprocess\b|\bos\.(system|popen|exec|spawn)|\bimport pip\b")
    for name in (name for name in shipped if name.endswith(".py")):
        assert not starts.search((ROOT / name).read_text(encoding="utf-8")), name


def links(text: str) -> list[str]:
    """Targets of Markdown links and pictures, without code blocks and anchors."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r'(?:href|src)="([^"]+)"', text)
    return [target.partition("#")[0] for target in targets if not target.startswith("#")]


def test_links_lead_to_what_is_shipped_or_to_the_repository(shipped):
    missing = []
    for name in (name for name in shipped if name.endswith(".md")):
        for target in links((ROOT / name).read_text(encoding="utf-8")):
            if target.startswith(REPOSITORY):
                path = re.sub(r"^(blob|tree|raw)/main/", "", target.removeprefix(REPOSITORY))
                there = "/" not in path or (ROOT / path).exists()  # a page of GitHub, or a file
            elif re.match(r"[a-z]+:", target):
                there = True
            else:
                path = (ROOT / name).parent / target
                there = path.resolve().is_relative_to(ROOT) and path.resolve().relative_to(ROOT).as_posix() in shipped
            if not there:
                missing.append(f"{name}: {target}")
    assert not missing


def test_templates_use_nodes_that_are_shipped_and_lie_in_one_folder(shipped):
    """In any other of these folders they would be hidden: ComfyUI serves only the first that exists."""
    folders = {name.partition("/")[0] for name in git_files("--cached", "--others", "--exclude-standard")}
    assert folders & set(TEMPLATE_FOLDERS) == {"workflows"}
    pages = {Path(name).stem for name in shipped if name.startswith("web/docs/")}
    templates = [name for name in shipped if name.startswith("workflows/") and name.endswith(".json")]
    assert templates
    for name in templates:
        nodes = {node["type"] for node in json.loads((ROOT / name).read_text(encoding="utf-8"))["nodes"]}
        own = {node for node in nodes if node.startswith("EraseAnything_")}
        assert own <= pages, f"{name} uses {own - pages}"
        assert name.replace(".json", ".jpg") in shipped, "no thumbnail"


def test_blueprints_lie_where_comfyui_looks_and_use_nodes_that_are_shipped(shipped):
    """It takes files right in the folder. The page knows a blueprint by the name of its file."""
    pages = {Path(name).stem for name in shipped if name.startswith("web/docs/")}
    blueprints = [name for name in shipped if name.startswith("subgraphs/")]
    assert blueprints and all(re.fullmatch(r"subgraphs/[^/]+\.json", name) for name in blueprints)
    for name in blueprints:
        file = json.loads((ROOT / name).read_text(encoding="utf-8"))
        (outer,) = file["nodes"]
        (subgraph,) = file["definitions"]["subgraphs"]
        assert outer["type"] == subgraph["id"] and subgraph["name"] == Path(name).stem
        own = {node["type"] for node in subgraph["nodes"] if node["type"].startswith("EraseAnything_")}
        assert own and own <= pages, f"{name} uses {own - pages}"


def test_its_core_works_without_what_is_left_out(package):
    """Imports every module of the shipped core that needs no ComfyUI, from the package alone."""
    core = package / "eraseanything_core"
    modules = []
    for path in sorted(core.rglob("*.py")):
        if "comfy_bridge" not in path.parts and path.stem != "__init__":
            modules.append(".".join(path.relative_to(package).with_suffix("").parts))
    code = f"import importlib\nfor name in {modules}: importlib.import_module(name)"
    result = subprocess.run([sys.executable, "-c", code], cwd=package, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
