"""Fixtures of the tests without ComfyUI."""

import pytest
import torch


@pytest.fixture
def double_precision():
    """New tensors are float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
