"""Names and folders of what is written, checked before the work and not after it, and the one atomic writer."""

import os
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from .quoting import check_text, quoted

FORBIDDEN = set('/\\:*?"<>|')
# Windows opens a device by any of these names, whatever its ending: Microsoft, "Naming Files, Paths, and Namespaces".
CONSOLES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
PORTS = {f"{device}{number}" for device in ("COM", "LPT") for number in "0123456789¹²³"}
# What files begin with that say their encoding. UTF-32 first: its mark begins as that of UTF-16 does.
MARKS = {
    "utf-32": b"\xff\xfe\0\0",
    "utf-32-be": b"\0\0\xfe\xff",
    "utf-16": b"\xff\xfe",
    "utf-16-be": b"\xfe\xff",
    "utf-8": b"\xef\xbb\xbf",
}
RETRY_SECONDS = (0.05, 0.2, 0.8)
# Linux and macOS take 255 bytes a name. The rest is for the ending and for what a temporary name has around it.
MAX_NAME_BYTES = 200
MAX_FOLDERS = 8  # in a name; Linux takes paths of 4,096 bytes and Windows of 260 letters


def check_name(
    name: str, ending: str = ".safetensors", label: str = "the output name", subfolders: bool = False
) -> str:
    """A plain file name without its ending, or the path of one in a sub-folder.

    All systems' rules hold on every system: a file that is written on Linux is opened on Windows one day.

    Args:
        name: as it was typed.
        ending: of the file; it may be typed or not.
        label: what to call the name in errors.
        subfolders: whether the name may stand in sub-folders, `people/star`; the folders follow the same rules.

    Raises:
        ValueError: empty, hidden, too long, or a path, a character, an end or a device's name that some system refuses.
    """
    stem = name.strip().removesuffix(ending)
    problem = f"{label} {quoted(name)}"
    if not subfolders:
        _check_part(stem, problem, label)
        return stem
    parts = stem.replace("\\", "/").split("/")  # Windows lists `people\star`
    if len(parts) > MAX_FOLDERS:
        raise ValueError(f"{problem} has {len(parts):,} parts: take at most {MAX_FOLDERS}")
    for part in parts:
        _check_part(part, problem, label)
    return "/".join(parts)


def _check_part(part: str, problem: str, label: str) -> None:
    """Raises ValueError, which begins with `problem`, when a file or a folder cannot be called `part`."""
    forbidden = sorted(c for c in set(part) if c in FORBIDDEN or ord(c) < 32)
    if forbidden:
        characters = " ".join(repr(c) for c in forbidden)
        raise ValueError(f"{problem} holds {characters}: type a plain file name")
    if not part or part.startswith("."):
        raise ValueError(f"{problem} is no file name: type one that does not begin with a dot")
    if part.endswith((".", " ")):
        raise ValueError(f"{problem} ends in a dot or a blank, which Windows drops: leave it off")
    if part.partition(".")[0].rstrip().upper() in CONSOLES | PORTS:
        raise ValueError(f"{problem} is a device's on Windows: take another")
    # Half a surrogate pair, which JSON can carry, has no UTF-8 and so no place in a file name.
    check_text(part, label)
    size = len(part.encode())
    if size > MAX_NAME_BYTES:
        raise ValueError(f"{problem} has {size} bytes: take one of at most {MAX_NAME_BYTES}")


def decode_text(data: bytes, label: str) -> str:
    """The text of a file in the encodings in which programs save tables and JSON.

    UTF-8 with and without a mark, UTF-16 (Excel's "Unicode text", PowerShell's `>`), UTF-32, and cp1252 (Excel on
    Windows). Zero bytes that stand between letters are left out.

    Args:
        data: the file's bytes.
        label: what to call the file in the error.

    Raises:
        ValueError: it is a zip file, as workbooks are.
    """
    if data.startswith(b"PK\x03\x04"):
        raise ValueError(f"{label} is a workbook or a zip file: save it as plain text, such as CSV")
    for encoding, mark in MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding, errors="replace").lstrip("\ufeff")
    # Without a mark it shows in the first letter, which is one of ASCII.
    if data[1:2] == b"\0":
        return data.decode("utf-16-le", errors="replace")
    if data[:1] == b"\0":
        return data.decode("utf-16-be", errors="replace")
    data = data.replace(b"\0", b"")
    try:
        return data.decode()
    except UnicodeDecodeError:
        # Almost any bytes are valid cp1252, so it comes last.
        return data.decode("cp1252", errors="replace")


def free_path(folder: Path, name: str, ending: str = ".safetensors") -> Path:
    """The path of a file that does not exist yet, proved to be writable: nothing is overwritten.

    Args:
        folder: where it is written.
        name: as it was typed; it may stand in a sub-folder, which is made. A number is added where it is taken.
        ending: of the file.

    Raises:
        ValueError: the name is none, or the folder does not take it.
    """
    subfolder, _, stem = check_name(name, ending, subfolders=True).rpartition("/")
    parent = folder / subfolder
    return writable_path(parent, free_name(stem, names_in(parent, ending)), ending)


def names_in(folder: Path, ending: str = ".safetensors") -> set[str]:
    """The names of a folder's files of one kind, without ending; a folder that is not there has none."""
    # Whatever the case of the ending: on Windows and macOS the file would be the same.
    return {file.stem for file in folder.glob("*") if file.suffix.lower() == ending}


def writable_path(folder: Path, name: str, ending: str = ".safetensors") -> Path:
    """The path of a file in a folder, proved to be writable under exactly this name.

    Raises:
        ValueError: the name is no plain file name, or the folder does not take it.
    """
    path = folder / f"{check_name(name, ending)}{ending}"
    check_writable(path)
    return path


def check_folder(folder: Path) -> None:
    """Makes a folder if there is none; raises ValueError when it does not take files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell: a network share or a full quota refuses only the file itself.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"cannot write into {folder}: {error.strerror}") from error


def check_writable(path: Path) -> None:
    """Raises ValueError when `write_atomic` could not write a file of this name; its folder is made."""
    check_folder(path.parent)
    temporary = temporary_path(path)
    try:
        # The longest name that will be needed. Encrypted folders and some shares take far fewer letters than others.
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise ValueError(f"cannot write {quoted(path.name)} into {path.parent}: {error.strerror}") from error


def check_room(folder: Path, size: int) -> None:
    """Raises ValueError when a folder's disk has no room for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ValueError(f"{folder} has room for {free / 1e9:.1f} GB and the file needs {size / 1e9:.1f}: make room")


def check_new_folder(folder: Path) -> None:
    """Raises ValueError when there is no folder of this name and none can be made; nothing is left behind."""
    if folder.is_dir():
        return
    try:
        folder.mkdir()
        folder.rmdir()
    except OSError as error:
        raise ValueError(
            f"cannot make the folder {quoted(folder.name)} in {folder.parent}: {error.strerror}"
        ) from error


def temporary_path(path: Path) -> Path:
    """The name under which a file is written before it is renamed."""
    # In the same folder: a rename is atomic only within one file system. The process id keeps two servers apart.
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_atomic(path: Path, *content: bytes | memoryview) -> Path:
    """Writes a file under a temporary name and renames it, so that it is whole or not there.

    Args:
        path: where to; an older file is replaced.
        content: its parts in order.

    Returns:
        The path.

    Raises:
        OSError: the folder cannot be written to.
    """
    return write_stream(path, content)


def write_stream(path: Path, parts: Iterable[bytes | memoryview]) -> Path:
    """`write_atomic` of parts that are made one after the other, so that they need not be in memory at once."""
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        _rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _rename(source: Path, target: Path) -> None:
    """Tries again for a second: Windows refuses while a virus scanner or an indexer has the old file open."""
    for seconds in RETRY_SECONDS:
        try:
            source.replace(target)
            return
        except PermissionError:
            time.sleep(seconds)
    source.replace(target)


def free_name(name: str, taken: set[str]) -> str:
    """`name`, or the first of `name_2`, `name_3` and so on that is not taken: nothing is overwritten."""
    taken_keys = {_name_key(other) for other in taken}
    if _name_key(name) not in taken_keys:
        return name
    for number in count(2):
        candidate = _numbered(name, number)
        if _name_key(candidate) not in taken_keys:
            break
    return candidate


def _numbered(name: str, number: int) -> str:
    """`name_2`, with the name cut where the number would make it longer than `check_name` takes."""
    ending = f"_{number}"
    stem = name.encode()[: MAX_NAME_BYTES - len(ending)]
    # A cut may go through the middle of a character, whose rest is dropped.
    return stem.decode(errors="ignore").rstrip(". ") + ending


def _name_key(name: str) -> str:
    """Equal for names that Windows or macOS take for the same: they may differ in case and in how accents are coded."""
    return unicodedata.normalize("NFC", name).casefold()
