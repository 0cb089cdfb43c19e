"""Packages that only single nodes need, and that may be missing."""

import importlib
import importlib.util


class MissingPackageError(ModuleNotFoundError, ValueError):
    """A package is missing. It is Python's own error for that, and the ValueError that nodes show when queued."""


def require_package(module: str, package: str = "", used_by: str = "") -> None:
    """Checks that an optional package is installed.

    Args:
        module: the name by which it is imported.
        package: its name in pip, where that differs.
        used_by: the node that cannot do without it. That node imports it next, so it is imported here as well, which
            shows one that is installed and broken. Without `used_by` nothing is imported: some take seconds.

    Raises:
        MissingPackageError: it is missing or cannot be imported; the message says what to run.
    """
    package = package or module
    advice = f"run `pip install {package}` in ComfyUI's Python"
    if not used_by:
        if importlib.util.find_spec(module) is None:
            raise MissingPackageError(f"{package} is not installed: {advice}", name=module)
        return
    try:
        importlib.import_module(module)
    except ImportError as error:
        message = f"{used_by} needs the package {package}: {advice} ({error})"
        raise MissingPackageError(message, name=module) from error
