"""Names and folders of what is written, checked before the work and not after it."""

import os
import tempfile
import time
import unicodedata
from itertools import chain, count
from pathlib import Path

FORBIDDEN = set('/\\:*?"<>|')
# Of Windows, with any ending: Microsoft, "Naming Files, Paths, and Namespaces".
DEVICES = {*"CON PRN AUX NUL CONIN$ CONOUT$".split(), *(f"{d}{n}" for d in ("COM", "LPT") for n in "0123456789¹²³")}


def check_name(name: str, ending: str = ".safetensors") -> str:
    """A plain file name without its ending.

    Raises:
        ValueError: empty, hidden, or a path, a character, an end or a device's name that some system refuses.
    """
    stem = name.strip().removesuffix(ending)
    bad = sorted(c for c in set(stem) if c in FORBIDDEN or ord(c) < 32)
    if bad:
        raise ValueError(f"the output name {name!r} holds {' '.join(map(repr, bad))}: type a plain file name")
    if not stem or stem.startswith("."):
        raise ValueError(f"the output name {name!r} is no file name")
    if stem.endswith((".", " ")):
        raise ValueError(f"the output name {name!r} ends in a dot or a blank, which Windows drops: leave it off")
    if stem.partition(".")[0].rstrip().upper() in DEVICES:
        raise ValueError(f"the output name {name!r} is a device's on Windows: take another")
    return stem


def writable(folder: Path, name: str, ending: str = ".safetensors") -> Path:
    """The path of a file in a folder that exists and takes files.

    Raises:
        ValueError: the name is no plain file name, or the folder cannot be written to.
    """
    path = folder / f"{check_name(name, ending)}{ending}"
    check_folder(folder)
    return path


def check_folder(folder: Path):
    """Makes a folder if there is none; raises ValueError when it does not take files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"cannot write into {folder}: {error.strerror}") from error


def replace(path: Path, *content: bytes | memoryview) -> Path:
    """Writes a file under a temporary name and renames it, so that it is whole or not there.

    Args:
        path: where to.
        content: its parts in order.

    Raises:
        OSError: the folder cannot be written to.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        _renamed(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _renamed(part: Path, path: Path):
    """Tries again for a second: Windows refuses while a virus scanner or an indexer has the old file open."""
    for wait in (0.05, 0.2, 0.8):
        try:
            part.replace(path)
            return
        except PermissionError:
            time.sleep(wait)
    part.replace(path)


def numbered(name: str, taken: set[str]) -> str:
    """`name`, or the first of `name_2`, `name_3` and so on that is not taken: nothing is overwritten.

    Windows and macOS take names for the same that differ in case or in how accents are encoded.
    """
    same, names = {_folded(n) for n in taken}, chain([name], (f"{name}_{i}" for i in count(2)))
    return next(n for n in names if _folded(n) not in same)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
