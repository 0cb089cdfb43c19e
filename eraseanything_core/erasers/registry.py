"""The methods that a user can choose: the one table of them, and what each makes of a run's settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..quoting import quoted
from ..training.config import EraseConfig
from ..training.method import Method
from .concept_ablation import ConceptAblation
from .eap import AdversarialPreservation
from .eraseanything_pp import EraseAnythingPlus
from .eraseflow import EraseFlow
from .esd import Esd
from .gem import Gem
from .mace_method import Mace
from .meta_unlearning import meta_graphs
from .slider import Slider
from .spm import Spm

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Method,
        EraseAnythingPlus,
        Esd,
        ConceptAblation,
        AdversarialPreservation,
        Spm,
        Slider,
        EraseFlow,
        Gem,
        Mace,
    )
}
NAMES = {method.label: name for name, method in METHODS.items()}  # by what the node calls it


def method_class(name: str) -> type[Method]:
    """The class of a method; raises ValueError when there is none of this name."""
    if name not in METHODS:
        raise ValueError(f"there is no method {quoted(name)}; there are {', '.join(METHODS)}")
    return METHODS[name]


def own_settings(name: str, values: Mapping[str, Any]) -> Any:
    """A method's own settings.

    Args:
        name: of the method.
        values: those that differ from the defaults.

    Raises:
        ValueError: there is no such method, or it has no setting of a name.
    """
    kind = method_class(name).own_settings
    known = [field.name for field in dataclasses.fields(kind)]
    for setting in values:
        if setting not in known:
            raise ValueError(f"{name} has no setting {quoted(setting)}; it has {', '.join(known) or 'none'}")
    return kind(**values)


def settings_of(name: str, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a method sets over a preset: fields of an `EraseConfig`, over which come those that a user types.

    Args:
        name: of the method.
        values: its own settings, where they differ from the defaults.

    Raises:
        ValueError: see `own_settings`.
    """
    values = values or {}
    own = own_settings(name, values)
    return method_class(name).run_settings(own) | {"method": name, "method_settings": tuple(values.items())}


def method_of(config: EraseConfig) -> Method:
    """The method of a run's settings.

    Raises:
        ValueError: the method cannot work with them. The message says what to set.
    """
    values = {str(name): value for name, value in config.method_settings}
    kind = method_class(config.method)
    check_method(kind, config)
    extras = (meta_graphs,) if config.meta_weight else ()
    return kind(own_settings(config.method, values), extras)


def check_method(kind: type[Method], config: EraseConfig) -> None:
    """Raises ValueError when a method cannot work with the settings of a run."""
    label = kind.label
    if config.attn_weight and not kind.reads_attention:
        raise ValueError(f"{label} has no loss on attention: set attn_weight to 0")
    if config.divergence != "squared" and not kind.takes_divergence:
        raise ValueError(f"{label} has a loss of its own: set divergence to squared")
    own = kind.run_settings(kind.own_settings())
    if config.walk != own.get("walk", "concept"):
        raise ValueError(f"{label} needs walk to be {own.get('walk', 'concept')}")
    if config.anchor_pictures and not kind.takes_pictures:
        raise ValueError(f"{label} takes no pictures: choose Concept Ablation, or unlink `pictures`")
    if config.anchor_pictures and config.on_policy_share:
        raise ValueError("pictures are no walks of the student: set on_policy_share to 0, or unlink `pictures`")
    if not kind.needs_retained:
        return
    if not config.retain_weight or config.retain_loss != "teacher":
        raise ValueError(f"{label} needs prompts that must stay: set retain_weight above 0 and retain_loss to teacher")
    if kind.any_retained and (config.shared_points or config.on_policy_share):
        raise ValueError(f"{label} needs trajectories of the original model alone: set on_policy_share to 0")
