"""The pack's version, which stands in `pyproject.toml` and nowhere else."""

import re
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "eraseanything"  # its name in pyproject.toml


def read_version() -> str:
    """The version of the pack, from the file beside it, or from what pip has installed.

    ComfyUI's packs are folders that nobody installs, so the file is what counts. A wheel leaves it out.
    """
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if not project.is_file():
        return metadata.version(DISTRIBUTION)
    # No TOML parser: the standard library has one from Python 3.11 on.
    declared = re.search(r'^version = "(.+)"$', project.read_text(encoding="utf-8"), re.MULTILINE)
    if declared is None:
        raise ValueError(f"{project} declares no version: install the pack again")
    return declared[1]


VERSION = read_version()
