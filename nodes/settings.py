"""The node that sets single values of a training, over its preset."""

from typing import Any

import torch
from comfy_api.latest import io

from ..eraseanything_core.concepts.prompts import lines_of, words_of
from ..eraseanything_core.erasers.registry import NAMES, own_settings
from ..eraseanything_core.quoting import quoted
from .shared.inputs import CATEGORY_TRAINING, check_range
from .shared.setting_groups import ATTENTION_BLOCKS, BLOCKS, GROUPS, METHOD, PIXELS_A_TOKEN, WORDS
from .shared.texts import check_texts
from .shared.types import ERASE_SETTINGS, PICTURES

LISTS = {"synonyms": words_of, "irrelevant": words_of, "templates": lines_of, "retain": lines_of}


def typed_words(texts: dict[str, str]) -> dict[str, Any]:
    """The texts that are not empty, as `EraseConfig` has them."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        if text.strip():
            values[name] = LISTS[name](text) if name in LISTS else text
    return values


def chosen_method(choice: dict[str, Any]) -> dict[str, Any]:
    """The method and its own settings, as `EraseConfig` has them.

    Args:
        choice: the method's label under `method`, and the fields that it has shown.
    """
    name = NAMES[choice[METHOD]]
    values = {own: value for own, value in choice.items() if own != METHOD and value is not None}
    default = own_settings(name, {})
    changed = {own: value for own, value in values.items() if value != getattr(default, own)}
    return {METHOD: name, "method_settings": tuple(changed.items())}


def check_value(field: io.Input, value: Any) -> None:
    """Raises ValueError when a field of the node does not take a value."""
    check_range(field, value)
    if isinstance(field, io.DynamicCombo.Input):
        check_choice(field, value)
    if field.id in ("width", "height") and value % PIXELS_A_TOKEN:
        raise ValueError(f"`{field.id}` is {value}: type a multiple of {PIXELS_A_TOKEN}")
    if field.id == "templates":
        for line in lines_of(value):
            if "{}" not in line:
                raise ValueError(f"the template {quoted(line)} has no {{}}: put it where the concept stands")


def check_choice(field: io.DynamicCombo.Input, values: dict[str, Any]) -> None:
    """Raises ValueError when a choice is none of the offered ones, or a field that it shows holds a wrong value."""
    by_name = {option.key: option.inputs for option in field.options}
    chosen = values.get(field.id)
    if chosen not in by_name:
        raise ValueError(f"`{field.id}` is {quoted(str(chosen))}: choose one of {', '.join(by_name)}")
    for own in by_name[chosen]:
        if values.get(own.id) is not None:
            check_value(own, values[own.id])


def check_group(values: dict[str, Any]) -> None:
    """Raises ValueError when the shown group holds a value that its field does not take; None stands for a link.

    Args:
        values: the name of the group under `group`, and its fields.
    """
    chosen = values.get("group")
    if chosen not in GROUPS:
        raise ValueError(f"`group` is {quoted(chosen)}: choose one of {', '.join(GROUPS)}")
    for field in GROUPS[chosen]():
        value = values.get(field.id)
        if value is not None:
            check_value(field, value)
            check_texts({field.id: value})


class EraseSettings(io.ComfyNode):
    """Sets one group of the trainer's settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        options = [io.DynamicCombo.Option(name, inputs()) for name, inputs in GROUPS.items()]
        return io.Schema(
            node_id="EraseAnything_EraseSettings",
            display_name="Erase Settings",
            category=CATEGORY_TRAINING,
            description="Sets one group of Erase Trainer's settings. Everything this node shows counts, over any "
            "preset. Chain several of these nodes to set several groups.",
            search_aliases=["erase options", "training settings", "learning rate", "steps"],
            inputs=[
                io.DynamicCombo.Input(
                    "group",
                    options=options,
                    tooltip="What to set. Everything shown below it counts, over any preset; only empty texts do not.",
                ),
                ERASE_SETTINGS.Input(
                    "settings",
                    optional=True,
                    tooltip="From another Erase Settings. Where both set the same, this node counts.",
                ),
                io.Image.Input(
                    PICTURES,
                    optional=True,
                    tooltip="For the method Concept Ablation: your pictures of what is to be painted instead. Without "
                    "them the model draws such pictures itself.",
                ),
            ],
            outputs=[
                ERASE_SETTINGS.Output(display_name="settings", tooltip="For Erase Trainer, or the next of these.")
            ],
        )

    @classmethod
    def validate_inputs(cls, **values: Any) -> bool:
        # Fields of a group can be had by ** only, and ComfyUI then leaves the check of all values to the node. It
        # would repeat a message that is returned for every field; one that is raised it says once.
        check_group(values.get("group", {}))
        return True

    @classmethod
    def execute(
        cls, group: dict[str, Any], settings: dict[str, Any] | None = None, pictures: torch.Tensor | None = None
    ) -> io.NodeOutput:
        check_group(group)
        # ComfyUI gives None for a field that the graph does not hold.
        values = {name: value for name, value in group.items() if name != "group" and value is not None}
        if group["group"] == WORDS:
            values = typed_words(values)
        if ATTENTION_BLOCKS in values:
            values[ATTENTION_BLOCKS] = BLOCKS[values[ATTENTION_BLOCKS]]
        if METHOD in values:
            values |= chosen_method(values[METHOD])
        if pictures is not None:
            values[PICTURES] = pictures
        return io.NodeOutput({**(settings or {}), **values})


NODES = [EraseSettings]
