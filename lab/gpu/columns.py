"""Attention columns by each backend against the dense softmax."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from eraseanything_core.attention import columns
from lab.gpu.card import Card
from lab.gpu.facts import BACKENDS, has_no_kernel
from lab.gpu.outcome import Outcome

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def case(card: Card) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and the columns to read, in float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    heads, queries, keys = (2, 48, 64) if card.tiny else (24, 1024, 1280)
    q = torch.randn(1, heads, queries, 128, generator=generator, dtype=torch.float64)
    k = torch.randn(1, heads, keys, 128, generator=generator, dtype=torch.float64)
    select = torch.zeros(1, keys, 2, dtype=torch.float64)
    select[:, 3:5, 0] = 1
    select[:, 9, 1] = 1
    return q, k, select


def dense(q: Tensor, k: Tensor, select: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) select."""
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ select[:, None]


def with_gradients(function, q: Tensor, k: Tensor, select: Tensor) -> list[Tensor]:
    """The columns, and the gradients of a sum of them, in float64 on the CPU."""
    q = q.detach().requires_grad_()
    k = k.detach().requires_grad_()
    found = function(q, k, select)
    # A weight for each entry: the columns of a whole row sum to one, whose gradient says nothing.
    weight = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view(found.shape)
    (found.double() * weight.to(found.device)).sum().backward()
    return [tensor.detach().double().cpu() for tensor in (found, q.grad, k.grad)]


def by_backend(card: Card, dtype: torch.dtype, backend: SDPBackend) -> list[Tensor] | None:
    """What `attention_columns` gives on the card; None where it has no such kernel."""
    q, k, select = (tensor.to(card.device, dtype) for tensor in case(card))
    try:
        with sdpa_kernel(backend):
            return with_gradients(columns.attention_columns, q, k, select)
    except RuntimeError as error:
        if has_no_kernel(error):
            return None
        raise


def check(card: Card) -> Outcome:
    """Check 4: forward and backward, the largest difference over the largest value."""
    outcome = Outcome()
    ran = 0
    for dtype, bound in BOUNDS.items():
        rounded = [tensor.to(dtype).double() for tensor in case(card)]
        expected = with_gradients(dense, *rounded)
        for backend, kernel in BACKENDS.items():
            name = f"{str(dtype).removeprefix('torch.')}, {backend}"
            found = by_backend(card, dtype, kernel)
            if found is None:
                outcome.figures[name] = "none"
                continue
            ran += 1
            for what, mine, true in zip(("columns", "grad q", "grad k"), found, expected, strict=True):
                off = float((mine - true).abs().max() / true.abs().max())
                outcome.at_most(f"{name}, {what}", off, bound)
    outcome.must("a backend has run", ran > 0)
    return outcome
