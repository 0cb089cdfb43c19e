"""The same bits again on a GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # an environment variable of cuBLAS
FIXED_WORKSPACE = ":4096:8"  # with this one cuBLAS gives the same bits in every call, says its documentation

# PyTorch reads it once in a process, at the first product on a card. A run would set it too late: its text encoder has
# made products by then. Nodes are imported before any of them runs. What a user has set stays.
if not os.environ.get(WORKSPACE):
    os.environ[WORKSPACE] = FIXED_WORKSPACE


@contextmanager
def deterministic_algorithms(on: bool) -> Iterator[None]:
    """Inside, PyTorch takes only kernels that give the same bits for the same input; afterwards all is as before.

    On a CPU it takes them anyway. Many of CUDA's add in the order in which their threads finish. One that has no other
    form raises a RuntimeError, which names it.

    Args:
        on: False changes nothing.
    """
    if not on:
        yield
        return
    settings: Any = torch.utils.deterministic  # a module whose attribute is a property, which mypy does not see
    enabled = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = settings.fill_uninitialized_memory
    chooses_by_time = torch.backends.cudnn.benchmark
    try:
        # Not as a warning: attention then keeps the backward that differs from run to run.
        torch.use_deterministic_algorithms(True)
        # For who reads memory before it is written. Nothing does here, and it would write every tensor twice.
        settings.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = False
        yield
    finally:
        torch.backends.cudnn.benchmark = chooses_by_time
        settings.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(enabled, warn_only=only_warns)
