"""What a run gets where nobody typed it."""

import pytest

pytest.importorskip("torch")

from eraseanything_core.concepts.templates import GENERIC_PROMPTS
from eraseanything_core.training.presets import PRESETS, run_config
from scripts.erase_settings import GROUPS


@pytest.mark.parametrize("preset", PRESETS)
def test_with_nothing_to_keep_generic_prompts_are_kept(preset):
    assert run_config({"concept": "xyzzy"}, preset, {}).retain == GENERIC_PROMPTS
    assert len(set(GENERIC_PROMPTS)) == len(GENERIC_PROMPTS) >= 8


@pytest.mark.parametrize(
    "known, retain",
    (
        ({"retain": ("a dog",)}, ("a dog",)),
        ({"irrelevant": ("dog", "house")}, ()),
    ),
    ids=("prompts", "words"),
)
def test_what_is_known_to_be_kept_is_kept_and_no_more(known, retain):
    """Whether the concept set has it, or the user typed it."""
    assert run_config({"concept": "xyzzy", **known}, "balanced", {}).retain == retain
    assert run_config({"concept": "xyzzy"}, "balanced", known).retain == retain


def test_what_a_preset_sets_can_be_set_by_hand():
    """But for the forms of the paper's losses, which only its two presets have."""
    fields = {name for names in GROUPS.values() for name in names}
    printed = {"retain_loss", "paper_sign", "attention_reduction", "attention_blocks"}
    for preset, settings in PRESETS.items():
        assert set(settings) - fields <= (printed if preset in ("paper", "reference") else set()), preset
