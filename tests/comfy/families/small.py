"""Small random models of every family as the trainer sees them, in float64 where their code lets them."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from eraseanything_core.comfy_bridge.any_model import any_model
from eraseanything_core.comfy_bridge.frozen_view import frozen_view
from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.protocols import Conditioning
from tests.comfy.columns import new_family
from tests.comfy.layouts import CASES

DOUBLE = torch.float64
SOUND = ("ACEStep", "ACEStep15", "StableAudio", "StableAudio3", "LTXAV", "MiniMaxH3")
FAMILIES = [name for name in CASES if name not in SOUND]


@contextmanager
def all_double() -> Iterator[None]:
    """Inside, ComfyUI's code computes in float64 where it pins float32."""
    norm = torch.linalg.vector_norm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(torch.linalg, "vector_norm", lambda x, *args, dtype=None, **rest: norm(x, *args, **rest))
        yield


def double(module: torch.nn.Module) -> None:
    """Everything that a view computes with, in float64."""
    module.double()
    for layer in module.modules():
        if isinstance(getattr(layer, "dtype", None), torch.dtype):
            layer.dtype = DOUBLE


@contextmanager
def small_model(name: str, checkpoint: bool = False, dtype: torch.dtype = DOUBLE) -> Iterator[SimpleNamespace]:
    """A family's small model over a view of its own, with a prompt, noise and a time."""
    family = new_family(name)
    base = family.model.model
    module = frozen_view(base.diffusion_model, dtype)
    if dtype == DOUBLE:
        double(module)
    model = any_model(base, module, base.model_sampling, "cpu", dtype)
    g = torch.Generator().manual_seed(1)
    size = family.case.size
    with exact_gradients(module, checkpoint, model.remembering):
        context, entries = family.positive[0]
        more = {key: _as(value, dtype) for key, value in entries.items() if key != "pooled_output"}
        yield SimpleNamespace(
            family=family,
            model=model,
            prompt=Conditioning(context.to(dtype), entries["pooled_output"].to(dtype), more),
            x=torch.randn(2, size[0], *size[-2:], generator=g, dtype=dtype),
            t=torch.tensor([0.6, 0.3], dtype=dtype),
        )


def _as(value, dtype):
    return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
