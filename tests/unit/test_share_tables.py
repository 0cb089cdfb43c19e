"""The tables of what two losses buy, and of objects whose style is erased, count what was measured."""

import pytest

from lab.measurements import objects, shares


def row(setting, acc_e):
    return {"setting": setting, "concept": "star", "count": 10, "acc_e": acc_e, "acc_g": 1, "acc_ir": 9} | {
        "acc_ir_before": 10
    }


def test_a_setting_is_its_counts_with_an_interval():
    figures = shares.summary([row("neither", 0), row("neither", 5)])
    assert figures["acc_e"]["value"] == 0.25 and figures["acc_e"]["n"] == 20
    assert figures["acc_e"]["low"] == pytest.approx(0.1119, abs=1e-3)
    assert figures["acc_ir"]["value"] == 0.9 and figures["concepts"] == ["star", "star"]
    text = shares.markdown({"command": "c", "commit": "d", "settings": {"neither": figures}})
    assert "| neither | 25.0% (11.2% to 46.9%) | 10.0% (2.8% to 30.1%) |" in text


def test_each_loss_is_measured_alone_at_each_share():
    changes = shares.SETTINGS.values()
    found = {(change.get("attn_share", 0), change.get("rsc_share", 0)) for change in changes}
    assert found == {(0, 0), (0.01, 0), (0.1, 0), (0.3, 0), (0, 0.01), (0, 0.1), (0, 0.3)}
    for change in changes:
        assert bool(change["attn_weight"]) == ("attn_share" in change)
        assert bool(change["rsc_weight"]) == ("rsc_share" in change)


@pytest.mark.parametrize(
    "prompt, thing",
    [
        ("a drawing of a red moon, made dotted", "moon"),
        ("there is a dotted house", "house"),
        ("a tree, dotted", "tree"),
    ],
)
def test_the_object_that_a_prompt_names(prompt, thing):
    assert objects.named_object(prompt) == thing
