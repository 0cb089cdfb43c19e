"""The erasing methods that a plan may name: those of *Erase Settings*, and those of `direct_methods`."""

from ..erasers.registry import METHODS as TRAINED
from .direct_methods import DIRECT

METHODS = (*TRAINED, *DIRECT)
