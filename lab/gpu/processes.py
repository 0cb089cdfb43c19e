"""Checks in processes of their own."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab.gpu.card import Card
from lab.gpu.checks import OWN_PROCESS
from lab.gpu.outcome import Outcome
from lab.provenance import ROOT

COMMAND = "import sys; from lab.gpu.__main__ import main; sys.exit(main(sys.argv[1:]))"
# As ComfyUI's start does it: comfy-aimdo loads its library before anything of ComfyUI is imported. Its other modules
# take the library once, as they are imported.
WITH_LIBRARY = "import comfy_aimdo.control; comfy_aimdo.control.init(); "


def code_of(number: int) -> str:
    """What the process of a check runs."""
    return (WITH_LIBRARY if number in OWN_PROCESS else "") + COMMAND


def in_own_process(number: int, card: Card) -> Outcome:
    """The outcome of a check that a process of its own has run; its seconds are those of the process."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "outcome.json"
        device = ["--device", str(card.device)]
        command = [sys.executable, "-c", code_of(number), "--only", str(number), *device, "--found", str(found)]
        code = subprocess.run(command, cwd=ROOT).returncode
        if found.exists():
            outcome = Outcome(**json.loads(found.read_text(encoding="utf-8")))
        else:
            outcome = Outcome(problems=[f"the check ended its process with code {code}"])
    outcome.seconds = time.monotonic() - begun
    return outcome
