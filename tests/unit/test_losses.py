"""Each loss against numbers worked out by hand, and the directions in which they push."""

import pytest
import torch
import torch.nn.functional as F

from eraseanything_core.training import losses


def full(value):
    return torch.full((2, 3, 4, 4), float(value))


def test_esd_at_its_target_is_zero():
    assert losses.esd_loss(full(-1), full(3), full(1), eta=1.0) == 0  # 1 - 1 * (3 - 1)
    assert losses.esd_loss(full(1), full(3), full(1), eta=0.0) == 0
    assert losses.esd_loss(full(0), full(3), full(1), eta=2.0) == 9  # (0 - (1 - 2 * 2))^2


def test_teachers_carry_no_gradient():
    student, concept, neutral = (full(v).requires_grad_() for v in (0, 3, 1))
    (losses.esd_loss(student, concept, neutral, 1.0) + losses.retain_loss(student, neutral)).backward()
    assert student.grad is not None and concept.grad is None and neutral.grad is None


def test_flow_matching_leads_back_to_the_images():
    assert losses.flow_matching_loss(full(3), x_0=full(-1), noise=full(2)) == 0


def maps(batch, heads, queries, blocks=2):
    """Every head gives the concept's tokens a quarter of its attention."""
    return {block: torch.full((batch, heads, queries, 1), 0.25) for block in range(blocks)}


def test_attention_is_a_mean_not_a_sum():
    """Twice the batch or four times the resolution leave it as it is; the reference code's grew with both."""
    assert losses.attention_loss(maps(1, 2, 16)) == losses.attention_loss(maps(2, 4, 64, blocks=3)) == 0.25


@pytest.mark.parametrize("batch, blocks", [(1, 1), (3, 2)])
def test_attention_as_the_paper_prints_it(batch, blocks):
    """Eq. 3: 24 heads x 1,024 queries at Flux's size and 512 px, each a quarter."""
    known = maps(batch, 24, 1024, blocks)
    assert losses.attention_loss(known, "sum") == pytest.approx(24 * 1024 * 0.25)
    # The published code: over queries, the norm of 24 heads.
    assert losses.attention_loss(known, "l2") == pytest.approx(1024 * 24**0.5 * 0.25, rel=1e-5)


def test_the_norm_over_heads_has_a_gradient_where_nobody_looks():
    silent = torch.zeros(1, 4, 16, 1, requires_grad=True)
    losses.attention_loss({0: silent}, "l2").backward()
    assert torch.isfinite(silent.grad).all()


def features():
    g = torch.Generator().manual_seed(0)
    shared = torch.rand(1, 36, generator=g)
    return [shared + 0.5 * torch.rand(1, 36, generator=g) for _ in range(5)]


def moved(paper_sign, steps):
    """Cosine to the synonym and mean cosine to the irrelevant words, before and after descending on F_un."""
    un, syn, *words = features()
    irrelevant, un = torch.stack(words, dim=1), un.clone().requires_grad_()
    optimizer = torch.optim.SGD([un], lr=0.05)

    def cosines():
        to_words = F.cosine_similarity(un[:, None], irrelevant, dim=-1).mean()
        return F.cosine_similarity(un, syn).item(), to_words.item()

    before = cosines()
    for _ in range(steps):
        optimizer.zero_grad()
        losses.rsc_loss(un, syn, irrelevant, 0.07, paper_sign).backward()
        optimizer.step()
    return before, cosines()


def test_rsc_leaves_the_synonym_and_nears_the_irrelevant_words():
    before, after = moved(paper_sign=False, steps=50)
    assert after[0] < before[0] - 0.01 and after[1] > before[1]
    _, far = moved(paper_sign=False, steps=1000)
    assert far[0] < after[0] and far[1] - far[0] > after[1] - after[0]


def test_the_printed_sign_does_the_opposite():
    (syn, words), (syn_after, words_after) = moved(paper_sign=True, steps=20)
    assert syn_after - words_after > syn - words


def test_rsc_value_and_bounds():
    un, syn = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    irrelevant = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    expected = -torch.log(2 * torch.tensor(1.0).exp() / (2 * torch.tensor(1.0).exp() + 1))
    assert losses.rsc_loss(un, syn, irrelevant, 1.0) == pytest.approx(float(expected))
    assert losses.rsc_loss(un, syn, irrelevant, 0.001) >= 0, "bounded below"
    assert losses.rsc_loss(un * 7, syn * 3, irrelevant, 1.0) == pytest.approx(float(expected)), "cosine"


def test_rsc_depends_on_the_irrelevant_words_in_direction():
    """In the reference code they only scaled the gradient."""
    un, syn, a, b, _ = features()
    grads = []
    for words in (a, b):
        leaf = un.clone().requires_grad_()
        losses.rsc_loss(leaf, syn, words[:, None], 0.5).backward()
        grads.append(leaf.grad)
    assert F.cosine_similarity(*grads) < 0.99
