import pytest
import torch

from eraseanything_core.strength import GONE, HEADER, Curve, curve, flip, share


def test_the_dial_is_the_share_of_seeds_that_flipped():
    measured = curve([0.8, 0.4, 0.6, 0.7])
    assert measured.scale_at(0) == 0 and measured.scale_at(1) == 1
    assert measured.scale_at(1 / 8) == pytest.approx(0.4) and measured.scale_at(3 / 8) == pytest.approx(0.6)
    assert measured.scale_at(0.5) == pytest.approx(0.65), "half of the seeds flipped below it"
    scales = [measured.scale_at(d / 50) for d in range(51)]
    assert scales == sorted(scales)


def test_past_the_ends():
    measured = curve([0.5])
    assert measured.scale_at(1.7) == pytest.approx(1.7) and measured.scale_at(-1.7) == pytest.approx(-1.7)
    assert measured.scale_at(-0.25) == pytest.approx(-0.25), "below 0 the sign turns"


def test_seeds_that_flip_together_leave_no_step_out():
    measured = curve([0.5, 0.5, 0.5])
    assert [measured.scale_at(d) for d in (0.2, 0.5, 0.8)] == pytest.approx([0.5] * 3)


def test_it_goes_through_a_header():
    measured = curve([0.5, 0.25])
    assert Curve.of({HEADER: measured.text()}) == measured and Curve.of({}) is None


def test_the_flip_is_found():
    """A picture that hardly moves, jumps at 0.6347 and hardly moves again."""
    asked = []

    def jumps(scale):
        asked.append(scale)
        return torch.full((1, 1, 2, 2), 0.1 * scale if scale < 0.6347 else 0.9 + 0.1 * scale)

    assert flip(jumps, 5) == pytest.approx(0.6347, abs=1 / 32) and asked[:2] == [0, 1] and len(asked) == 7
    assert flip(lambda scale: torch.tensor([[scale, 1.0]]), 5) == pytest.approx(GONE)
    assert flip(lambda scale: torch.tensor([scale**2]), 5) == pytest.approx(GONE**0.5, abs=1e-3)


def test_share_is_how_far_an_image_has_gone():
    whole, full = torch.zeros(1, 1, 2, 2), torch.tensor([1.0, 2.0, 0.0, 3.0]).view(1, 1, 2, 2)
    assert share(whole, whole, full) == 0 and share(full, whole, full) == pytest.approx(1)
    aside = torch.tensor([0.0, 0.0, 5.0, 0.0]).view(1, 1, 2, 2)
    assert share(0.5 * full + aside, whole, full) == pytest.approx(0.5), "what is beside the way does not count"
    with pytest.raises(ValueError, match="changes nothing"):
        share(whole, whole, whole)
