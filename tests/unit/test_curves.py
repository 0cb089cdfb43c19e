"""What a run shows: its curves and its labelled pictures."""

import torch
from PIL import Image, ImageChops

from eraseanything_core.training.curves import (
    BOTTOM,
    BOUND,
    LABEL_HEIGHT,
    LINE,
    PANEL_SIZE,
    SHEET_WIDTH,
    TEXT_COLOUR,
    TOP,
    curve_panel,
    curves,
    stacked,
    strip,
)

NODE_WIDTH = 340  # px, of the templates' nodes
READABLE = 7  # px: smaller letters run together


def places(image: Image.Image, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Pixels of a colour."""
    return [(x, y) for x in range(image.width) for y in range(image.height) if image.getpixel((x, y)) == colour]


def test_a_panel_for_each_loss_and_three_in_a_row():
    image = curves({"esd": [3.0, 2.0], "attn": [1.0, 0.5], "retain": [1.0, 2.0], "loss": [3.0, 1.0]}, {})
    assert image.size == (SHEET_WIDTH, 2 * PANEL_SIZE[1])


def test_scores_take_the_place_of_single_losses():
    """A node has room for two rows, and what was measured says more."""
    scores = {"pair": [2], "drift": [0.1], "shown": [0.5]}
    losses = {"esd": [3.0, 2.0], "attn": [3.0, 2.0], "loss": [3.0, 2.0]}
    image = curves(losses, scores)
    assert image.size == (SHEET_WIDTH, PANEL_SIZE[1])
    panels = [curve_panel("loss", [3.0, 2.0], (1, 2), 2), curve_panel("drift", [0.1], [2], 2)]
    for i, panel in enumerate(panels):
        left = i * PANEL_SIZE[0]
        found = image.crop((left, 0, left + PANEL_SIZE[0], PANEL_SIZE[1]))
        assert ImageChops.difference(found, panel).getbbox() is None


def test_a_falling_curve_falls():
    blue = places(curves({"esd": [1.0, 0.0]}, {}), LINE)
    assert min(blue)[1] < max(blue)[1] and len(blue) > 50


def test_a_bound_is_drawn_where_it_is_reached():
    """Values from 1 down to 0.5, a bound of 0.75 in the middle of the panel; nothing without one."""
    seen = {"pair": [1, 2], "shown": [1.0, 0.5]}

    def rows(*bounds):
        return {y for _, y in places(curves({}, seen, *bounds), BOUND)}

    middle = (TOP + BOTTOM) // 2
    assert middle in rows({"shown": 0.75, "drift": 0.1}) <= set(range(middle - 2, middle + 3))
    assert rows() == rows({"drift": 0.75}) == set()
    assert BOTTOM in rows({"shown": 0.0}), "a bound that is not reached stretches the panel"


def test_equal_values_and_none():
    assert curves({"esd": [2.0, 2.0]}, {}).size == curves({}, {}).size == (SHEET_WIDTH, PANEL_SIZE[1])


def test_names_and_values_fit_into_their_panel():
    """The longest name and numbers end before the next panel begins."""
    values = [0.000123, 0.000456]
    for name in ("neighbours kept", "contrastive loss"):
        dark = places(curve_panel(name, values, [99999, 100000], 100000, bound=0.00012), TEXT_COLOUR)
        assert 100 < max(dark)[0] < PANEL_SIZE[0] - 4


def test_letters_are_readable_at_the_width_of_a_node():
    """The height of the dark pixels of a name, scaled as a node scales it."""
    name = curve_panel("drift", [1.0, 0.5], [1, 2], 2).crop((0, 0, PANEL_SIZE[0], 26))
    rows = [y for _, y in places(name, TEXT_COLOUR)]
    assert (max(rows) - min(rows) + 1) * NODE_WIDTH / SHEET_WIDTH >= READABLE


def test_pictures_beside_each_other_with_their_labels():
    pictures = torch.zeros(3, 8, 16, 3)
    pictures[1] = 1.0
    row = strip(pictures, ["before", "now", "neighbour"])
    height = round((SHEET_WIDTH - 12) // 3 / 2)
    assert row.size == (SHEET_WIDTH, LABEL_HEIGHT + height)
    under = LABEL_HEIGHT + 4
    assert row.getpixel((SHEET_WIDTH // 2, under)) == (255, 255, 255) and row.getpixel((4, under)) == (0, 0, 0)
    labels = row.crop((0, 0, SHEET_WIDTH, LABEL_HEIGHT))
    for i in range(3):
        cell = labels.crop((i * SHEET_WIDTH // 3, 0, (i + 1) * SHEET_WIDTH // 3, LABEL_HEIGHT))
        assert places(cell, TEXT_COLOUR), "each picture has a label"


def test_labels_grow_with_the_picture():
    """A node shows every picture at its own width, so a larger one needs larger letters."""
    heights = []
    for width in (SHEET_WIDTH, 2 * SHEET_WIDTH):
        row = strip(torch.ones(1, 8, 8, 3), ["before"], width)
        rows = [y for _, y in places(row, TEXT_COLOUR)]
        heights.append(max(rows) - min(rows) + 1)
    assert heights[1] > 1.8 * heights[0]


def test_stacked():
    one = Image.new("RGB", (96, 16))
    assert stacked(one, Image.new("RGB", (40, 8))).size == (96, 24)
