"""Erase Settings, and what the trainer makes of a preset and of settings."""

import re

import pytest
from comfy_api.latest import io

from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.erasers.registry import settings_of
from eraseanything_core.training.presets import PRESETS
from scripts.server import GraphError
from tests.comfy.training.node_runs import execute


@pytest.mark.parametrize("preset", PRESETS)
def test_a_typed_value_wins_over_the_preset(asked, preset):
    plain = asked(preset)
    assert all(plain[name] == value for name, value in PRESETS[preset].items())
    changed = asked(preset, eta=0.3, steps=7)
    assert {name for name in plain if plain[name] != changed[name]} == {"eta", "steps"}
    assert (changed["eta"], changed["steps"]) == (0.3, 7)


def test_the_report_names_what_differs_from_the_preset(trainer_node, widgets, loras):
    """Not a value that the preset would have set as well; no line where nothing differs."""
    from pack_under_test.nodes.train import changed_settings

    typed = widgets["settings"] | {"eta": PRESETS["balanced"]["eta"]}
    report = execute(trainer_node, widgets | {"settings": typed}).args[2]
    (line,) = [line for line in report.splitlines() if line.startswith("settings over the preset balanced: ")]
    steps = PRESETS["balanced"]["steps"]
    assert f"steps 2 instead of {steps}" in line and "irrelevant 3 entries instead of" in line and "eta" not in line
    found = sample_offline(ConceptRequest("cat"))
    assert changed_settings(found, "balanced", {"steps": steps}) == ""


def groups(settings_node):
    """The fields of each group of Erase Settings."""
    (combo,) = (i for i in settings_node.define_schema().inputs if i.id == "group")
    return {option.key: option.inputs for option in combo.options}


def another(field):
    """A value that is not the default."""
    if isinstance(field, io.DynamicCombo.Input):
        return {field.id: "GEM"}
    if isinstance(field, io.Combo.Input):
        return next(option for option in field.options if option != field.default)
    if isinstance(field, io.String.Input):
        return "blue heart, {}"
    return not field.default if isinstance(field, io.Boolean.Input) else field.max


def default(field):
    """What the node shows at first."""
    if isinstance(field, io.DynamicCombo.Input):
        return {field.id: field.options[0].key}
    return field.default


def test_every_field_reaches_its_setting_and_no_other(settings_node, asked):
    """But a list of irrelevant words has no tiers, who sets gradient checkpointing has chosen, a method sets more."""
    plain = asked()
    of_gem = {name for name, value in settings_of("gem").items() if plain[name] != value}
    more = {"irrelevant": {"tiers"}, "gradient_checkpointing": {"auto"}, "method": of_gem}
    for group, fields in groups(settings_node).items():
        for field in fields:
            typed = execute(settings_node, {"group": {"group": group, field.id: another(field)}}).args[0]
            changed = asked(**typed)
            moved = {name for name in plain if plain[name] != changed[name]}
            assert moved == {field.id} | more.get(field.id, set()), field.id


def test_a_group_at_its_defaults_is_the_balanced_preset(settings_node, asked):
    """Every group but the words holds its fields. The run decides on memory until the last group is linked."""
    plain = asked()
    for group, fields in groups(settings_node).items():
        shown = {"group": group} | {field.id: default(field) for field in fields}
        (typed,) = execute(settings_node, {"group": shown}).args
        own = {"method_settings"} if group == "method" else set()
        assert set(typed) == (set() if group == "words" else {field.id for field in fields} | own)
        assert asked(**typed) | {"auto": True} == plain


def test_a_methods_own_settings_are_those_that_differ(settings_node, asked):
    """And what other settings hold goes over the method, in whatever order they are chained."""
    own = {"method": "EAP", "search_every": 10, "worst_share": 0.5}
    (first,) = execute(settings_node, {"group": {"group": "losses", "retain_weight": 7.0}}).args
    (typed,) = execute(settings_node, {"group": {"group": "method", "method": own}, "settings": first}).args
    assert typed == {"retain_weight": 7.0, "method": "eap", "method_settings": (("worst_share", 0.5),)}
    config = asked(**typed)
    assert (config["retain_weight"], config["eta"], config["neutral"]) == (7.0, 1.0, "")
    assert config["method_settings"] == (("worst_share", 0.5),)


def test_settings_are_chained_and_the_later_wins(settings_node):
    (first,) = execute(settings_node, {"group": {"group": "LoRA", "rank": 4, "alternate": False}}).args
    (second,) = execute(settings_node, {"group": {"group": "length", "steps": 9}, "settings": first}).args
    (third,) = execute(settings_node, {"group": {"group": "LoRA", "rank": 16}, "settings": second}).args
    assert third == {"rank": 16, "alternate": False, "steps": 9} and second["rank"] == 4
    words = {"group": "words", "retain": " a dog \n\na cat", "neutral": "{}", "synonyms": " "}
    (typed,) = execute(settings_node, {"group": words}).args
    assert typed == {"retain": ("a dog", "a cat"), "neutral": "{}"}


@pytest.mark.parametrize(
    "change, message",
    (
        ({"group": "pictures", "width": 100}, "`width` is 100: type a multiple of 16"),
        ({"group": "pictures", "height": 5000}, "`height` is 5000: type 16 to 4096"),
        ({"group": "learning rates", "lr_low": float("nan")}, "`lr_low` is nan: type 0 to 1"),
        ({"group": "LoRA", "targets": "everything"}, "`targets` is 'everything': choose one of "),
        ({"group": "words", "retain": "a \ud800"}, "`retain` holds "),
        (
            {"group": "words", "templates": "a photo of {}\na red star"},
            "the template 'a red star' has no {}: put it where the concept stands",
        ),
        ({"group": "colours"}, "`group` is 'colours': choose one of length, "),
        ({"group": "method", "method": {"method": "Magic"}}, "`method` is 'Magic': choose one of EraseAnything, "),
        (
            {"group": "method", "method": {"method": "GEM", "margin": 2.0}},
            "`margin` is 2.0: type 0.0 to 1.0",
        ),
    ),
    ids=str,
)
def test_settings_are_checked_before_queueing_and_when_they_run(settings_node, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        settings_node.validate_inputs(group=change)
    with pytest.raises(ValueError, match=re.escape(message)):
        execute(settings_node, {"group": change})
    linked = {"group": "pictures", "width": None}
    assert settings_node.validate_inputs(group=linked, settings=None) is True


def test_what_is_wrong_is_said_once(server, settings_node):
    """And not for every field of the group, which is what ComfyUI makes of a returned message."""
    (sizes,) = (fields for group, fields in groups(settings_node).items() if group == "pictures")
    inputs = {f"group.{field.id}": field.default for field in sizes}
    graph = {
        "1": {"class_type": "EraseAnything_EraseSettings", "inputs": {"group": "pictures", **inputs}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    graph["1"]["inputs"] |= {"group.width": 100, "group.height": 100}
    with pytest.raises(GraphError) as caught:
        server.queue(graph)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("EraseAnything_EraseSettings (node 1): ") and "`width` is 100: type a multiple of 16" in line
