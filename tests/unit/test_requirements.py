"""ComfyUI-Manager installs requirements.txt, the registry reads pyproject.toml: they must say the same."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_requirements_and_pyproject_list_the_same_packages():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    declared = re.search(r"^dependencies = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert [line for line in lines if line] == ast.literal_eval(declared[1])
