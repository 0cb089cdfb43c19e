"""What users and servers wrote, repeated in messages."""

import pytest

from eraseanything_core.quoting import LONG, SHORT, check_text, escaped, quoted


@pytest.mark.parametrize("text", ["", "heart", "it's", 'a "b"', "Straße", "星", "🙂", "a\nb", "\\"])
def test_a_short_text_is_quoted_as_repr_does(text):
    assert quoted(text) == repr(text)


@pytest.mark.parametrize("show", [quoted, escaped])
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud800" * 1000, "\udcff.safetensors"])
def test_half_a_character_is_escaped(show, text):
    assert show(text).encode("utf-8").decode("utf-8") == show(text)


def test_a_long_text_is_cut_and_its_length_said():
    assert quoted("x" * 1_000_000) == f"'{'x' * SHORT}'... (1,000,000 characters)"
    assert escaped("x" * 1_000_000) == f"{'x' * LONG}... (1,000,000 characters)"
    assert quoted("x" * SHORT) == f"'{'x' * SHORT}'"


def test_what_is_no_text_is_shown_and_cut_too():
    assert quoted(3) == "3"
    assert quoted(["\ud800"]) == r"['\ud800']"
    assert len(quoted(["x" * 1000])) < 2 * SHORT


def test_a_text_with_half_a_character_is_refused_by_name():
    check_text("🙂 a heart", "`concept`")
    with pytest.raises(ValueError, match=r"`concept` holds '\\ud83d', half of a character, at position 3"):
        check_text("a \ud83d heart", "`concept`")
