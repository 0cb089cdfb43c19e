"""The recording of a probe, and its pictures."""

import pytest
import torch

from eraseanything_core.attention import heat_maps
from eraseanything_core.attention.columns import attention_columns
from eraseanything_core.attention.located_prompt import LocatedPrompt, locate_concepts
from eraseanything_core.attention.probe import Probe, parse_heads
from eraseanything_core.evaluation.localisation import auc, pointing

PIECES = ["▁a", "▁red", "▁star", "", ""]


def read(probe, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(2, 3, 5 + 6, 8, generator=g) for _ in range(2))
    probe.read(q, k, ("double", seed))
    return torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5, dim=-1)[:, :, 5:]


def test_a_recording_is_the_mean_of_what_was_read():
    probe = Probe(PIECES, {"star": [2]})
    rows = []
    for step in range(2):
        probe.begin(step, 1.0 - step / 2, (2, 3), 5, None)
        rows += [read(probe, seed) for seed in range(2)]
        probe.end()
    recording = probe.finish(torch.zeros(2, 16, 4, 6))
    mean = torch.stack(rows).mean(0)
    assert torch.allclose(recording.maps["all"]["all"][..., 0], mean[..., 2].mean(1), atol=1e-6)
    assert torch.allclose(recording.maps["head"]["head 1"][..., 0], mean[:, 1, :, 2], atol=1e-6)
    assert list(recording.maps["step"]) == ["step 1, sigma 1.00", "step 2, sigma 0.50"]
    assert recording.grids()["all"].shape == (2, 1, 2, 3)
    assert list(recording.shares) == [0, 1, 2]
    assert abs(recording.shares[1] - float(mean[..., 1].mean())) < 1e-6


def test_more_words_than_the_width_of_a_head():
    pieces = ["▁a"] * 20
    probe = Probe(pieces, {"a": list(range(20))})
    probe.begin(0, 1.0, (2, 3), 20, None)
    q, k = torch.randn(1, 2, 26, 8), torch.randn(1, 2, 26, 8)
    probe.read(q, k, ("double", 0))
    expected = attention_columns(q[:, :, 20:], k, torch.eye(26)[None, :, :8])
    assert probe.forward["double", 0].shape == (1, 2, 6, 1) and len(probe.shares.value()) == 20
    assert torch.allclose(probe.shares.value()[:8], expected.mean((0, 1, 2)))


@pytest.mark.parametrize("shape", [(11, 11), (3, 11, 11), (3, 4, 11, 11), (3, 1, 1, 11)])
def test_a_mask_is_read_with_its_rows_heads_and_queries(shape):
    g = torch.Generator().manual_seed(5)
    q, k = (torch.randn(3, 4, 11, 8, generator=g) for _ in "qk")
    mask = torch.randn(shape, generator=g)
    probe = Probe(PIECES, {"star": [2]}, heads=(3, 1))
    probe.begin(0, 1.0, (2, 3), 5, torch.tensor([0, 2]))
    probe.read(q, k, ("double", 0), mask)
    logits = q @ k.transpose(-1, -2) * 8**-0.5 + (mask[:, None] if mask.ndim == 3 else mask)
    expected = torch.softmax(logits, dim=-1)[[0, 2]][:, [3, 1], 5:, 2]
    assert torch.allclose(probe.forward["double", 0][..., 0], expected, atol=1e-6)
    assert probe.forward["double", 0].untyped_storage().nbytes() == 4 * expected.numel(), "more than the column is kept"


def test_a_recording_is_known_by_its_samples():
    probe = Probe(PIECES, {"star": [2]})
    probe.begin(0, 1.0, (2, 3), 5, None)
    read(probe)
    probe.end()
    recording = probe.finish(torch.ones(2, 16, 4, 6))
    assert recording.of(torch.ones(2, 16, 4, 6).half()) and not recording.of(torch.zeros(2, 16, 4, 6))
    assert not recording.of(torch.ones(1, 16, 4, 6))


def test_what_cannot_be_recorded():
    with pytest.raises(ValueError, match="no attention was recorded"):
        Probe(PIECES, {"star": [2]}).finish(torch.zeros(1))
    probe = Probe(PIECES, {"star": [2]})
    probe.begin(0, 1.0, (2, 3), 5, None)
    with pytest.raises(ValueError, match="areas of several sizes"):
        probe.begin(0, 1.0, (3, 3), 5, None)
    probe = Probe(PIECES, {"star": [2]}, heads=(3,))
    probe.begin(0, 1.0, (2, 3), 5, None)
    with pytest.raises(ValueError, match="there is no head 3"):
        read(probe)


def test_heads():
    assert parse_heads("all") == () and parse_heads("0, 3 5") == (0, 3, 5)
    for text in ("", "first", "-1"):
        with pytest.raises(ValueError, match="no choice of heads"):
            parse_heads(text)


def test_a_prompt_is_found_by_its_encoding():
    known = torch.randn(1, 4, 8)
    prompt = LocatedPrompt(["▁a"], {"a": [2]}, (), ((known,),))
    longer = torch.cat((known, torch.zeros(1, 2, 8)), dim=1)
    batch = torch.cat((longer, torch.randn(1, 6, 8), longer))
    assert prompt.rows(batch).tolist() == [True, False, True] and not prompt.rows(known[:, :3]).any()
    behind = torch.cat((torch.zeros(1, 2, 8), known), dim=1)
    assert prompt.columns(torch.cat((longer, behind))).nonzero().tolist() == [[0, 2], [1, 4]]


def test_every_encoding_of_a_prompt_has_to_be_there():
    first, second = torch.randn(1, 3, 8), torch.randn(1, 2, 4)
    prompt = LocatedPrompt(["▁a"], {"a": [1, 4]}, (), ((first, second),))
    texts = first.repeat(2, 1, 1), torch.cat((second, second + 1))
    assert prompt.rows(*texts).tolist() == [True, False]
    assert prompt.columns(*texts).nonzero().tolist() == [[0, 1], [0, 4]]


def test_several_concepts_are_read_from_one_prompt():
    prompt = locate_concepts([PIECES], ("star", "red"), False, ())
    assert (
        prompt.spans == {"star": [2], "red": [1]} and prompt.table() == "star: tokens 2 '▁star'\nred: tokens 1 '▁red'"
    )
    with pytest.raises(ValueError, match="concept is empty"):
        locate_concepts([PIECES], (), False, ())


def test_a_concept_is_found_in_the_singular_and_the_plural():
    pieces = ["▁two", "▁wolves", "▁and", "▁a", "▁star", ""]
    assert locate_concepts([pieces], ("wolf", "stars"), False, ()).spans == {"wolf": [1], "stars": [4]}


def test_colours_rise_in_lightness():
    colours = heat_maps.coloured(torch.linspace(0, 1, 50))
    assert colours.shape == (50, 3) and torch.allclose(colours[0], heat_maps.VIRIDIS[0])
    lightness = colours @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert (lightness.diff() > 0).all()


def test_a_heat_map_shows_the_map_over_the_image():
    found = torch.zeros(2, 3)
    found[0, 2] = 0.5
    picture = heat_maps.heat_map("star", {"all": found}, torch.ones(32, 48, 3))
    assert picture.shape == (512 + heat_maps.LEGEND_HEIGHT, 768, 3)
    assert torch.allclose(picture[0, -1], torch.lerp(torch.ones(3), heat_maps.VIRIDIS[-1], 0.6), atol=0.01)
    assert torch.allclose(picture[511, 0], torch.lerp(torch.ones(3), heat_maps.VIRIDIS[0], 0.6), atol=0.01)
    several = heat_maps.heat_map("star", {"step 1": found, "step 2": found, "step 3": found})
    assert several.shape[1] >= 768 and several.shape[0] > several.shape[1] * 0.6


def test_masks():
    found = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    assert heat_maps.masks(found, 0.0).tolist() == [[0, 0.25], [0.5, 1]]
    assert heat_maps.masks(found, 0.5).tolist() == [[0, 0], [1, 1]]
    assert heat_maps.unit(torch.ones(2, 2)).sum() == 0


def test_bars():
    picture = heat_maps.bars({"0 a": 0.1, "1 star": 0.4})
    lengths = [(picture[y, 158:] == picture[20, 160]).all(-1).sum().item() for y in (20, 46)]
    assert abs(lengths[1] / lengths[0] - 4) < 0.1


def test_auc_and_pointing():
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    maps = torch.stack([mask[0].float(), 1 - mask[0].float()])
    maps[0, 0, 0] = 2
    assert auc(maps, mask).tolist() == [1.0, 0.0] and pointing(maps, mask).tolist() == [True, False]
    assert auc(torch.zeros(1, 4, 4), mask[:1]).tolist() == [0.5]
