"""The trainer's presets: each is a table of the settings that it replaces. Every other setting stays as it is."""

from typing import Any

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
}

PRESETS: dict[str, dict[str, Any]] = {
    # One epoch, so the student never walks a trajectory of its own.
    "quick": {
        "steps": 100,
        "refresh_every": 100,
        "sampling_steps": 12,
        "cached_trajectories": 8,
        "cached_retain_trajectories": 6,
        "rsc_samples": 16,
    },
    "balanced": {
        "sampling_steps": 12,
        "cached_trajectories": 6,
        "cached_retain_trajectories": 4,
        "rsc_samples": 12,
        "on_policy_share": 0.25,
        "steps": 200,
        "refresh_every": 100,
    },
    "thorough": {
        "sampling_steps": 12,
        "cached_trajectories": 6,
        "cached_retain_trajectories": 4,
        "rsc_samples": 12,
        "on_policy_share": 0.25,
        "steps": 500,
        "refresh_every": 250,
    },
    # The paper trains 1,000 steps of which every other one erases: 500 pairs here.
    "paper": {
        **_PAPER_METHOD,
        "steps": 500,
        "attn_weight": 1.0,
        "retain_weight": 1.0,
        "rsc_weight": 1.0,
        "lr_low": 1e-3,
        "lr_up": 5e-4,
    },
    # The published code's weights, learning rate and last-block maps, without its faults.
    "reference": {
        **_PAPER_METHOD,
        "steps": 100,
        "attn_weight": 0.001,
        "retain_weight": 0.1,
        "rsc_weight": 0.1,
        "lr_low": 1e-3,
        "lr_up": 1e-3,
        "attention_blocks": (-1,),
        "weight_decay": 1e-5,
        "synonym_rate": 0.5,
    },
}
