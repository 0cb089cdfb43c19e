"""The node classes of the pack: every module here that has some lists them in `NODES`."""

from importlib import import_module
from pkgutil import iter_modules

MODULES = [import_module(f".{module.name}", __name__) for module in iter_modules(__path__)]
NODES = [node for module in MODULES for node in getattr(module, "NODES", [])]
