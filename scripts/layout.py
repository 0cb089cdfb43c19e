"""Places the nodes of a workflow file: columns from left to right, groups with titles, and a note."""

from collections.abc import Iterable
from typing import Any

Node = dict[str, Any]
Link = list[Any]  # [id, source node, source slot, target node, target slot, type]

COLUMN = 380  # px from one column to the next
WIDTH = 340  # px of a node
COLUMNS = 3  # of a group at most; longer chains are folded
TITLE = 30  # px of a node's title bar
GAP = 60  # px between two nodes
PADDING = 20  # px between a group's border and its nodes
GROUP_TITLE = 50  # px
NOTE_LINE = 22  # px
NOTE_LETTERS = 42  # in a line
# What of ComfyUI's page shows nodes, beside its bars, on a screen of 1600 x 900.
VISIBLE = (1480, 780)  # px
VISIBLE_FROM = (70, 60)  # px
READABLE = (0.7, 1.0)  # the zoom at which a workflow opens: the whole of it, if that can be read


class LayoutError(Exception):
    """A graph that cannot be placed."""


def columns_of(ids: Iterable[int], links: list[Link]) -> dict[int, int]:
    """The column of each node: one right of the last node that it needs, among these nodes only.

    Raises:
        LayoutError: the nodes form a loop.
    """
    columns = dict.fromkeys(ids, 0)
    inner = [(source, target) for _, source, _, target, *_ in links if source in columns and target in columns]
    # The longest path has fewer links than there are nodes: after so many rounds nothing moves but in a loop.
    for _ in columns:
        for source, target in inner:
            columns[target] = max(columns[target], columns[source] + 1)
    if max(columns.values()) >= len(columns):
        raise LayoutError("the graph has a loop")
    return columns


def folded(columns: dict[int, int]) -> dict[int, int]:
    """Columns joined with their neighbours, so that there are `COLUMNS` at most."""
    count = max(columns.values()) + 1
    if count <= COLUMNS:
        return columns
    return {node: column * COLUMNS // count for node, column in columns.items()}


def number_in_order(nodes: list[Node], columns: dict[int, int]) -> None:
    """Sets the order of execution that the frontend shows."""
    for order, node in enumerate(sorted(nodes, key=lambda node: columns[node["id"]])):
        node["order"] = order


def place(nodes: list[Node], columns: dict[int, int], left: int = 0, top: int = 0) -> None:
    """Puts nodes into their columns, those of one column below each other."""
    bottoms: dict[int, int] = {}
    for node in sorted(nodes, key=lambda node: columns[node["id"]]):
        column = columns[node["id"]]
        y = bottoms.get(column, top)
        bottoms[column] = y + node["size"][1] + TITLE + GAP
        node["pos"] = [left + column * COLUMN, y]


def place_groups(nodes: list[Node], links: list[Link], groups: dict[str, list[int]], top: int = 0) -> list[dict]:
    """Puts the groups beside each other, and returns their frames as a workflow file has them.

    Args:
        nodes: of the workflow; they are moved.
        links: between them.
        groups: a group's title to the ids of its nodes; every node is in one of them.
        top: where the first group begins, below a note; the others begin at 0.
    """
    frames = []
    left = 0
    by_id = {node["id"]: node for node in nodes}
    for number, (title, ids) in enumerate(groups.items(), start=1):
        members = [by_id[i] for i in ids]
        place(members, folded(columns_of(ids, links)), left + PADDING, top + GROUP_TITLE + TITLE)
        right = max(node["pos"][0] + node["size"][0] for node in members) + PADDING
        bottom = max(node["pos"][1] + node["size"][1] for node in members) + PADDING
        frame = {"id": number, "title": title, "bounding": [left, top, right - left, bottom - top]}
        frames.append(frame | {"color": "#3f789e", "font_size": 24, "flags": {}})
        left = right + PADDING
        top = 0
    return frames


def first_view(nodes: list[Node]) -> dict[str, Any]:
    """The zoom and the place at which the frontend opens a workflow: its left upper corner, large enough to read."""
    left = min(node["pos"][0] for node in nodes)
    top = min(node["pos"][1] for node in nodes) - GROUP_TITLE - TITLE
    width = max(node["pos"][0] + node["size"][0] for node in nodes) - left
    height = max(node["pos"][1] + node["size"][1] for node in nodes) - top
    smallest, largest = READABLE
    scale = min(largest, max(smallest, min(VISIBLE[0] / width, VISIBLE[1] / height)))
    return {
        "scale": round(scale, 3),
        "offset": [round(VISIBLE_FROM[0] / scale - left), round(VISIBLE_FROM[1] / scale - top)],
    }


def note_height(text: str) -> int:
    """Pixels that a note takes, its title bar included."""
    lines = sum(1 + len(line) // NOTE_LETTERS for line in text.splitlines())
    return TITLE + NOTE_LINE * (lines + 2)


def note(node_id: int, text: str) -> Node:
    """A Markdown note above the first group. It is for people only and never queued."""
    return {
        "id": node_id,
        "type": "MarkdownNote",
        "title": "Read me",
        "pos": [0, 0],
        "size": [WIDTH + 2 * PADDING, note_height(text) - TITLE],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
        "color": "#222",
        "bgcolor": "#000",
    }
