"""The gradient of a loss with respect to a LoRA is exact in every family, plain and with blocks recomputed.

Held against central differences in float64. Where ComfyUI's code pins float32, `x.float()` gives float64 here too, so
that the difference is as exact as in the others.
"""

import pytest
import torch

from eraseanything_core.comfy_bridge import gradients
from tests.comfy.families.small import DOUBLE, FAMILIES, all_double, small_model

STEP = 1e-4
# Where the loss bends more, or where float32 angles of RoPE leave more noise.
STEPS = {"PixArtSigma": 1e-5, "Lens": 1e-3}
TOLERANCE = 1e-3
SLICES = 8  # of every role, spread over the model


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with all_double():
        yield


def attached(small):
    """A LoRA that is not zero, on slices of every role."""
    model, g = small.model, torch.Generator().manual_seed(2)
    every = model._slices("all")
    model._slices = lambda targets: every[:: max(1, len(every) // SLICES)]
    lora = model.attach("all", 2, g).double()
    for up in lora.up:
        up.data.normal_(0, 0.1, generator=g)
    return lora


def loss(small):
    """Of the velocity and of the attention that a word gets, at two points at once."""
    prompts = [small.prompt, small.prompt]
    select = torch.zeros(2, small.tokens, 1, dtype=DOUBLE)
    select[:, 4:6] = 1
    capture = small.model.capture(select)
    v = small.model.velocity(small.x, small.t, small.model.conds(prompts, 3.0), adapters=True, capture=capture)
    weight = torch.linspace(-1, 1, v.numel(), dtype=DOUBLE).view_as(v) / v.numel() ** 0.5
    read = sum(columns.square().mean() for columns in capture.maps.values())
    return (v * weight).sum() + 10 * read


def difference(small, parameters, way, step):
    """The loss's slope along a direction, from both sides."""
    sides = []
    with torch.no_grad():
        for sign in (1, -1):
            for p, part in zip(parameters, way, strict=True):
                p += sign * step * part
            sides.append(float(loss(small)))
            for p, part in zip(parameters, way, strict=True):
                p -= sign * step * part
    return (sides[0] - sides[1]) / (2 * step)


def relative_error(small, step):
    """Of the gradient along a random direction, against central differences."""
    small.tokens = small.prompt.context.shape[1]
    parameters = list(attached(small).parameters())
    found = torch.autograd.grad(loss(small), parameters, allow_unused=True)
    g = torch.Generator().manual_seed(3)
    way = [torch.randn(p.shape, generator=g, dtype=DOUBLE) for p in parameters]
    slope = sum(float((x * part).sum()) for x, part in zip(found, way, strict=True) if x is not None)
    near, far = (difference(small, parameters, way, width) for width in (step, 2 * step))
    expected = (4 * near - far) / 3  # without the error of second order in the step
    assert expected != 0
    return abs(slope - expected) / abs(expected)


@pytest.mark.parametrize("checkpoint", (False, True), ids=("plain", "recomputed"))
@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_equals_finite_differences(name, checkpoint):
    with small_model(name, checkpoint) as small:
        error = relative_error(small, STEPS.get(name, STEP))
    print(f"{name}: {error:.1e}")
    assert error < TOLERANCE


@pytest.mark.parametrize("name", ("Flux2", "LTXV"))
def test_the_trap_breaks_the_tolerance(name, monkeypatch):
    """Blocks that are recomputed from inputs that others have changed are wrong without a word."""
    monkeypatch.setattr(gradients, "_copy", lambda leaf: leaf)
    with small_model(name, checkpoint=True) as small:
        small.x.requires_grad_(True)  # else autograd notices that a block's input has got a gradient on the way
        error = relative_error(small, STEP)
    print(f"{name}: {error:.1e}")
    assert error > 10 * TOLERANCE
