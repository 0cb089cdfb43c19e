"""Places the nodes of a workflow file: columns from left to right, groups with titles, and a note."""

from collections.abc import Iterable
from typing import Any

Node = dict[str, Any]
Link = list[Any]  # [id, source node, source slot, target node, target slot, type]

COLUMN = 420  # px from one column to the next
WIDTH = 340  # px of a node
TITLE = 30  # px of a node's title bar
GAP = 60  # px between two nodes
PADDING = 30  # px between a group's border and its nodes
GROUP_TITLE = 50  # px
NOTE_WIDTH = 460
NOTE_LINE = 28  # px


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


def place_groups(nodes: list[Node], links: list[Link], groups: dict[str, list[int]]) -> list[dict]:
    """Puts the groups beside each other, and returns their frames as a workflow file has them.

    Args:
        groups: a group's title to the ids of its nodes; every node is in one of them.
    """
    frames = []
    left = 0
    by_id = {node["id"]: node for node in nodes}
    for number, (title, ids) in enumerate(groups.items(), start=1):
        members = [by_id[i] for i in ids]
        place(members, columns_of(ids, links), left + PADDING, GROUP_TITLE + TITLE)
        right = max(node["pos"][0] + node["size"][0] for node in members) + PADDING
        bottom = max(node["pos"][1] + node["size"][1] for node in members) + PADDING
        frame = {"id": number, "title": title, "bounding": [left, 0, right - left, bottom]}
        frames.append(frame | {"color": "#3f789e", "font_size": 24, "flags": {}})
        left = right + GAP
    return frames


def note(node_id: int, text: str) -> Node:
    """A Markdown note left of everything else. It is for people only and never queued."""
    lines = sum(1 + len(line) // 55 for line in text.splitlines())
    return {
        "id": node_id,
        "type": "MarkdownNote",
        "title": "Read me",
        "pos": [-NOTE_WIDTH - GAP, 0],
        "size": [NOTE_WIDTH, TITLE + NOTE_LINE * (lines + 1)],
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
