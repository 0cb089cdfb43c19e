"""The blueprints: graphs that ComfyUI's page offers as one node, as code. `python -m scripts.workflows` writes them."""

import json
import uuid
from dataclasses import dataclass

from scripts.graph import Graph, Input, api_to_ui, inputs_of
from scripts.workflows.template import ROOT, node

SUBGRAPHS = ROOT / "subgraphs"  # where ComfyUI looks for blueprints of a pack; a file's name is the blueprint's
SIZE = 1024  # px of the pictures, as the flux templates have it
# The ids that every subgraph's two ends have, and px of their boxes.
INPUTS = -10
OUTPUTS = -20
BOX = 120
BOX_LINE = 20
BOX_BORDER = 40
GAP = 200  # px from a box to the nodes
NODE_SIZE = [340, 420]  # px of the node that stands for the blueprint


@dataclass(frozen=True)
class Blueprint:
    """A graph with ends.

    Attributes:
        description: a sentence for the page.
        graph: API format. A value that is set from outside stands in it with its default.
        inputs: by the name outside, the key and the input of each node that gets the value.
        outputs: by the name outside, the key of a node and the number of its output.
    """

    description: str
    graph: Graph
    inputs: dict[str, list[tuple[str, str]]]
    outputs: dict[str, tuple[str, int]]


def drawn(when: str, **model: list) -> Graph:
    """Nodes that draw the prompt with a model; their keys end in `when`."""
    return {
        f"sample {when}": node(
            "KSampler",
            when,
            seed=0,
            steps=20,
            cfg=1.0,  # FLUX has its guidance inside: the negative prompt is not used
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
            positive=["guidance", 0],
            negative=["empty", 0],
            latent_image=["latent", 0],
            **model,
        ),
        f"decode {when}": node("VAEDecode", samples=[f"sample {when}", 0]),
        f"show {when}": node("PreviewImage", when, images=[f"decode {when}", 0]),
    }


def erase_and_compare() -> Blueprint:
    """Erases a concept, and draws a prompt with the original model and with the erased one."""
    graph = {
        "prompt": node("CLIPTextEncode", text=""),
        "guidance": node("FluxGuidance", conditioning=["prompt", 0], guidance=3.5),
        "empty": node("ConditioningZeroOut", conditioning=["prompt", 0]),
        "latent": node("EmptySD3LatentImage", width=SIZE, height=SIZE, batch_size=1),
        # Below the others of its column: in Nodes 2.0 it grows with what it says.
        "erase": node("EraseAnything_EraseTrainer", concept="", preset="balanced", output_name="eraser", seed=0),
        **drawn("before"),
        **drawn("after", model=["erase", 0]),
    }
    inputs = {
        "model": [("erase", "model"), ("sample before", "model")],
        "clip": [("erase", "clip"), ("prompt", "clip")],
        "vae": [("erase", "vae"), ("decode before", "vae"), ("decode after", "vae")],
        "settings": [("erase", "settings")],
        "concept": [("erase", "concept")],
        "preset": [("erase", "preset")],
        "prompt": [("prompt", "text")],
        "seed": [("erase", "seed"), ("sample before", "seed"), ("sample after", "seed")],
        "width": [("latent", "width")],
        "height": [("latent", "height")],
    }
    outputs = {
        "erased model": ("erase", 0),
        "lora": ("erase", 1),
        "before": ("decode before", 0),
        "after": ("decode after", 0),
        "report": ("erase", 2),
    }
    text = "Trains an eraser of a concept, and draws a prompt before and after, from the same noise."
    return Blueprint(text, graph, inputs, outputs)


def blueprints() -> dict[str, Blueprint]:
    """All of them, by the name that people see."""
    return {"Erase a concept and compare": erase_and_compare()}


def identity(*names: str) -> str:
    """The same id for the same names, so that writing a file again changes nothing."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(names)))


class Subgraph:
    """A blueprint's graph in the form of its file, with links to its ends.

    Args:
        name: that people see.
        blueprint: of this name.
        object_info: what the server answers to /object_info.
    """

    def __init__(self, name: str, blueprint: Blueprint, object_info: dict) -> None:
        self.name = name
        self.blueprint = blueprint
        self.object_info = object_info
        workflow = api_to_ui(blueprint.graph, object_info)
        self.nodes = dict(zip(blueprint.graph, workflow["nodes"], strict=True))
        self.links: list[dict] = []
        for _, source, source_slot, target, target_slot, kind in workflow["links"]:
            self.link((source, source_slot), (target, target_slot), kind)

    def link(self, source: tuple[int, int], target: tuple[int, int], kind: str) -> int:
        """Adds a link between two ids and slots, and returns its number."""
        number = len(self.links) + 1
        ends = {"origin_id": source[0], "origin_slot": source[1], "target_id": target[0], "target_slot": target[1]}
        self.links.append({"id": number, **ends, "type": kind})
        return number

    def input_slot(self, key: str, name: str) -> int:
        """The number of a node's slot, which is added where the node has only a widget."""
        slots = self.nodes[key]["inputs"]
        names = [slot["name"] for slot in slots]
        if name not in names:
            slots.append({"name": name, "type": self.entry(key, name).kind, "widget": {"name": name}})
            names.append(name)
        return names.index(name)

    def entry(self, key: str, name: str) -> Input:
        """An input of a node's type."""
        return next(e for e in inputs_of(self.nodes[key]["type"], self.object_info) if e.name == name)

    def inputs(self) -> list[dict]:
        """The inputs, linked to the nodes that get their values."""
        made = []
        for place, (outside, targets) in enumerate(self.blueprint.inputs.items()):
            kind = self.entry(*targets[0]).kind
            numbers = []
            for key, name in targets:
                slot = self.input_slot(key, name)
                number = self.link((INPUTS, place), (self.nodes[key]["id"], slot), kind)
                self.nodes[key]["inputs"][slot]["link"] = number
                numbers.append(number)
            made.append({"id": identity(self.name, outside), "name": outside, "type": kind, "linkIds": numbers})
        return made

    def outputs(self) -> list[dict]:
        """The outputs, linked to the nodes that they come from."""
        made = []
        for place, (outside, (key, slot)) in enumerate(self.blueprint.outputs.items()):
            output = self.nodes[key]["outputs"][slot]
            number = self.link((self.nodes[key]["id"], slot), (OUTPUTS, place), output["type"])
            output["links"].append(number)
            entry = {"id": identity(self.name, "out", outside), "name": outside, "type": output["type"]}
            made.append(entry | {"linkIds": [number]})
        return made

    def definition(self) -> dict:
        """The subgraph as its file has it."""
        inputs = self.inputs()
        outputs = self.outputs()
        nodes = list(self.nodes.values())
        right = max(inner["pos"][0] + inner["size"][0] for inner in nodes)
        last = {"lastNodeId": max(inner["id"] for inner in nodes), "lastLinkId": len(self.links)}
        return {
            "id": identity(self.name, json.dumps(self.blueprint.graph, sort_keys=True)),
            "version": 1,
            "state": {"lastGroupId": 0, **last, "lastRerouteId": 0},
            "revision": 0,
            "config": {},
            "name": self.name,
            "inputNode": {"id": INPUTS, "bounding": [-GAP - BOX, 0, BOX, BOX_BORDER + BOX_LINE * len(inputs)]},
            "outputNode": {"id": OUTPUTS, "bounding": [right + GAP, 0, BOX, BOX_BORDER + BOX_LINE * len(outputs)]},
            "inputs": inputs,
            "outputs": outputs,
            "widgets": [],
            "nodes": nodes,
            "groups": [],
            "links": self.links,
            "extra": {},
            "category": "EraseAnything",
            "description": self.blueprint.description,
        }

    def outer_node(self, definition: dict) -> dict:
        """The node that stands for the subgraph; a value that can be typed shows its widget."""
        inputs = []
        for outside, targets in self.blueprint.inputs.items():
            entry = self.entry(*targets[0])
            slot = {"name": outside, "type": entry.kind, "link": None}
            inputs.append(slot | {"widget": {"name": outside}} if entry.is_widget else slot)
        return {
            "id": 1,
            "type": definition["id"],
            "pos": [0, 0],
            "size": NODE_SIZE,
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": inputs,
            "outputs": [{"name": e["name"], "type": e["type"], "links": []} for e in definition["outputs"]],
            "properties": {},
            "widgets_values": [],
            "title": self.name,
        }


def to_file(name: str, blueprint: Blueprint, object_info: dict) -> dict:
    """A blueprint as its file has it: one node, and the subgraph that it stands for; see `Subgraph`."""
    subgraph = Subgraph(name, blueprint, object_info)
    definition = subgraph.definition()
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [subgraph.outer_node(definition)],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [definition]},
        "extra": {},
    }
