"""Checks style, formatting and types: `python scripts/dev.py lint`. Nothing is changed.

`.venv/bin/ruff check --fix` and `.venv/bin/ruff format` repair most of what the first two report.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],  # of the packages that pyproject.toml names
}
LINES = 30  # of a check that fails


def run(name: str, arguments: list[str]) -> bool:
    """Runs one check and prints the end of what it says; whether it passed."""
    result = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    lines = (result.stdout + result.stderr).strip().splitlines()
    passed = result.returncode == 0
    print(f"{name}: {'passed' if passed else 'FAILED'}")
    for line in lines[-1:] if passed else lines[-LINES:]:
        print(f"  {line}")
    return passed


def main() -> int:
    """Runs every check, also after one that fails; returns 1 if any did."""
    results = [run(name, arguments) for name, arguments in CHECKS.items()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
