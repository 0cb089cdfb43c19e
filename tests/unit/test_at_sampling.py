"""The projection of a prediction against closed forms."""

import pytest

torch = pytest.importorskip("torch")

from eraseanything_core.erasers.at_sampling import Projection, presence  # noqa: E402


def predictions(count: int = 3) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return [torch.randn(count, 4, 3, 2, generator=g, dtype=torch.float64) for _ in range(3)]


def test_presence_is_one_at_the_concept_and_zero_at_its_neutral_words():
    _, concept, neutral = predictions()
    assert presence(concept, concept, neutral).tolist() == pytest.approx([1, 1, 1])
    assert presence(neutral, concept, neutral).tolist() == [0, 0, 0]
    assert presence(concept, neutral, neutral).tolist() == [0, 0, 0]  # no direction


def test_presence_is_the_coefficient_of_least_squares():
    prompt, concept, neutral = predictions()
    for i, found in enumerate(presence(prompt, concept, neutral)):
        solved = torch.linalg.lstsq((concept - neutral)[i].reshape(-1, 1), (prompt - neutral)[i].reshape(-1, 1))
        assert float(found) == pytest.approx(float(solved.solution), rel=1e-5)


def test_the_projection_is_the_nearest_prediction_without_the_concept():
    _, concept, neutral = predictions()
    generator = torch.Generator().manual_seed(2)
    prompt = 0.7 * concept + 0.3 * neutral + 0.1 * torch.randn(concept.shape, generator=generator)
    erased, present = Projection(threshold=0.1, strength=1.0)(prompt, concept, neutral)
    assert (present > 0.1).all()
    direction = (concept - neutral).flatten(1)
    along = ((erased - neutral).flatten(1) * direction).sum(1)
    assert along.abs().max() < 1e-5 * direction.square().sum(1).min()
    # Nearest: what was moved is parallel to the direction.
    moved = (prompt - erased).flatten(1)
    torch.testing.assert_close(torch.cosine_similarity(moved, direction), torch.ones(3, dtype=moved.dtype))


def test_pictures_up_to_the_threshold_keep_every_bit():
    prompt, concept, neutral = predictions(2)
    prompt[0] = neutral[0] + 0.2 * (concept - neutral)[0]
    prompt[1] = neutral[1] + 0.9 * (concept - neutral)[1]
    erased, _ = Projection(threshold=0.5, strength=2.0)(prompt, concept, neutral)
    assert torch.equal(erased[0], prompt[0])
    torch.testing.assert_close(erased[1], neutral[1] - 0.9 * (concept - neutral)[1], rtol=1e-5, atol=1e-5)
    assert Projection(threshold=0.95, strength=2.0)(prompt, concept, neutral)[0] is prompt


def test_velocity_and_picture_give_the_same():
    """v = (x - x_0) / t: the projection of either is the projection of the other."""
    prompt, concept, neutral = predictions()
    x, t = torch.randn(prompt.shape, dtype=prompt.dtype), 0.6
    act = Projection(threshold=-10.0, strength=1.3)
    by_velocity, s = act(*((x - picture) / t for picture in (prompt, concept, neutral)))
    by_picture, same = act(prompt, concept, neutral)
    torch.testing.assert_close(s, same)
    torch.testing.assert_close(x - t * by_velocity, by_picture, rtol=1e-5, atol=1e-6)
