"""The environment that demo and tests run in: an interpreter, ComfyUI, and a base directory."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from scripts.base import prepare_base
from scripts.comfyui import fetch_comfyui
from scripts.existing import use_existing
from scripts.steps import StepFailed, Steps, content_hash, pip_install, python_in

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CACHE = ROOT / ".cache"
LOG = CACHE / "setup.log"

TORCH = ["torch==2.14.1", "torchvision==0.29.1"]
# The newest torchaudio names an older torch. ComfyUI needs it to start: it comes without that.
TORCHAUDIO = "torchaudio==2.11.0"
WHEELS = (
    "It comes for Linux (x86_64, aarch64), Windows (x64) and macOS 14 or newer on Apple silicon; "
    "elsewhere name an existing ComfyUI with COMFYUI_PATH."
)

ONLINE = "Check the network connection and run the same command again; what is done already is kept."


@dataclass
class Environment:
    """Where things are: the interpreter, ComfyUI, and the base directory with models, output and the pack."""

    python: Path
    comfyui: Path
    base: Path

    def variables(self) -> dict[str, str]:
        """The process environment of every command: where ComfyUI is, and its modules behind the repository's."""
        return {
            **os.environ,
            "COMFYUI_PATH": str(self.comfyui),
            "COMFYUI_PYTHON": str(self.python),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(self.comfyui), os.environ.get("PYTHONPATH")])),
            "COMFYUI_BASE": str(self.base),
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",
        }


def prepare(tests: bool) -> Environment:
    """Sets up whatever is missing and returns where it is.

    Args:
        tests: whether the packages of requirements-test.txt are needed too.

    Raises:
        StepFailed: with the step that did not work and what to do.
    """
    requirements = [ROOT / "requirements.txt"]
    if tests:
        requirements.append(ROOT / "requirements-test.txt")
    existing = os.environ.get("COMFYUI_PATH")
    if existing:
        python, comfyui = use_existing(Path(existing), CACHE / "overlay", LOG, requirements)
    else:
        python, comfyui = install(requirements)
    return Environment(python, comfyui, prepare_base(CACHE / "base", ROOT))


def install(requirements: list[Path]) -> tuple[Path, Path]:
    """Creates `.venv` with torch and all requirements; returns its interpreter and ComfyUI."""
    steps = Steps(VENV / "stamps", LOG)
    create_venv(steps, VENV)
    python = python_in(VENV)
    steps.once("torch", [[*pip_install(python), *TORCH]], f"{WHEELS} {ONLINE}")
    torchaudio = [*pip_install(python), "--no-deps", TORCHAUDIO]
    steps.once("torchaudio", [torchaudio], f"ComfyUI does not start without torchaudio. {ONLINE}")
    comfyui = fetch_comfyui(steps, python, CACHE, ONLINE)
    required = {"ComfyUI's requirements": comfyui / "requirements.txt"}
    required.update((file.name, file) for file in requirements)
    for name, file in required.items():
        steps.once(name, [[*pip_install(python), "-r", file]], ONLINE, inputs=(file,))
    return python, comfyui


def create_venv(steps: Steps, venv: Path) -> None:
    """Makes the virtual environment anew if it is missing, half made, or of another Python."""
    stamp = content_hash(sys.version, venv.as_posix())
    if steps.done("venv", stamp):
        return
    if venv.exists() and not steps.stamps.exists():
        raise StepFailed(f"setup: venv failed\n  {venv} is not of this script. Move it away and try again.")
    shutil.rmtree(venv, ignore_errors=True)
    steps.stamps.mkdir(parents=True)
    create = [sys.executable, "-m", "venv", venv]
    upgrade = [*pip_install(python_in(venv)), "--upgrade", "pip", "setuptools>=77"]
    advice = f"Python's venv module is needed (Debian: apt install python3-venv). {ONLINE}"
    steps.run("venv", [create, upgrade], advice)
    steps.finish("venv", stamp)
