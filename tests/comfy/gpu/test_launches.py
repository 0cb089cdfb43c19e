"""What a card is started for in a steady pair of FLUX.1-dev, and that each saving makes it less."""

from contextlib import nullcontext

import pytest
import torch

from eraseanything_core.comfy_bridge import gradients
from eraseanything_core.lora import adapter
from lab.bench import true_size
from lab.gpu import launches
from lab.provenance import ROOT


def told():
    """The table of docs/gpu.md: operations and GB by part."""
    rows = {}
    for line in (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").splitlines():
        part, *figures = [cell.strip() for cell in line.strip("|").split("|")]
        if part in (*launches.PARTS, "together"):
            rows[part] = [float(figure.replace(",", "")) for figure in figures]
    return rows


def test_a_steady_pair_at_true_size_is_as_it_is_told():
    """The teacher answers before the pairs, so it runs in none of them."""
    found = launches.steady_pair("quick")
    rows = told()
    together = rows.pop("together")
    assert list(rows) == list(launches.PARTS) and rows[launches.TEACHER] == [0, 0]
    for part, (operations, written) in rows.items():
        assert found.operations[part] == pytest.approx(operations, rel=0.02)
        assert found.written[part] / 1e9 == pytest.approx(written, abs=0.5)
    assert together == [sum(operations for operations, _ in rows.values()), pytest.approx(79.9)]


@pytest.fixture
def shallow(monkeypatch):
    """FLUX.1-dev with two blocks of each kind."""
    monkeypatch.setitem(true_size.DEV, "depth", 2)
    monkeypatch.setitem(true_size.DEV, "depth_single_blocks", 2)


def backward_of(preset="quick"):
    return launches.steady_pair(preset).operations[launches.BACKWARD]


def sliced(x, y, parts, scale=1.0):
    """The LoRA added to slices of the output, each of which goes back through a tensor of zeros."""
    pieces, end = [], 0
    for start, (up, down) in parts:
        pieces += [y[..., end:start], y[..., start : start + len(up)] + (x @ down.to(x).T) @ up.to(x).T]
        end = start + len(up)
    return torch.cat([*pieces, y[..., end:]], dim=-1)


@pytest.mark.parametrize(
    "owner, name, without",
    (
        (gradients, "short_rotations", nullcontext),
        (gradients, "_copy_output", lambda layer, args, output: output),
        (adapter, "add_to_output", sliced),
    ),
    ids=("rotation", "streams that are no views", "one split"),
)
def test_each_saving_is_one(shallow, monkeypatch, owner, name, without):
    with_it = backward_of()
    monkeypatch.setattr(owner, name, without)
    assert backward_of() > 1.03 * with_it


def test_a_frozen_forward_has_a_part_of_its_own(shallow):
    model = true_size.true_flux()
    model.attach("paper", 4, torch.Generator())
    cond = model.cond(torch.zeros(1, 8, 4096, device="meta"), torch.zeros(1, 768, device="meta"), 1.0)
    x_t, sigma = torch.zeros(1, 16, 8, 8, device="meta"), torch.ones(1, device="meta")
    found = launches.Launches()
    with launches.as_on_a_card(), found, launches.hooked(found, model, []):
        model.velocity(x_t, sigma, cond, adapters=False)
        frozen = found.operations[launches.TEACHER]
        model.velocity(x_t, sigma, cond, adapters=True)
    assert 0 < frozen == found.operations[launches.TEACHER] < found.operations[launches.STUDENT]
    assert found.operations[launches.BACKWARD] == 0
