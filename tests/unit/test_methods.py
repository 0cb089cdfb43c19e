"""The erasers to compare with: each does what its equation says."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from eraseanything_core.attention import erase
from eraseanything_core.erasers import uce
from eraseanything_core.erasers.prompt_filter import filtered
from eraseanything_core.erasers.registry import settings_of
from eraseanything_core.training.config import EraseConfig


def test_deleted_columns_are_those_of_the_explicit_matrix():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 8, dtype=torch.float64) for _ in range(3))
    select = torch.zeros(2, 4)
    select[0, 1] = select[0, 2] = select[1, 3] = 1
    weights = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    for row, columns in ((0, [1, 2]), (1, [3])):
        weights[row, :, :, columns] = 0
    found = F.scaled_dot_product_attention(q, k, erase.without_columns(v, select))
    torch.testing.assert_close(found, weights @ v)


def test_only_dual_blocks_lose_columns():
    v = torch.ones(1, 1, 3, 2)
    attend = erase.override(torch.tensor([[1.0, 0.0]]))

    def attention(q, k, v, heads, mask, **rest):
        return v

    double, single = (
        attend(attention, v, v, v, 1, skip_reshape=True, transformer_options={"block_type": kind, "block_index": 0})
        for kind in ("double", "single")
    )
    assert double[0, 0, :, 0].tolist() == [0, 1, 1] and single is v


def test_columns_of_a_text_that_does_not_stand_first():
    """The same keys in both of ComfyUI's shapes; Stable Diffusion 3 mixes them."""
    v, select = torch.ones(2, 3, 5, 4), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    scaled = erase.without_columns(v, select, 0.25, first=2)
    assert scaled[:, 1, :, 0].tolist() == [[1, 1, 0.25, 1, 1], [1, 1, 1, 0.25, 1]]
    for other in (v.transpose(1, 2), v.transpose(1, 2).flatten(2)):
        moved = erase.without_columns(other, select, 0.25, first=2, axis=1)
        assert torch.equal(moved, scaled.transpose(1, 2).reshape(other.shape))


def test_filtered_prompts_lose_every_occurrence():
    assert filtered("a Nike shoe, nikes and (Nike)", ("nike",)) == "a shoe, and ()"
    assert filtered("a soccerrrs ball", ("soccer",)) == "a soccerrrs ball"


def test_uce_is_the_least_squares_solution():
    torch.manual_seed(0)
    weight, erased, guides, kept = (torch.randn(n, 12, dtype=torch.float64) for n in (5, 3, 3, 6))
    down, up = uce.edit(weight, erased, guides, kept, lam=0.5)
    # W'[E; P; sqrt(lam) I] = [W G; W P; sqrt(lam) W], solved by lstsq
    inputs = torch.cat([erased, kept, 0.5**0.5 * torch.eye(12, dtype=torch.float64)])
    wanted = torch.cat([guides, kept, 0.5**0.5 * torch.eye(12, dtype=torch.float64)]) @ weight.T
    solved = torch.linalg.lstsq(inputs, wanted).solution.T
    torch.testing.assert_close((weight.float() + up @ down).double(), solved, rtol=1e-4, atol=1e-4)
    assert down.shape == (3, 12) and up.shape == (5, 3)


def test_uce_sends_a_concept_to_its_guide_and_keeps_the_rest():
    torch.manual_seed(1)
    weight, erased, guides, kept = torch.randn(8, 64), torch.randn(1, 64), torch.randn(1, 64), torch.randn(4, 64)
    down, up = uce.edit(weight, erased, guides, kept, lam=1e-6)
    edited = weight + up @ down
    torch.testing.assert_close(erased @ edited.T, guides @ weight.T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(kept @ edited.T, kept @ weight.T, rtol=1e-3, atol=1e-3)


def test_esd_trains_nothing_but_its_own_loss():
    config = dataclasses.replace(EraseConfig("moon", eta=0.5, neutral="{thing}"), **settings_of("esd"))
    assert (config.attn_weight, config.rsc_weight, config.retain_weight) == (0, 0, 0)
    assert (config.eta, config.neutral, config.targets) == (1.0, "", "text and image k,v")
