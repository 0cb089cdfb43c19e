"""Converts workflows between the format that people open (UI) and the one that is queued (API).

    python -m scripts.graph to-api workflow.json graph.json http://127.0.0.1:8188
    python -m scripts.graph to-ui graph.json workflow.json http://127.0.0.1:8188

The last argument is a running server, or a file with what its /object_info answers.
"""

import json
import sys
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import layout

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
GROWING = "COMFY_AUTOGROW_V3"
NOTES = ("Note", "MarkdownNote")

# LiteGraph's modes of a node
MUTED = 2
BYPASSED = 4

# px that a node is given in height
SLOT = 26  # for a socket or a widget; Nodes 2.0 draws them taller than the classic renderer
TEXT = 120  # for a text of several lines, on top of its slot
PREVIEW = 280  # for the pictures of an output node

Graph = dict[str, dict[str, Any]]  # API format: a node's key to its class_type, inputs and _meta


class WorkflowError(Exception):
    """A workflow that does not fit the nodes of the server."""


@dataclass
class Input:
    """One input of a node type, in the order of its schema."""

    name: str
    kind: str
    options: dict

    @property
    def is_widget(self) -> bool:
        """Whether the node shows a field for it, and not only a socket."""
        return self.kind in (*WIDGETS, DYNAMIC) and not self.options.get("forceInput")

    def extra_values(self) -> list:
        """The values that the frontend keeps after this widget's own: they never reach the server."""
        if any(self.options.get(f"{kind}_upload") for kind in ("image", "audio", "video")):
            return ["image"]
        seed = self.kind == "INT" and self.name in ("seed", "noise_seed")
        return ["fixed"] if self.options.get("control_after_generate", seed) else []

    @property
    def is_hidden(self) -> bool:
        """Whether the frontend shows it only after a click."""
        return self.is_widget and bool(self.options.get("advanced"))

    def default(self) -> Any:
        """What the widget shows when nothing is set."""
        if "default" in self.options:
            return self.options["default"]
        choices = self.options.get("options") or [None]
        if self.kind == DYNAMIC:
            return choices[0]["key"]
        return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False, "COMBO": choices[0]}[self.kind]

    def fields(self, choice: Any) -> list["Input"]:
        """The further inputs that a dynamic combo shows for a choice; none of any other input."""
        if self.kind != DYNAMIC:
            return []
        for option in self.options["options"]:
            if option["key"] == choice:
                return _read_inputs(option["inputs"], f"{self.name}.")
        raise WorkflowError(f"{self.name} has no choice {choice!r}")


def inputs_of(node_type: str, object_info: dict) -> list[Input]:
    """The inputs of a node type, required ones first, without the hidden ones and those that a choice adds."""
    if node_type not in object_info:
        raise WorkflowError(f"the server has no node {node_type!r}")
    info = object_info[node_type]
    in_order = {}
    for section in ("required", "optional"):
        names = info["input_order"].get(section, [])
        in_order[section] = {name: info["input"][section][name] for name in names}
    return _read_inputs(in_order)


def shown_inputs(node_type: str, object_info: dict, values: Mapping[str, Any]) -> list[Input]:
    """The inputs of a node type as it shows them with these values: those that a choice adds follow it."""
    shown = []
    waiting = inputs_of(node_type, object_info)
    while waiting:
        entry = waiting.pop(0)
        shown.append(entry)
        if entry.kind == DYNAMIC:
            # A choice may add another choice, whose own inputs come next.
            waiting = entry.fields(values.get(entry.name, entry.default())) + waiting
    return shown


def _read_inputs(sections: dict, prefix: str = "") -> list[Input]:
    """The inputs in the sections `required` and `optional` of /object_info."""
    inputs = []
    for section in ("required", "optional"):
        for name, spec in sections.get(section, {}).items():
            kind, options = (*spec, {})[:2]
            if isinstance(kind, list):  # a combo of a node in ComfyUI's older style
                options = {**options, "options": kind}
                kind = "COMBO"
            inputs.append(Input(f"{prefix}{name}", kind, options))
    return inputs


# --- UI to API


def ui_to_api(workflow: dict, object_info: dict) -> Graph:
    """Converts a workflow file into the graph that /prompt takes, as the frontend does on Run.

    Args:
        workflow: UI format, with `nodes` and `links`.
        object_info: what the server answers to /object_info.

    Raises:
        WorkflowError: if a node type is missing, its widget values do not fit, or it is bypassed.
    """
    links = {link[0]: link for link in workflow["links"]}
    nodes = {n["id"]: n for n in workflow["nodes"] if n["type"] not in NOTES and n.get("mode", 0) != MUTED}
    graph = {}
    for node_id, node in nodes.items():
        inputs = widget_values(node, inputs_of(node["type"], object_info))
        for slot in node.get("inputs", []):
            if slot.get("link") is not None and links[slot["link"]][1] in nodes:
                _, source, source_slot, *_ = links[slot["link"]]
                inputs[slot["name"]] = [str(source), source_slot]
        title = node.get("title") or object_info[node["type"]].get("display_name") or node["type"]
        graph[str(node_id)] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return graph


def widget_values(node: dict, inputs: list[Input]) -> dict:
    """Names the positional widget values of a node, leaving out what only the frontend uses."""
    if node.get("mode", 0) == BYPASSED:
        raise WorkflowError(f"{node['type']} (node {node['id']}) is bypassed, which is not supported here")
    values = node.get("widgets_values", [])
    widgets = shown_widgets(inputs, values)
    expected = sum(1 + len(entry.extra_values()) for entry in widgets)
    if widgets and len(values) != expected:
        names = ", ".join(entry.name for entry in widgets)
        where = f"{node['type']} (node {node['id']})"
        raise WorkflowError(f"{where} has {len(values)} widget values where {expected} fit ({names})")
    remaining = iter(values)
    named = {}
    for entry in widgets:
        named[entry.name] = next(remaining)
        for _ in entry.extra_values():
            next(remaining)
    return named


def shown_widgets(inputs: list[Input], values: list) -> list[Input]:
    """The widgets of a node in order, with those that the choices among its positional values add."""
    widgets = []
    place = 0
    waiting = list(inputs)
    while waiting:
        entry = waiting.pop(0)
        if not entry.is_widget:
            continue
        if place < len(values):
            # A choice may add another choice, whose own inputs come next.
            waiting = entry.fields(values[place]) + waiting
        widgets.append(entry)
        place += 1 + len(entry.extra_values())
    return widgets


# --- API to UI


def api_to_ui(
    graph: Graph,
    object_info: dict,
    positions: Mapping[str, tuple[int, int]] | None = None,
    groups: Mapping[str, list[str]] | None = None,
    note: str = "",
) -> dict:
    """Makes a workflow file out of an API graph: the same nodes, laid out in columns from left to right.

    Args:
        graph: API format; a node's title is taken from its `_meta`.
        object_info: what the server answers to /object_info.
        positions: x and y of nodes by key; the others are placed automatically.
        groups: a group's title to the keys of its nodes; with it, every node is in one of them.
        note: Markdown for a note above the first group.

    Returns:
        A workflow of version 0.4, without control over seeds (`control_after_generate` is "fixed").

    Raises:
        WorkflowError: a node type is missing, a link leads nowhere, or the graph has a loop.
    """
    ids = number_nodes(graph)
    nodes = []
    for key, node in graph.items():
        nodes.append(ui_node(ids[key], node, shown_inputs(node["class_type"], object_info, node["inputs"])))
    by_id = {node["id"]: node for node in nodes}
    for key, node in graph.items():
        add_outputs(by_id[ids[key]], object_info[node["class_type"]])
        # For a node whose pictures or text need more room than an average one's.
        by_id[ids[key]]["size"] = node.get("_meta", {}).get("size", by_id[ids[key]]["size"])
    links = connect(graph, ids, by_id)
    try:
        columns = layout.columns_of(by_id, links)
    except layout.LayoutError as error:
        raise WorkflowError(str(error)) from None
    layout.number_in_order(nodes, columns)
    frames = []
    if groups:
        numbered = {title: [ids[key] for key in keys] for title, keys in groups.items()}
        below_the_note = layout.note_height(note) + layout.GAP if note else 0
        frames = layout.place_groups(nodes, links, numbered, below_the_note)
    else:
        layout.place(nodes, columns)
    for key, (x, y) in (positions or {}).items():
        by_id[ids[key]]["pos"] = [x, y]
    if note:
        nodes.append(layout.note(max(by_id) + 1, note))
    return {
        # The same graph always gets the same id: writing a workflow again changes nothing.
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(graph, sort_keys=True))),
        "revision": 0,
        "last_node_id": max(node["id"] for node in nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": frames,
        "config": {},
        "extra": {"ds": layout.first_view(nodes)},
        "version": 0.4,
    }


def number_nodes(graph: Graph) -> dict[str, int]:
    """Integer ids for the nodes: their own where all are numbers, else counted from 1."""
    if all(key.isdigit() for key in graph):
        return {key: int(key) for key in graph}
    return {key: number for number, key in enumerate(graph, start=1)}


def is_link(value: Any) -> bool:
    """Whether an API input is a link: a node id and an output slot."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def ui_node(node_id: int, node: dict, inputs: list[Input]) -> dict:
    """A node of a workflow file, not yet connected or placed."""
    inputs = [slot for entry in inputs for slot in grown(entry, node["inputs"])]
    unknown = set(node["inputs"]) - {entry.name for entry in inputs}
    if unknown:
        raise WorkflowError(f"{node['class_type']} (node {node_id}) has no input {', '.join(sorted(unknown))}")
    sockets: list[dict] = [{"name": e.name, "type": e.kind, "link": None} for e in inputs if not e.is_widget]
    values = []
    height = SLOT
    for entry in inputs:
        if not entry.is_widget:
            continue
        value = node["inputs"].get(entry.name, entry.default())
        if is_link(value):
            sockets.append({"name": entry.name, "type": entry.kind, "widget": {"name": entry.name}, "link": None})
            value = entry.default()
        values += [value, *entry.extra_values()]
        if not entry.is_hidden:
            height += SLOT * (1 + len(entry.extra_values())) + TEXT * bool(entry.options.get("multiline"))
    workflow_node = {
        "id": node_id,
        "type": node["class_type"],
        "pos": [0, 0],
        "size": [layout.WIDTH, height + SLOT * len(sockets)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": sockets,
        "outputs": [],
        "properties": {"Node name for S&R": node["class_type"]},
        "widgets_values": values,
    }
    meta = node.get("_meta", {})
    if meta.get("title"):
        workflow_node["title"] = meta["title"]
    if meta.get("models"):
        # The frontend offers to download these where they are missing.
        workflow_node["properties"]["models"] = meta["models"]
    return workflow_node


def grown(entry: Input, values: dict) -> list[Input]:
    """A growing input as the slots that are linked and one that is free; any other input as it is."""
    if entry.kind != GROWING:
        return [entry]
    template = entry.options["template"]
    ((kind, *_),) = next(section.values() for section in template["input"].values() if section)
    count = sum(name.startswith(f"{entry.name}.") for name in values)
    names = [f"{entry.name}.{template['prefix']}{i}" for i in range(min(count + 1, template["max"]))]
    return [Input(name, kind, {}) for name in names]


def add_outputs(node: dict, info: dict) -> None:
    """Gives a node the output slots of its type, and room below for what an output node shows."""
    if info.get("output_node"):
        node["size"][1] += PREVIEW
    for slot, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True)):
        node["outputs"].append({"name": name, "type": kind, "slot_index": slot, "links": []})


def connect(graph: Graph, ids: dict[str, int], nodes: dict[int, dict]) -> list[list]:
    """Makes the table of links and writes their ids into the slots at both ends."""
    links = []
    for key, node in graph.items():
        target = nodes[ids[key]]
        for slot, entry in enumerate(target["inputs"]):
            value = node["inputs"].get(entry["name"])
            if value is None:
                continue
            if not is_link(value) or value[0] not in ids or value[1] >= len(nodes[ids[value[0]]]["outputs"]):
                raise WorkflowError(f"{target['type']}.{entry['name']} (node {key}): {value!r} is no output of a node")
            source = nodes[ids[value[0]]]
            output = source["outputs"][value[1]]
            link = len(links) + 1
            links.append([link, source["id"], value[1], target["id"], slot, output["type"]])
            entry["link"] = link
            output["links"].append(link)
    return links


def read_object_info(source: str) -> dict:
    """The nodes of a server, by its address or from a file."""
    if source.startswith("http"):
        with urllib.request.urlopen(source.rstrip("/") + "/object_info") as response:
            return json.load(response)
    return json.loads(Path(source).read_text(encoding="utf-8"))


def main(direction: str, source: str, target: str, nodes: str) -> None:
    """Converts one file."""
    content = json.loads(Path(source).read_text(encoding="utf-8"))
    info = read_object_info(nodes)
    converted = ui_to_api(content, info) if direction == "to-api" else api_to_ui(content, info)
    Path(target).write_text(json.dumps(converted, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 5 or sys.argv[1] not in ("to-api", "to-ui"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
