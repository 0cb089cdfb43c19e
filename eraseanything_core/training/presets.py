"""The trainer's presets: each is a table of the settings that it replaces. Every other setting stays as it is."""

from collections.abc import Mapping
from typing import Any

from ..concepts.templates import GENERIC_PROMPTS
from ..quoting import quoted
from .config import EraseConfig

# The paper's method: Equations 4 and 5 as printed, on trajectories of the frozen model alone.
_PAPER_METHOD: dict[str, Any] = {
    "retain_loss": "paper",
    "paper_sign": True,
    "eta": 1.0,
    "alternate": True,
    "sampling_steps": 28,
    "rank": 8,
    "targets": "paper",
    "on_policy_share": 0.0,
    "esd_weight": 1.0,
    "guidance": 3.5,
    # The same pictures for the whole run: the paper has 6 to 10.
    "cached_trajectories": 8,
}

# What three of them share. Values of the text stream, because those carry what a style adds; keys and queries alone
# leave it whole. A look draws its pictures in few steps, so that all looks take at most a fifth of the compute.
_ERASER: dict[str, Any] = {
    "targets": "text_kv",
    # Relations go at this rate and keep their neighbours; twice as much costs a third of them. Styles need twice as
    # much, which `adapt_rate` finds at the first look.
    "lr_low": 8e-3,
    "lr_up": 8e-3,
    # At a constant rate what stays moves to and fro until the end.
    "lr_schedule": "wsd",
    # One update on the sum. Adam makes steps of one size from any gradient, so an optimizer of its own lets the
    # preserving loss undo as much as the erasing loss does, however little there is to preserve.
    "alternate": False,
    "retain_weight": 3.0,
    # Styles go as well by pushing further, and take the object of their pictures with them.
    "eta": 0.5,
    "guidance": 3.5,
    # Few points on each trajectory, so that there can be more of them: each has a sentence of its own. What is erased
    # in few sentences stays in others.
    "sampling_steps": 5,
    "cached_trajectories": 16,
    # Most points say nearly nothing about the concept.
    "importance_sampling": True,
    # Many prompts at few points: what stays has to be said in more words than what goes.
    "shared_points": True,
    "cached_retain_trajectories": 64,
    "sentences": 128,
    "retain_prompt_share": 0.75,
    "on_policy_share": 0.25,
    # L_rsc costs an eighth of a pair, and no concept of benchmarks/search.md needs it.
    "rsc_weight": 0.0,
    "look_pictures": 5,
    "look_steps": 5,
    "stop_when_gone": True,
    "adapt_rate": True,
}

PRESETS: dict[str, dict[str, Any]] = {
    # One epoch, so the student never walks a trajectory of its own.
    "quick": {
        **_ERASER,
        "on_policy_share": 0.0,
        "steps": 88,
        "refresh_every": 88,
        "monitor_every": 22,
        "look_pictures": 3,
    },
    "balanced": {
        **_ERASER,
        "steps": 92,
        "refresh_every": 46,
        # As many points as 24 walks of five steps, on more sentences.
        "sampling_steps": 4,
        "cached_trajectories": 30,
        # What goes at four noise levels alone stays in pictures of a sampler with twenty.
        "own_times": True,
        "monitor_every": 23,
        "look_steps": 4,
    },
    "thorough": {**_ERASER, "steps": 400, "refresh_every": 100, "monitor_every": 50, "look_pictures": 10},
    # The paper trains 1,000 steps of which every other one erases: 500 pairs here.
    "paper": {
        **_PAPER_METHOD,
        "steps": 500,
        "refresh_every": 500,
        "shuffle_rate": 1.0,
        "synonym_rate": 0.0,
        "attn_weight": 1.0,
        "attention_reduction": "sum",
        "retain_weight": 1.0,
        "rsc_weight": 1.0,
        "lr_low": 1e-3,
        "lr_up": 5e-4,
    },
    # The published code's weights, learning rate and last-block maps, without its faults.
    "reference": {
        **_PAPER_METHOD,
        "steps": 100,
        "refresh_every": 100,
        "shuffle_rate": 0.9,
        "attn_weight": 0.001,
        "attention_reduction": "l2",
        "retain_weight": 0.1,
        "rsc_weight": 0.1,
        "lr_low": 1e-3,
        "lr_up": 1e-3,
        "attention_blocks": (-1,),
        "weight_decay": 1e-5,
        "synonym_rate": 0.5,
    },
}


def run_config(words: Mapping[str, Any], preset: str, typed: Mapping[str, Any]) -> EraseConfig:
    """The settings of a run: the defaults, over them the preset, over it what the user typed.

    Args:
        words: concept, synonyms, irrelevant words, tiers, templates, neutral and retain; see `ConceptSet.settings`.
        preset: a name of `PRESETS`.
        typed: settings that the user chose. They always win.

    Raises:
        ValueError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {quoted(preset)}; there are {', '.join(PRESETS)}")
    chosen = {**PRESETS[preset], **typed}
    settings = {**words, **chosen}
    if not settings.get("retain") and not settings.get("irrelevant"):
        settings["retain"] = GENERIC_PROMPTS
    # The reverse self-contrastive loss compares with synonyms and irrelevant words. WordNet does not know every word.
    complete = bool(settings.get("synonyms")) and bool(settings.get("irrelevant"))
    # A typed weight is taken as it is.
    for name in ("attn", "rsc"):
        if f"{name}_weight" in typed and f"{name}_share" not in typed:
            settings[f"{name}_share"] = 0.0
    if "rsc_weight" not in typed:
        settings["rsc_weight"] = chosen.get("rsc_weight", EraseConfig.rsc_weight) if complete else 0.0
    return EraseConfig(**settings)
