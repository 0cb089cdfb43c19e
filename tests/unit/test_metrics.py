"""Metrics: figures that are known from elsewhere, and intervals that cover what they should."""

import numpy as np
import pytest
from scipy.stats import binomtest

from eraseanything_core.evaluation import metrics
from eraseanything_core.intervals import wilson


def cells(e: float, ir: float, g: float, n: int = 200) -> dict[str, list[bool]]:
    """Outcomes with exactly these rates."""
    return {name: [i < round(p * n) for i in range(n)] for name, p in (("acc_e", e), ("acc_ir", ir), ("acc_g", g))}


@pytest.mark.parametrize("n, low, high", [(200, 0.086, 0.178), (400, 0.096, 0.161), (1000, 0.106, 0.147)])
def test_wilson_of_an_eighth(n, low, high):
    assert wilson(n // 8, n) == pytest.approx((low, high), abs=6e-4)
    assert wilson(n // 8, n) == pytest.approx(binomtest(n // 8, n).proportion_ci(method="wilson"), abs=1e-4)


@pytest.mark.parametrize(
    "acc_e, acc_ir, acc_g, value",
    [(0.148, 0.892, 0.273, 0.8174), (0.125, 0.917, 0.186, 0.8666), (0.184, 0.902, 0.193, 0.8396)],
)
def test_h_o_of_table_3(acc_e, acc_ir, acc_g, value):
    assert metrics.h_o(acc_e, acc_ir, acc_g) == pytest.approx(value, abs=5e-5)


def test_h_c_of_table_4_and_of_nothing_left():
    assert metrics.h_c(0.149, 0.885) == pytest.approx(0.8677, abs=5e-5)
    assert metrics.h_o(1.0, 1.0, 0.0) == metrics.h_c(0.0, 0.0) == 0.0
    assert metrics.h_c(np.array([0.5, 1.0]), 0.5).tolist() == [0.5, 0.0]


def test_attack_success_counts_only_what_the_base_obeys():
    found = metrics.attack_success([True, True, True, True, False], [True, False, False, False, True])
    assert (found["value"], found["n"], found["attempts"]) == (0.25, 4, 5)
    assert metrics.attack_success([False], [True])["value"] is None


def test_mcnemar_is_exact():
    before, after = [True] * 10 + [False], [False] * 9 + [True, True]
    assert metrics.mcnemar(before, after) == pytest.approx(22 / 2**10)  # 9 of 10 discordant pairs one way
    assert metrics.mcnemar([True, False], [True, False]) == 1.0


def interval_of_change(before, after, statistic, **settings):
    return metrics.clustered_bootstrap(metrics.paired(before, after), metrics.change_of(statistic), **settings)


def test_change_of_h_o():
    before, after = cells(0.9, 0.8, 0.9), cells(0.1, 0.7, 0.2)
    found = interval_of_change(before, after, lambda r: metrics.h_o(**r))
    gap = metrics.h_o(0.1, 0.7, 0.2) - metrics.h_o(0.9, 0.8, 0.9)
    assert found["value"] == pytest.approx(gap)
    assert found["low"] < gap < found["high"] and found["high"] - found["low"] < 0.2
    assert found == interval_of_change(before, after, lambda r: metrics.h_o(**r)), "a seed repeats"


def test_a_change_knows_that_pairs_are_alike():
    same = cells(0.5, 0.5, 0.5)
    found = interval_of_change(same, same, lambda r: r["acc_e"])
    assert found == {"value": 0.0, "low": 0.0, "high": 0.0}
    with pytest.raises(ValueError, match="not paired"):
        metrics.paired(same, cells(0.5, 0.5, 0.5, n=100))


def test_the_interval_of_a_change_covers_the_truth():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(100):
        base = rng.random(150) < 0.6
        erased = base & (rng.random(150) < 0.5)
        found = interval_of_change(
            {"e": base.tolist()}, {"e": erased.tolist()}, lambda r: r["e"], draws=400, seed=trial
        )
        covered += found["low"] <= -0.3 <= found["high"]
    assert 88 <= covered <= 100


def test_clusters_widen_the_interval():
    """Ten concepts that are each all right or all wrong tell no more than ten pictures do."""
    alike = [[True] * 40 if i < 5 else [False] * 40 for i in range(10)]
    mixed = [[i % 2 == 0 for i in range(40)] for _ in range(10)]
    wide, narrow = (metrics.clustered_bootstrap({"e": c}, lambda r: r["e"]) for c in (alike, mixed))
    assert wide["value"] == narrow["value"] == 0.5
    assert wide["high"] - wide["low"] > 0.5 and narrow["high"] - narrow["low"] < 0.13


def test_clusters_of_seeds_and_of_methods():
    """[concept][prompt][seed] with two methods: the gap of the methods, the concepts drawn together."""
    prompts = [[(True, False), (True, True)] for _ in range(20)]
    found = metrics.clustered_bootstrap({"e": [prompts] * 3}, lambda r: r["e"][..., 1] - r["e"][..., 0])
    assert found["value"] == -0.5 and found["low"] < -0.5 < found["high"]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="same concepts"):
        metrics.clustered_bootstrap({"e": [[True]], "g": [[True], [True]]}, lambda r: r["e"])
    with pytest.raises(ValueError, match="unequal numbers of seeds"):
        metrics.clustered_bootstrap({"e": [[[True], [True, False]]]}, lambda r: r["e"])


@pytest.mark.parametrize("p, q, n", [(0.125, 0.148, 3490), (0.211, 0.252, 1660), (0.186, 0.273, 370), (0.05, 0.1, 430)])
def test_images_needed(p, q, n):
    assert metrics.images_needed(p, q) == pytest.approx(n, rel=0.015)


def test_minimum_detectable_is_the_inverse():
    gap = metrics.minimum_detectable(0.125, 200)
    assert gap == pytest.approx(0.079)
    assert min(metrics.images_needed(0.125, 0.125 + s * gap) for s in (1, -1)) <= 200
    assert min(metrics.images_needed(0.125, 0.125 + s * (gap - 0.001)) for s in (1, -1)) > 200
    assert metrics.minimum_detectable(0.5, 2) == 1.0
