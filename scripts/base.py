"""ComfyUI's base directory for demo and tests: models, output, user files, and the pack as a custom node."""

import os
import shutil
import subprocess
from pathlib import Path

FOLDERS = (
    "models/diffusion_models",
    "models/vae",
    "models/text_encoders",
    "models/loras",
    "custom_nodes",
    "input",
    "output",
    "temp",
    "user",
)

PACK = "eraseanything"
WEIGHTS = {
    "tinyflux.safetensors": "diffusion_models",
    "tinyflux_vae.safetensors": "vae",
    "tinyflux_text.safetensors": "text_encoders",
}
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".cache", "__pycache__", ".pytest_cache", ".ruff_cache")


def prepare_base(base: Path, root: Path) -> Path:
    """Makes the base directory, with the pack and TinyFlux's weights where ComfyUI looks for them."""
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    link_pack(root, base / "custom_nodes" / PACK)
    for name, folder in WEIGHTS.items():
        source = root / "eraseanything_core" / "tinyflux" / "weights" / name
        if source.exists():
            refresh(source, base / "models" / folder / name)
    return base


def refresh(source: Path, target: Path) -> None:
    """Copies a file unless size and time say that it is the same."""
    if target.exists():
        old = target.stat()
        new = source.stat()
        if (old.st_size, old.st_mtime) == (new.st_size, new.st_mtime):
            return
    shutil.copy2(source, target)


def link_pack(root: Path, link: Path) -> None:
    """Links the repository into custom_nodes: a symlink, on Windows a junction, or else a fresh copy."""
    if link.exists() and link.samefile(root):
        return
    remove(link)
    if os.name == "nt":
        # A symlink needs special rights on Windows; a junction does not.
        command = ["cmd", "/c", "mklink", "/J", str(link), str(root)]
        if subprocess.run(command, capture_output=True).returncode:
            shutil.copytree(root, link, ignore=NOT_COPIED)
    else:
        link.symlink_to(root, target_is_directory=True)


def remove(link: Path) -> None:
    """Removes a link without what it points to, or a copy of an earlier call."""
    if not os.path.lexists(link):
        return
    try:
        link.unlink()  # a symlink or a junction
    except OSError:
        shutil.rmtree(link)
