"""The erasing methods that a plan may name: those of *Erase Settings*, and those of `direct_methods`."""

from ..erasers.registry import METHODS as TRAINED
from .direct_methods import DIRECT

# MACE is in both: a plan that names it means the one with pictures of its own.
METHODS = tuple(dict.fromkeys((*TRAINED, *DIRECT)))
