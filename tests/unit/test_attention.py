import pytest
import torch

from eraseanything_core.attention.blocks import Blocks
from eraseanything_core.attention.columns import attention_columns, image_feature
from eraseanything_core.attention.located_prompt import LocatedPrompt


def case(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    q, k = (1.5 * torch.randn(2, 3, n, 8, generator=g, dtype=dtype) for n in (7, 11))
    select = torch.zeros(2, 11, 2, dtype=dtype)
    select[0, [1, 2], 0], select[1, 5, 0], select[:, 9, 1] = 1, 1, 1
    return q.requires_grad_(), k.requires_grad_(), select


def test_columns_and_gradients_are_those_of_the_full_softmax():
    q, k, select = case()
    weight = torch.randn(2, 3, 7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    full = torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5, dim=-1) @ select[:, None]
    expected = torch.autograd.grad((full * weight).sum(), (q, k))
    columns = attention_columns(q, k, select)
    found = torch.autograd.grad((columns * weight).sum(), (q, k))
    assert torch.allclose(columns, full)
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


def test_each_prompt_has_columns_of_its_own():
    q, k, select = case()
    columns = attention_columns(q, k, select)
    full = torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5, dim=-1)
    assert torch.allclose(columns[0, ..., 0], full[0, ..., 1] + full[0, ..., 2])
    assert torch.allclose(columns[1, ..., 0], full[1, ..., 5])


def test_the_weights_are_over_all_keys():
    q, k, select = case()
    assert torch.allclose(attention_columns(q, k, torch.ones_like(select)), torch.ones(()).double())


def test_a_mask_is_that_of_the_softmax():
    q, k, select = case()
    bias = torch.randn(2, 1, 7, 11, generator=torch.Generator().manual_seed(2)).double()
    for mask, added in ((bias, bias), (bias > -1, torch.where(bias > -1, 0.0, float("-inf")))):
        full = torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5 + added, dim=-1) @ select[:, None]
        assert torch.allclose(attention_columns(q, k, select, mask), full)


@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)))
def test_lower_precision(dtype, tolerance):
    exact = attention_columns(*case())
    found = attention_columns(*(t.detach().to(dtype) for t in case()))
    assert found.dtype == dtype and (found - exact).abs().max() < tolerance


def test_a_feature_is_the_mean_over_heads_and_blocks():
    maps = {0: torch.full((1, 4, 9, 1), 0.25), 1: torch.zeros(1, 4, 9, 1)}
    maps[1][:, 0] = 1.0
    assert torch.equal(image_feature(maps), torch.full((1, 9), 0.25))


@pytest.mark.parametrize(
    "text, dual, single",
    [
        ("all", [0, 1, 2], [0, 1, 2]),
        ("dual", [0, 1, 2], []),
        ("single 1-5", [], [1, 2]),
        ("Dual 2, single 0", [2], [0]),
    ],
)
def test_blocks(text, dual, single):
    blocks = Blocks(text)
    assert [i for i in range(3) if ("double", i) in blocks] == dual
    assert [i for i in range(3) if ("single", i) in blocks] == single
    blocks.check(3, 3)


@pytest.mark.parametrize("text", ["", "dual,", "both", "dual a", "double 1"])
def test_what_is_no_choice_of_blocks(text):
    with pytest.raises(ValueError, match="is no choice of blocks"):
        Blocks(text)


def test_a_choice_that_takes_no_block():
    with pytest.raises(ValueError, match="3 dual and 3 single"):
        Blocks("dual 3-9").check(3, 3)


def test_a_prompt_is_known_up_to_rounding_and_no_other_one_is():
    """A card with a LoRA in the text encoder, or a part of it in main memory, encodes a text twice with other bits."""
    generator = torch.Generator().manual_seed(0)
    encoding = torch.randn(1, 40, 64, generator=generator)
    encoding[..., 0] = 8.0  # text encoders have a few features that are far larger than all others
    prompt = LocatedPrompt([""] * 40, {"cat": [3]}, (), ((encoding,),))
    rounded = encoding + encoding / 256 * (2 * torch.rand(encoding.shape, generator=generator) - 1)
    other_word = encoding.clone()
    other_word[:, 3, 1:] = torch.randn(63, generator=generator)
    texts = torch.cat((encoding, rounded, rounded.bfloat16().float(), other_word))
    assert prompt.rows(texts).tolist() == [True, True, True, False]
    assert prompt.columns(texts)[:, 3].tolist() == [1, 1, 1, 0]
    assert prompt.rows(texts.bfloat16()).tolist() == [True, True, True, False]
