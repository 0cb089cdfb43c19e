"""Graphs with Erase Settings nodes: each holds one group of a training's settings, and they are chained."""

from collections.abc import Mapping
from typing import Any

from scripts.graph import Graph

TRAINER = "EraseAnything_EraseTrainer"
SETTINGS = "EraseAnything_EraseSettings"
# The node's groups; tests/comfy/test_server.py compares them with the server's.
GROUPS = {
    "length": (
        "steps",
        "refresh_every",
        "monitor_every",
        "look_pictures",
        "look_steps",
        "stop_when_gone",
        "stop_drift",
    ),
    "learning rates": (
        "lr_low",
        "lr_up",
        "optimizer",
        "lr_schedule",
        "adapt_rate",
        "warmup_steps",
        "max_grad_norm",
        "weight_decay",
        "batch_size",
        "retain_batch_size",
        "gradient_accumulation_steps",
    ),
    "LoRA": ("targets", "rank", "alternate"),
    "losses": (
        "esd_weight",
        "attn_weight",
        "attn_share",
        "retain_weight",
        "rsc_weight",
        "rsc_share",
        "eta",
        "tau",
        "k_irrelevant",
        "retain_loss",
        "paper_sign",
        "attention_reduction",
        "attention_blocks",
        "divergence",
        "alpha",
        "divergence_width",
    ),
    "pictures": (
        "width",
        "height",
        "guidance",
        "sampling_steps",
        "own_times",
        "cached_trajectories",
        "cached_retain_trajectories",
        "rsc_samples",
        "erase_time",
        "rsc_time",
        "importance_sampling",
        "shared_points",
        "on_policy_share",
    ),
    "words": ("synonyms", "irrelevant", "templates", "neutral", "retain"),
    "sentences": ("sentences", "shuffle_rate", "synonym_rate", "retain_prompt_share"),
    "memory and saving": ("dtype", "gradient_checkpointing", "save_every", "deterministic"),
    "method": ("method", "meta_weight"),
}

UNWATCHED = {"monitor_every": 0, "stop_when_gone": False, "adapt_rate": False}  # for runs that are too short to measure


def settings_nodes(key: str, values: Mapping[str, Any], source: list | None = None) -> tuple[Graph, list]:
    """The nodes that hold some settings, one a group, in a chain.

    Args:
        key: begins the keys of the nodes.
        values: by name of the setting. A field that is not among them is not in the graph and does not count. A
            method's own settings are named `method.` and the setting.
        source: a link to settings that come before them.

    Returns:
        The nodes, and the link of the last one.

    Raises:
        ValueError: no group has a setting of this name.
    """
    unknown = {name.split(".")[0] for name in values} - {name for names in GROUPS.values() for name in names}
    if unknown:
        raise ValueError(f"Erase Settings has no {', '.join(sorted(unknown))}")
    graph: Graph = {}
    for group, names in GROUPS.items():
        fields = {f"group.{name}": value for name, value in values.items() if name.split(".")[0] in names}
        if fields:
            inputs = {"group": group, **fields}
            if source:
                inputs["settings"] = source
            graph[f"{key} {group}"] = {"class_type": SETTINGS, "inputs": inputs, "_meta": {"title": group}}
            source = [f"{key} {group}", 0]
    if source is None:
        raise ValueError("there are no settings")
    return graph, source


def with_settings(graph: Graph, values: Mapping[str, Any]) -> Graph:
    """A graph whose trainers get some settings, over those that they have.

    Args:
        graph: API format; it stays as it is.
        values: see `settings_nodes`.
    """
    changed = dict(graph)
    for key, node in graph.items():
        if node["class_type"] == TRAINER:
            nodes, link = settings_nodes(f"{key} settings", values, node["inputs"].get("settings"))
            changed |= nodes
            changed[key] = {**node, "inputs": {**node["inputs"], "settings": link}}
    return changed
