"""What a pair copies to the card: nobody waits for it, and no prompt is copied twice."""

import pytest
import torch

from eraseanything_core.protocols import Conditioning, EncodedPrompt
from eraseanything_core.training import objective, placed, trajectories
from eraseanything_core.training.placed import PlacedEncodings
from lab.gpu import copies

CONTEXT = (1, copies.TOKENS, copies.SHAPE["context_in_dim"])
LATENT = (1, 16, 16, 16)


def test_a_steady_pair_waits_for_no_copy():
    """Latents are new in each pair: x_t and v of the concept and of a retained prompt, and v_n."""
    found = copies.steady_pair("quick")
    assert found.blocking == []
    assert found.queued.count(CONTEXT) == 0 and found.queued.count(LATENT) == 5


@pytest.mark.parametrize("preset", ("balanced", "thorough"))
def test_nor_does_one_of_a_longer_preset(preset):
    found = copies.steady_pair(preset)
    assert found.blocking == [] and any(shape[1:] == LATENT[1:] for shape in found.queued)
    assert not any(shape[-2:] == CONTEXT[-2:] for shape in found.queued)


def test_launches_are_counted_without_views():
    with copies.Copies() as found:
        ones = torch.ones(2, device="meta").view(1, 2)
        assert (ones + 1).T.shape == (2, 1)
    assert found.launches == 2


def test_the_count_sees_what_waits_and_what_is_copied_again(monkeypatch):
    for module in (objective, trajectories):
        monkeypatch.setattr(module, "on_device", lambda tensor, device: tensor.to(device))
    monkeypatch.setattr(copies, "placed", lambda plan, device: plan)
    found = copies.steady_pair("quick")
    assert found.blocking.count(LATENT) == 5
    assert found.queued.count(CONTEXT) == 2


def encodings(asked):
    def encode(text):
        asked.append(text)
        return EncodedPrompt(torch.full((1, 4, 8), float(len(text))), torch.ones(1, 2))

    return encode


def test_an_encoding_is_moved_once_while_there_is_room():
    asked = []
    size = 4 * (4 * 8 + 2)
    moved = PlacedEncodings(encodings(asked), "meta", room=2 * size)
    for text in ("a", "bb", "a", "bb"):
        assert moved(text).context.device.type == "meta"
    assert asked == ["a", "bb"] and moved.taken == 2 * size
    moved("a")
    moved("ccc")  # in the place of bb, which was asked for before a
    moved("a")
    assert asked == ["a", "bb", "ccc"] and moved.taken == 2 * size
    moved("bb")
    assert asked[3:] == ["bb"]


def test_what_comfyui_moves_itself_stays():
    conditioning = Conditioning(torch.ones(1, 4, 8), torch.ones(1, 2), {"attention_mask": torch.ones(1, 4)})
    assert PlacedEncodings(lambda text: conditioning, "meta")("a") is conditioning


def test_the_estimate_counts_them(monkeypatch):
    plan = copies.prepare(copies.true_config("quick", 128), copies.RandomText(24, (copies.SHAPE["context_in_dim"], 64)))
    size = 4 * (24 * copies.SHAPE["context_in_dim"] + 64)
    assert placed.placed_bytes(plan) == size * len(plan.texts())
    monkeypatch.setattr(placed, "ROOM", 1000)
    assert placed.placed_bytes(plan) == 1000
