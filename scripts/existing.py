"""A ComfyUI that is installed already, named by COMFYUI_PATH. Nothing is written into it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.comfyui import VERSION, at_least, version_of
from scripts.steps import StepFailed, Steps, content_hash, pip_install, python_in


def use_existing(comfyui: Path, overlay: Path, log: Path, requirements: list[Path]) -> tuple[Path, Path]:
    """Takes ComfyUI from a folder, and an interpreter that sees its packages and the required ones.

    Args:
        comfyui: the folder with main.py.
        overlay: where a virtual environment over the existing interpreter may be made.
        log: takes the output of the commands.
        requirements: requirement files to install into the overlay.

    Returns:
        The interpreter and the resolved folder of ComfyUI.
    """
    comfyui = comfyui.expanduser().resolve()
    version = version_of(comfyui)
    if version is None:
        raise StepFailed(f"COMFYUI_PATH={comfyui} holds no main.py and comfyui_version.py of ComfyUI.")
    if not at_least(version, VERSION):
        raise StepFailed(f"COMFYUI_PATH={comfyui} is ComfyUI {version}; this pack needs {VERSION} or later.")
    python = find_python(comfyui)
    refuse_embedded(python)
    print(f"setup: ComfyUI {version} in {comfyui}, run by {python}", flush=True)
    if any(requirement_lines(file) for file in requirements):
        python = make_overlay(python, overlay, log, requirements)
    return python, comfyui


def requirement_lines(file: Path) -> list[str]:
    """The lines of a requirements file that name a package."""
    lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
    return [line for line in lines if line]


def find_python(comfyui: Path) -> Path:
    """The interpreter of an installation: COMFYUI_PYTHON, one in or beside it, or this one."""
    override = os.environ.get("COMFYUI_PYTHON")
    if override and not Path(override).is_file():
        raise StepFailed(f"COMFYUI_PYTHON={override} is not a file.")
    if override:
        return Path(override)
    for folder in (comfyui, comfyui.parent):
        portable = folder / "python_embeded" / "python.exe"
        for candidate in (python_in(folder / ".venv"), python_in(folder / "venv"), portable):
            if candidate.is_file():
                return candidate
    return Path(sys.executable)


def refuse_embedded(python: Path) -> None:
    """Windows' embeddable Python, as in ComfyUI's portable package, has no venv, and its ._pth ignores PYTHONPATH.

    Raises:
        StepFailed: it is one.
    """
    if any(python.parent.glob("python*._pth")):
        raise StepFailed(
            f"{python} is an embedded Python: it makes no virtual environments and does not heed PYTHONPATH.\n"
            "  Unset COMFYUI_PATH, and ComfyUI is installed in here beside it; or name with COMFYUI_PYTHON another\n"
            "  Python that has the packages of ComfyUI's requirements.txt."
        )


def make_overlay(python: Path, overlay: Path, log: Path, requirements: list[Path]) -> Path:
    """A virtual environment of the same interpreter that also sees its packages; returns its interpreter."""
    steps = Steps(overlay / "stamps", log)
    stamp = content_hash(python.as_posix())
    advice = "An interpreter with the modules venv and pip is needed; COMFYUI_PYTHON can name another."
    if not steps.done("overlay", stamp):
        shutil.rmtree(overlay, ignore_errors=True)
        steps.run("an environment over the existing one", [[python, "-m", "venv", overlay]], advice)
        link_packages(site_packages(python), site_packages(python_in(overlay))[-1])
        steps.finish("overlay", stamp)
    for file in requirements:
        command = [*pip_install(python_in(overlay)), "-r", file]
        steps.once(file.name, [command], "Check the network connection and try again.", inputs=(file,))
    return python_in(overlay)


def site_packages(python: Path) -> list[str]:
    """The folders that an interpreter has its packages in."""
    show = "import json, site; print(json.dumps(site.getsitepackages()))"
    return json.loads(subprocess.run([str(python), "-c", show], capture_output=True, check=True).stdout)


def link_packages(folders: list[str], into: str) -> None:
    """Writes a path file: a virtual environment does not see the packages of one that it was made from."""
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in folders]
    Path(into, "existing.pth").write_text("".join(lines))
