import pytest
import torch

from eraseanything_core.strength import HEADER, Curve, curve, share


def test_the_dial_is_the_effect():
    measured = curve([0.25, 0.5, 0.75], [0.02, 0.1, 0.8])
    assert measured.scale_at(0) == 0 and measured.scale_at(1) == 1
    assert measured.scale_at(0.1) == pytest.approx(0.5)
    assert measured.scale_at(0.5) == pytest.approx(0.5 + 0.25 * 0.4 / 0.7)
    scales = [measured.scale_at(d / 50) for d in range(51)]
    assert scales == sorted(scales)


def test_past_the_ends():
    measured = curve([0.5], [0.1])
    assert measured.scale_at(1.7) == pytest.approx(1.7) and measured.scale_at(-1.7) == pytest.approx(-1.7)
    assert measured.scale_at(-0.1) == pytest.approx(-0.5), "below 0 the sign turns"


def test_noise_does_not_turn_the_dial_back():
    measured = curve([0.2, 0.4, 0.6, 0.8], [0.3, 0.2, 1.2, 0.9])
    assert list(measured.effect) == [0.0, 0.3, 0.3, 1.0, 1.0, 1.0]
    assert [measured.scale_at(d / 10) for d in range(11)] == sorted(measured.scale_at(d / 10) for d in range(11))


def test_it_goes_through_a_header():
    measured = curve([0.5], [0.1])
    assert Curve.of({HEADER: measured.text()}) == measured and Curve.of({}) is None


def test_share_is_how_far_images_have_gone():
    whole, full = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    full[1] *= 2
    assert share(whole, whole, full) == 0 and share(full, whole, full) == 1
    at = torch.stack([full[0], whole[1], 0.5 * full[2]])
    assert share(at, whole, full) == pytest.approx(0.5)
    assert share(-full, whole, full) == 0 and share(3 * full, whole, full) == 1
    with pytest.raises(ValueError, match="changes nothing"):
        share(whole, whole, whole)
