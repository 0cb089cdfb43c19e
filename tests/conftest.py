"""Options of the whole suite, and what happens to tests/comfy where there is no ComfyUI."""

import os
from pathlib import Path

import pytest

NEED_COMFYUI = Path(__file__).resolve().parent / "comfy"
REASON = "needs ComfyUI: run `python scripts/dev.py test`, which sets it up, or set COMFYUI_PATH"

# Several processes share the cores: set before torch is imported, for the processes that tests start as well.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/comfy/nodes.golden.json anew from the server",
    )


class NeedsComfyUI(pytest.File):
    """A test file that is reported as skipped, and not imported: what it imports is not there."""

    def collect(self):
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    # A file at a time, and not the folder at once: so naming a file or a folder inside it skips as well.
    if "COMFYUI_PATH" not in os.environ and NEED_COMFYUI in module_path.parents:
        return NeedsComfyUI.from_parent(parent, path=module_path)
    return None
