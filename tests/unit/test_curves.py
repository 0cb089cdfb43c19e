"""The picture of a run's curves."""

import torch

from eraseanything_core.training.curves import BOUND, LINE, MARGIN, PANEL_SIZE, curves, stacked, strip


def test_one_panel_a_curve():
    image = curves({"esd": [3.0, 2.0, 1.0], "loss": [3.0]}, {"pair": [2], "drift": [0.1], "concept": [0.5]})
    assert image.size == (3 * PANEL_SIZE[0], 2 * PANEL_SIZE[1])


def test_a_falling_curve_falls():
    image = curves({"esd": [1.0, 0.0]}, {})
    blue = [(x, y) for x in range(image.width) for y in range(image.height) if image.getpixel((x, y)) == LINE]
    assert min(blue)[1] < max(blue)[1] and len(blue) > 50


def test_a_bound_is_drawn_where_it_is_reached():
    """Values from 1 down to 0.5, a bound of 0.75 in the middle of the panel; nothing without one."""
    seen = {"pair": [1, 2], "concept": [1.0, 0.5]}

    def rows(*bounds):
        image = curves({}, seen, *bounds)
        return {y for x in range(image.width) for y in range(image.height) if image.getpixel((x, y)) == BOUND}

    assert rows({"concept": 0.75, "drift": 0.1}) == {PANEL_SIZE[1] // 2} and rows() == rows({"drift": 0.75}) == set()
    assert rows({"concept": 0.0}) == {PANEL_SIZE[1] - MARGIN}, "a bound that is not reached stretches the panel"


def test_equal_values_and_none():
    assert curves({"esd": [2.0, 2.0]}, {}).size == PANEL_SIZE
    assert curves({}, {}).size == PANEL_SIZE


def test_pictures_beside_each_other():
    pictures = torch.zeros(3, 8, 16, 3)
    pictures[1] = 1.0
    row = strip(pictures, 16)
    assert row.size == (96, 16) and row.getpixel((48, 8)) == (255, 255, 255) and row.getpixel((4, 8)) == (0, 0, 0)
    assert stacked(row, row).size == (96, 32)
