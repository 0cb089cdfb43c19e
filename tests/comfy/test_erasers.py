"""Methods that a user can choose, on the real TinyFlux.

Each takes 20 to 30 processor seconds, so these are the four that differ most: a hinge, adapters of rank 1 with anchors,
two strengths, and attention. `dev.py methods` measures all of them.
"""

import dataclasses

import pytest

from eraseanything_core.erasers import registry
from lab.tinyflux.erase import train_eraser
from lab.tinyflux.measure import merged, read_cell
from lab.tinyflux.pipeline import Pipeline, flux, judge_net
from lab.tinyflux.recipe import cells, erase_config

CONCEPT = "star"  # of the validation concepts, on which settings may be chosen
SHORT = {
    "steps": 40,
    "batch_size": 4,
    "retain_batch_size": 4,
    "cached_trajectories": 8,
    "cached_retain_trajectories": 8,
    "refresh_every": 20,
    "sampling_steps": 8,
    "attn_weight": 0.0,
    "rsc_weight": 0.0,
    "on_policy_share": 0.0,
}
PICTURES = 8


@pytest.fixture(scope="module")
def base():
    return Pipeline(flux())


@pytest.fixture(scope="module")
def asked():
    return cells(CONCEPT, PICTURES, seed=5)["acc_e"]


def shown(pipeline, cell):
    """How many pictures show the concept."""
    hits, _ = read_cell(pipeline, judge_net(), cell, by_oracle=0)
    return sum(hits["cnn"])


def config_of(name, **more):
    config = dataclasses.replace(erase_config(CONCEPT, **SHORT), **registry.settings_of(name), **more)
    return dataclasses.replace(config, cached_retain_trajectories=8)


@pytest.mark.parametrize("name", ("gem", "spm", "slider", "mace"))
def test_it_erases_at_all(base, asked, name):
    """Half of the pictures at least, after 40 short steps; what stays is measured by the boards."""
    before = shown(base, asked)
    lora = train_eraser(base, config_of(name)).lora
    after = Pipeline(merged(base.module, lora), base.encoder, base.decode)
    assert before >= 7 and shown(after, asked) <= before / 2
