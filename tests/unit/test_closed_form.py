"""The closed forms against dense float64 algebra that is written another way."""

import pytest

torch = pytest.importorskip("torch")

from eraseanything_core.erasers import double_projection, uce  # noqa: E402
from eraseanything_core.erasers.state_edit import compressed, effect, linear_edit  # noqa: E402
from eraseanything_core.erasers.uce import TextStates  # noqa: E402

COLUMNS = 24


def states(erased: int, kept: int, columns: int = COLUMNS) -> TextStates:
    torch.manual_seed(erased + kept)
    return TextStates(*(torch.randn(n, columns, dtype=torch.float64) for n in (erased, erased, kept)))


def weight() -> torch.Tensor:
    return torch.randn(10, COLUMNS, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def dense(factors) -> torch.Tensor:
    return factors.up @ factors.down


@pytest.mark.parametrize("kept", [6, 60])  # fewer states than columns, and more
def test_uce_solves_its_normal_equations(kept):
    """W' M = sum W g c^T + sum W c_p c_p^T + lam W, with every sum written out."""
    given, w, lam = states(5, kept), weight(), 0.3
    m = sum(torch.outer(c, c) for c in (*given.erased, *given.kept)) + lam * torch.eye(COLUMNS, dtype=w.dtype)
    right = sum(torch.outer(w @ g, c) for c, g in zip(given.erased, given.guides, strict=True))
    right = right + sum(torch.outer(w @ p, p) for p in given.kept) + lam * w
    edited = w + w @ dense(uce.change(given, lam))
    torch.testing.assert_close(edited @ m, right, rtol=1e-9, atol=1e-9)


def test_the_null_space_is_the_orthogonal_complement_of_what_is_kept():
    given = states(3, 7)
    found = double_projection.directions(given.kept, 0.0)
    torch.testing.assert_close(found @ found.T, torch.eye(7, dtype=torch.float64))
    projector = torch.linalg.pinv(given.kept) @ given.kept
    torch.testing.assert_close(found.T @ found, projector)


def test_directions_leave_out_the_slack_and_no_more():
    basis = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, dtype=torch.float64, generator=torch.Generator())).Q
    rows = torch.tensor([10.0, 3.0, 1.0, 0.1], dtype=torch.float64).sqrt()[:, None] * basis[:4]
    assert len(double_projection.directions(rows, 0.01)) == 3  # 0.1 of 14.1 are left out
    assert len(double_projection.directions(rows, 0.005)) == 4
    assert len(double_projection.directions(torch.cat([rows] * 20), 0.01)) == 3  # more rows than columns


def test_double_projection_is_the_constrained_minimum():
    """Against the solution in coordinates of the null space, by an explicit basis of it."""
    given, w, ridge = states(4, 9), weight(), 1e-2
    change = w @ dense(double_projection.change(given, slack=0.0, ridge=ridge))
    torch.testing.assert_close(change @ given.kept.T, torch.zeros(10, 9, dtype=w.dtype), rtol=0, atol=1e-9)
    basis = torch.linalg.svd(given.kept).Vh[9:]  # the null space, [15, columns]
    inner = given.erased @ basis.T
    lam = ridge * given.erased.square().sum(1).mean()
    wanted = (given.guides - given.erased) @ w.T
    # min over X of |inner X - wanted|^2 + lam |X|^2, as one least-squares problem
    system = torch.cat([inner, lam.sqrt() * torch.eye(15, dtype=w.dtype)])
    solved = torch.linalg.lstsq(system, torch.cat([wanted, torch.zeros(15, 10, dtype=w.dtype)])).solution
    torch.testing.assert_close(change, solved.T @ basis, rtol=1e-8, atol=1e-8)


def test_a_concept_that_lies_among_the_kept_states_is_left_alone():
    given = states(2, 8)
    inside = TextStates(given.kept[:2] + given.kept[2:4], given.guides, given.kept)
    assert dense(double_projection.change(inside, slack=0.0)).abs().max() < 1e-6


def test_a_proxy_is_the_nearest_point_of_the_safe_span():
    given = states(3, 5)
    found = double_projection.proxies(given.erased, given.kept, energy=1.0)
    nearest = torch.linalg.lstsq(given.kept.T, given.erased.T).solution
    torch.testing.assert_close(found, (given.kept.T @ nearest).T)


def test_the_lora_is_exact_at_full_rank_and_says_what_a_smaller_one_loses():
    given, w = states(6, 30), weight()
    edit = uce.change(given)
    assert torch.allclose(dense(compressed(edit)), dense(edit))
    whole = w @ dense(edit)
    exact = linear_edit(w, edit)
    assert exact.truncation == 0 and exact.factors.down.shape == (6, COLUMNS)
    torch.testing.assert_close(dense(exact.factors), whole.float(), rtol=1e-5, atol=1e-6)
    short = linear_edit(w, edit, rank=2)
    singular = torch.linalg.svdvals(whole)
    torch.testing.assert_close(short.truncation, float(singular[2:].norm() / singular.norm()))
    measured = (dense(short.factors).double() - whole).norm() / whole.norm()
    torch.testing.assert_close(short.truncation, float(measured), rtol=1e-5, atol=1e-6)


def test_the_effect_is_counted_on_the_states():
    given, w = states(2, 5), weight()
    edit = uce.change(given, lam=1e-3)
    factors = linear_edit(w, edit).factors
    edited = w + w @ dense(edit)
    distance = ((given.guides - given.erased) @ w.T).square().sum()
    left = (given.erased @ edited.T - given.guides @ w.T).square().sum() / distance
    moved = (given.kept @ (edited - w).T).square().sum() / (given.kept @ w.T).square().sum()
    found = effect(w, factors, given)
    assert found.left == pytest.approx(float(left), rel=1e-3, abs=1e-8)
    assert found.moved == pytest.approx(float(moved), rel=1e-3, abs=1e-8)
    assert effect(w, factors._replace(up=0 * factors.up), given).left == pytest.approx(1)
