import os
import shutil
from pathlib import Path

import pytest

from scripts.base import prepare_base
from scripts.server import ComfyServer
from tests.browser.canvas import Canvas

ROOT = Path(__file__).resolve().parents[2]
# One for each process of pytest-xdist: their servers must not share folders.
BASE = ROOT / ".cache" / ("browser-base-" + os.environ.get("PYTEST_XDIST_WORKER", "alone"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
# Without a sandbox it runs as root, and without the others it would ask its maker's servers.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser():
    """A Chromium that is installed on this machine; CHROMIUM names another one."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium or Chrome on this machine: install one, or name it with CHROMIUM")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def comfyui(browser, request):
    """A real ComfyUI with the pack; started only where there is a browser to look at it.

    A module can have ARGUMENTS for it. By default there is no cache: the same graph runs in both renderers.
    """
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("needs ComfyUI: run `python scripts/dev.py test`, which sets it up, or set COMFYUI_PATH")
    for folder in ("output", "models/loras"):
        shutil.rmtree(BASE / folder, ignore_errors=True)
    prepare_base(BASE, ROOT)
    arguments = getattr(request.module, "ARGUMENTS", ("--cache-none",))
    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), BASE, BASE / "server.log", arguments=arguments) as server:
        yield server


@pytest.fixture(scope="module", params=["canvas", "Nodes 2.0"])
def canvas(request, browser, comfyui):
    """ComfyUI's page in each of its renderers."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    yield Canvas(context.new_page(), comfyui, vue=request.param == "Nodes 2.0")
    context.close()
