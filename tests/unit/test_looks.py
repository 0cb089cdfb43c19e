"""What follows from a run's looks: when it stops, and what its learning rates become."""

import dataclasses

import pytest

from eraseanything_core.training import monitor
from eraseanything_core.training.config import EraseConfig

CONFIG = EraseConfig(concept="cat", steps=200, monitor_every=50, stop_when_gone=True, adapt_rate=True)


def scores(**lists):
    count = len(lists["drift"])
    return {"pair": [50 * (i + 1) for i in range(count)], **lists}


STOPS = {
    "never looked": ({}, ""),
    "gone once": (scores(drift=[0.1], shown=[0.0]), ""),
    "gone twice": (scores(drift=[0.1, 0.1], shown=[0.0, 0.0]), ""),
    "gone three times": (scores(drift=[0.1] * 3, shown=[0.0] * 3), "stopped after step 150: no picture showed"),
    "neighbours kept": (scores(drift=[0.1] * 3, shown=[0.0] * 3, kept=[0.0, 0.0, 0.75]), "stopped after step 150: no"),
    "neighbours lost": (scores(drift=[0.1] * 3, shown=[0.0] * 3, kept=[1.0, 1.0, 0.5]), ""),
    "back again": (scores(drift=[0.1] * 4, shown=[0.0, 0.0, 0.0, 0.2]), ""),
    "cannot be read": (scores(drift=[0.1, 0.1]), ""),
    "gone and damaged": (scores(drift=[0.1, 3.0], shown=[0.0, 0.0]), "stopped after step 100: the drift of 3.000"),
}


@pytest.mark.parametrize("case", STOPS)
def test_when_a_run_stops(case):
    looks, reason = STOPS[case]
    stopped = monitor.stop_reason(dataclasses.replace(CONFIG, stop_drift=2.0), looks)
    assert stopped.startswith(reason) and bool(stopped) == bool(reason)


def test_it_goes_on_where_stopping_is_off():
    config = dataclasses.replace(CONFIG, stop_when_gone=False)
    assert monitor.stop_reason(config, scores(drift=[0.1] * 3, shown=[0.0] * 3)) == ""


# reading, shown, drift of each look -> the factor after it
FACTORS = {
    "it works": ([0.3, 0.2], [0.0, 0.0], [0.1, 0.1], [1.0, 1.0]),
    "gone at first and back": ([0.2, 0.31], [0.0, 0.0], [0.1, 0.1], [1.0, 2.0]),
    "one picture shows it": ([0.2, 0.2], [0.2, 0.0], [0.1, 0.1], [2.0, 2.0]),
    "rates do nothing": ([0.99, 0.95, 0.9], [1.0] * 3, [0.0] * 3, [2.0, 2.0, 2.0]),
    "rates diverge": ([0.3, 0.3], [0.0, 0.0], [1.4, 1.4], [0.5, 0.25]),
    "a diverged run that still shows it": ([0.99], [1.0], [1.4], [0.5]),
    "too much after too little": ([0.95, 0.1], [1.0, 0.0], [0.0, 1.4], [2.0, 1.0]),
}


@pytest.mark.parametrize("case", FACTORS)
def test_what_the_learning_rates_become(case):
    reading, shown, drift, factors = FACTORS[case]
    looks = scores(reading=reading, shown=shown, drift=drift)
    assert monitor.look_factors(CONFIG, looks) == factors
    assert monitor.look_factor(CONFIG, looks) == factors[-1]
    assert monitor.look_factor(dataclasses.replace(CONFIG, adapt_rate=False), looks) == 1.0


def test_a_word_that_is_only_left_out_begins_at_twice_the_rates():
    """And stays there, whatever the first look sees, until the neighbours' pictures are others."""
    config = dataclasses.replace(CONFIG, neutral="{}")
    assert monitor.look_factor(config, {}) == 2.0
    looks = scores(reading=[0.95, 0.1, 0.1], shown=[1.0, 0.0, 0.0], drift=[0.0, 0.1, 1.4])
    assert monitor.look_factors(config, looks) == [2.0, 2.0, 1.0]
    assert monitor.rate_notes(config, looks) == [
        "the learning rates began at 2 times those set: nothing stands in the concept's place",
        "from step 151 on the learning rates were 1 times those set: the neighbours' pictures were others",
    ]
    fixed = dataclasses.replace(config, adapt_rate=False)
    assert monitor.look_factor(fixed, {}) == 1.0 and monitor.rate_notes(fixed, {}) == []


ETAS = {
    "never looked": ({}, 0.5),
    "the first look is early": (scores(drift=[0.1], shown=[1.0], reading=[0.9]), 0.5),
    "one picture of five": (scores(drift=[0.1] * 2, shown=[1.0, 0.2], reading=[0.9, 0.3]), 0.5),
    "still shown": (scores(drift=[0.1] * 2, shown=[1.0, 0.4], reading=[0.9, 0.3]), 1.0),
    "not shown but half-way": (scores(drift=[0.1] * 2, shown=[1.0, 0.0], reading=[0.9, 0.31]), 1.0),
    "still shown and then gone": (scores(drift=[0.1] * 3, shown=[1.0, 0.8, 0.0], reading=[0.9, 0.8, 0.1]), 1.0),
    "for long": (scores(drift=[0.1] * 5, shown=[1.0] * 5, reading=[0.9] * 5), 2.0),
}


@pytest.mark.parametrize("case", ETAS)
def test_what_eta_becomes(case):
    looks, eta = ETAS[case]
    config = dataclasses.replace(CONFIG, eta=0.5)
    assert monitor.look_eta(config, looks) == eta
    assert any("eta ended at" in note for note in monitor.rate_notes(config, looks)) is (eta != 0.5)
    assert monitor.look_eta(dataclasses.replace(config, adapt_rate=False), looks) == 0.5
    assert monitor.look_eta(dataclasses.replace(config, eta=3.0), looks) == 3.0, "what is higher already stays"


def test_the_user_is_told_of_each_change():
    looks = scores(reading=[0.95, 0.3, 0.3], shown=[1.0, 0.0, 0.0], drift=[0.0, 1.4, 0.1])
    assert monitor.rate_notes(CONFIG, looks) == [
        "from step 51 on the learning rates were 2 times those set: the pictures had hardly changed",
        "from step 101 on the learning rates were 1 times those set: the neighbours' pictures were others",
    ]
    # After the last pair nothing follows.
    assert monitor.rate_notes(dataclasses.replace(CONFIG, steps=50), looks) == []


def test_without_looks_nothing_changes():
    assert monitor.look_factor(CONFIG, {}) == 1.0 and monitor.rate_notes(CONFIG, {}) == []
