"""What a shipped workflow is made of, and where it is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.graph import Graph

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"


def template_folders() -> tuple[Path, ...]:
    """The folders that hold the workflows; each gets the same files."""
    return (WORKFLOWS,)


@dataclass(frozen=True)
class Template:
    """A shipped workflow.

    Attributes:
        graph: API format.
        groups: a group's title to the keys of its nodes, from left to right; every node is in one.
        note: Markdown: what the workflow does, which files go where, and what to press.
    """

    graph: Graph
    groups: dict[str, list[str]]
    note: str


def node(kind: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    """A node in API format. A link is [key of a node, number of its output]."""
    made: dict[str, Any] = {"class_type": kind, "inputs": inputs}
    if title:
        made["_meta"] = {"title": title}
    return made


def sampled(model: list, title: str) -> Graph:
    """Nodes that sample with a model and show the pictures; their keys end in the title.

    They take the prompt from the nodes "guidance" and "empty", the latent from "latent", the decoder from "vae".
    """
    return {
        f"sample {title}": node(
            "KSampler",
            seed=1,
            steps=20,
            cfg=1.0,  # FLUX has its guidance inside: the negative prompt is not used
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
            positive=["guidance", 0],
            negative=["empty", 0],
            latent_image=["latent", 0],
            model=model,
        ),
        f"decode {title}": node("VAEDecode", samples=[f"sample {title}", 0], vae=["vae", 0]),
        f"show {title}": node("PreviewImage", title, images=[f"decode {title}", 0]),
    }


def probed() -> Graph:
    """Nodes that sample with the probe "attention", and show where the pictures attend to its word."""
    return {
        **sampled(["attention", 0], "probed"),
        "maps": node(
            "EraseAnything_AttentionMaps",
            attention=["attention", 2],
            samples=["sample probed", 0],
            image=["decode probed", 0],
        ),
        "bars": node("PreviewImage", "shares", images=["maps", 2]),
    }


def sampled_keys(*titles: str) -> list[str]:
    """The keys of the nodes of `sampled`."""
    return [f"{step} {title}" for title in titles for step in ("sample", "decode", "show")]


def before_and_after(trainer: str) -> Graph:
    """Nodes that show what a trainer hands out: its pictures and its report."""
    pictures = node("PreviewImage", "before | after", images=[trainer, 3])
    report = node("PreviewAny", "report", source=[trainer, 2])
    pictures["_meta"]["size"] = [520, 420]
    report["_meta"]["size"] = [520, 300]
    return {"pictures": pictures, "report": report}
