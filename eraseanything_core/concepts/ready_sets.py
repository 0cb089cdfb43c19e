"""The concept sets that the pack ships, for what people most often want to be rid of."""

import json
from pathlib import Path

FOLDER = Path(__file__).with_name("ready")


def names() -> list[str]:
    """The names of the sets, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def purpose(name: str) -> str:
    """What a set does, in a sentence; see `text` for errors."""
    return str(json.loads(text(name))["source"])


def text(name: str) -> str:
    """The JSON of a set.

    Raises:
        ValueError: there is no set of that name.
    """
    # Looked up by name, so that a name cannot lead out of the folder.
    if name not in names():
        raise ValueError(f"the pack has no ready set of that name; there are {', '.join(names())}")
    return (FOLDER / f"{name}.json").read_text(encoding="utf-8")
