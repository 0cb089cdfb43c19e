"""Combining LoRAs: every mode against the dense sum, and every key style against the same LoRA."""

import sys

import pytest
import torch
from torch import nn

from eraseanything_core.lora import fusion, merge
from eraseanything_core.lora.apply import LoraScale, lora_applied
from eraseanything_core.lora.factors import Factors
from eraseanything_core.lora.headers import ErasedConcept, joint_header, typed_concepts

Q, K, OUT = (f"transformer_blocks.0.attn.{name}" for name in ("add_q_proj", "add_k_proj", "to_out.0"))
WEIGHTS = [1.0, -0.5, 2.0]


def factors(rank, seed, rows=12, columns=12):
    g = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(rows, rank, generator=g), torch.randn(rank, columns, generator=g))


@pytest.fixture
def erasers():
    """Ranks and targets differ: the third has no K, the second no OUT."""
    return [
        {Q: factors(2, 0), K: factors(2, 1), OUT: factors(2, 2)},
        {Q: factors(3, 3), K: factors(3, 4)},
        {Q: factors(1, 5), OUT: factors(4, 6)},
    ]


def dense(erasers, weights):
    found = {}
    for eraser, weight in zip(erasers, weights, strict=True):
        for key, (up, down) in eraser.items():
            found[key] = found.get(key, 0) + weight * up @ down
    return found


def error(made, wanted):
    assert set(made) == set(wanted)
    return max(float((up @ down - wanted[key]).norm() / wanted[key].norm()) for key, (up, down) in made.items())


@pytest.mark.parametrize("mode, share", (("concatenate", 1), ("sum", 1), ("normalised sum", 1 / 3)))
def test_sums_are_exact(erasers, mode, share):
    wanted = {key: share * change for key, change in dense(erasers, WEIGHTS).items()}
    assert error(merge.combined(erasers, WEIGHTS, mode), wanted) < 1e-5


def test_ranks(erasers):
    assert {k: len(d) for k, (_, d) in merge.concatenated(erasers, WEIGHTS).items()} == {Q: 6, K: 5, OUT: 6}
    twice = [erasers[0], erasers[0]]
    assert {len(d) for _, d in merge.concatenated(twice, [1, 1]).values()} == {4}
    assert {len(d) for _, d in merge.summed(twice, [1, 1]).values()} == {2}, "what they share is stored once"


def test_truncation_is_the_best_of_its_rank(erasers):
    whole = dense(erasers, WEIGHTS)
    made = merge.combined(erasers, WEIGHTS, "truncated", rank=3)
    for key, (up, down) in made.items():
        u, s, v = torch.linalg.svd(whole[key])
        assert torch.allclose(up @ down, (u[:, :3] * s[:3]) @ v[:3], atol=1e-4)
    energetic = merge.combined(erasers, WEIGHTS, "truncated", energy=0.9)
    for key, (_, down) in energetic.items():
        s = torch.linalg.svdvals(whole[key])
        assert s[: len(down)].square().sum() >= 0.9 * s.square().sum() > s[: len(down) - 1].square().sum()


def test_a_rank_above_the_width():
    """Thirty erasers of a narrow model: more ranks than columns."""
    many = [{Q: factors(2, seed)} for seed in range(8)]
    made = merge.summed(many, [1.0] * 8)
    assert error(made, dense(many, [1.0] * 8)) < 1e-5 and len(made[Q].down) <= 12


@pytest.mark.parametrize("mode", merge.SPARSE_MODES)
@pytest.mark.parametrize("rank", (0, 3))
def test_sparse_modes_are_pefts_in_shared_directions(erasers, mode, rank):
    """The formula on whole matrices, of ranks that differ, with the same random choice."""
    combine = getattr(pytest.importorskip("peft.utils.merge_utils"), mode.removesuffix("_svd"))
    three = [{Q: e[Q]} for e in erasers]
    whole = [e[Q].up @ e[Q].down for e in three]
    u = torch.linalg.svd(torch.cat(whole, 1))[0][:, : rank or 6]
    v = torch.linalg.svd(torch.cat(whole))[2][: rank or 6].T
    torch.manual_seed(4)
    wanted = u @ combine([u.T @ change @ v for change in whole], torch.tensor(WEIGHTS), 0.4) @ v.T
    made = merge.combined(three, WEIGHTS, mode, rank=rank, density=0.4, seed=4)
    assert error(made, {Q: wanted}) < 1e-4 and len(made[Q].down) == (rank or 6)


def test_ties_adds_erasers_that_share_no_direction():
    """In the entries of the weights it would average them; here nothing collides."""
    spaces = torch.linalg.qr(factors(12, 0).up)[0].split(4)
    apart = [
        {Q: Factors(space.T @ factors(2, i, 4).up, factors(2, i, 4, 4).down @ space)} for i, space in enumerate(spaces)
    ]
    assert error(merge.combined(apart, [1.0] * 3, "ties_svd", density=0.9), dense(apart, [1.0] * 3)) < 1e-4


@pytest.mark.parametrize("mode", ("ties_svd", "magnitude_prune_svd"))
def test_where_directions_are_axes_it_is_pefts_own_merge(mode):
    """One entry in every row and column: U and V only order them, and peft's choice among the weights is the same."""
    peft, g, size = pytest.importorskip("peft"), torch.Generator().manual_seed(0), 8
    changes = [torch.randn(size, size, generator=g) * torch.eye(size)[torch.randperm(size, generator=g)] for _ in "abc"]
    config = peft.LoraConfig(r=size, lora_alpha=size, target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(nn.Linear(size, size, bias=False)), config, adapter_name="0")
    layer = model.base_model.model[0]
    for i, change in enumerate(changes):
        if i:
            model.add_adapter(str(i), config)
        layer.lora_A[str(i)].weight.data, layer.lora_B[str(i)].weight.data = torch.eye(size), change
    three = [str(i) for i in range(3)]
    model.add_weighted_adapter(three, WEIGHTS, "all", combination_type=mode, svd_rank=size, density=0.1)
    wanted = layer.get_delta_weight("all")
    made = merge.combined([{Q: Factors(change, torch.eye(size))} for change in changes], WEIGHTS, mode, density=0.1)
    assert error(made, {Q: wanted}) < 1e-5
    assert (
        wanted - dense([{Q: Factors(c, torch.eye(size))} for c in changes], WEIGHTS)[Q]
    ).norm() > 0.1 * wanted.norm()


@pytest.mark.parametrize("mode, theirs_off", (("ties_svd", 0.57), ("magnitude_prune_svd", 0.17)))
def test_elsewhere_pefts_own_merge_loses_part_of_erasers_that_share_nothing(mode, theirs_off):
    """The departure by number: off the sum of four erasers in orthogonal spaces, by peft's entries and by ours."""
    combine = getattr(pytest.importorskip("peft.utils.merge_utils"), mode.removesuffix("_svd"))
    spaces = torch.linalg.qr(factors(32, 0, 32, 32).up)[0].split(8)
    apart = [{Q: Factors(s.T @ factors(2, i, 8).up, factors(2, i, 8, 8).down @ s)} for i, s in enumerate(spaces)]
    wanted = dense(apart, [1.0] * 4)[Q]
    theirs = combine([e[Q].up @ e[Q].down for e in apart], torch.ones(4), 0.5)
    made = merge.combined(apart, [1.0] * 4, mode, density=0.5)
    off = float((theirs - wanted).norm() / wanted.norm())
    assert error(made, {Q: wanted}) < 1e-4 and off == pytest.approx(theirs_off, abs=0.005)


def test_a_rank_that_would_take_minutes_is_refused_with_one_that_would_not(monkeypatch, erasers):
    pytest.importorskip("peft")
    monkeypatch.setattr(merge, "MAX_COMPARED_ENTRIES", 3 * 4**2)
    with pytest.raises(ValueError, match="ties_svd of 3 erasers in 6 directions takes minutes: set rank to 1 to 4"):
        merge.combined(erasers, WEIGHTS, "ties_svd")
    assert len(merge.combined(erasers, WEIGHTS, "ties_svd", rank=4)[Q].down) == 4


def test_dare_drops_by_its_own_seed(erasers):
    state = torch.random.get_rng_state()
    one, two, three = (merge.combined(erasers, WEIGHTS, "dare_ties_svd", seed=seed)[Q].up for seed in (5, 5, 6))
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("mode", merge.SPARSE_MODES)
def test_without_peft_the_error_says_what_to_install(erasers, monkeypatch, mode):
    monkeypatch.setitem(sys.modules, "peft.utils", None)
    with pytest.raises(ImportError, match=f"the mode {mode} needs peft: run `pip install peft`"):
        merge.combined(erasers, WEIGHTS, mode)
    assert merge.combined(erasers, WEIGHTS, "sum"), "the others need none"


def test_modes_that_add_factors_are_not_offered(erasers):
    for mode in ("linear", "ties", "dare_linear", "magnitude_prune"):
        with pytest.raises(ValueError, match="there is no mode"):
            merge.combined(erasers, WEIGHTS, mode)


# --- closed-form fusion


def rows(seed, count=40, columns=12, base=None):
    g = torch.Generator().manual_seed(seed)
    found = torch.randn(count, columns if base is None else len(base), generator=g)
    return found if base is None else found @ base


def test_fusion_is_the_minimum(erasers):
    """The LoRA's change is the closed form, and the gradient of the sum of squares is zero there."""
    module = "double_blocks.0.txt_attn.qkv"
    erasers = [{Q: e[Q]} for e in erasers]
    states = [{module: rows(i)} for i in range(3)]
    kept = {module: rows(7)}
    config = fusion.FusionConfig(kept_weight=0.7, ridge=1e-3)
    made = fusion.fused(erasers, WEIGHTS, states, kept, config)
    assert len(made[Q].down) == 6, "the rank is the sum of the ranks"
    change = (made[Q].up.double() @ made[Q].down.double()).requires_grad_()
    grams = [s[module].T.double() @ s[module].double() / 40 for s in (*states, kept)]
    m = sum(grams[:3]) + 0.7 * grams[3]
    loss = config.ridge * m.diagonal().mean() * change.square().sum()
    for eraser, weight, e in zip(erasers, WEIGHTS, states, strict=True):
        missed = (change - weight * (eraser[Q].up @ eraser[Q].down).double()) @ e[module].T.double()
        loss = loss + missed.square().sum() / 40
    loss = loss + 0.7 * (change @ kept[module].T.double()).square().sum() / 40
    (gradient,) = torch.autograd.grad(loss, change)
    assert gradient.abs().max() < 1e-4 * loss


def test_fusion_of_concepts_that_share_nothing_is_each_eraser():
    """With states in orthogonal spaces every eraser works on its own concept, and what is kept is not touched."""
    module = "double_blocks.0.txt_attn.qkv"
    spaces = torch.eye(12).split(4)
    pair = [{K: factors(2, 0)}, {K: factors(2, 1)}]
    states = [{module: rows(i, base=spaces[i])} for i in range(2)]
    kept = {module: rows(5, base=spaces[2])}
    made = fusion.fused(pair, [1.0, 1.0], states, kept, fusion.FusionConfig(ridge=1e-9))
    change = made[K].up @ made[K].down
    for i, eraser in enumerate(pair):
        wanted = eraser[K].up @ eraser[K].down @ spaces[i].T
        assert torch.allclose(change @ spaces[i].T, wanted, atol=1e-3)
    assert (change @ spaces[2].T).abs().max() < 1e-3


# --- what is erased


def test_headers():
    header = {"eraseanything.concept": "heart", "eraseanything.synonyms": '["love"]', "eraseanything.width": "96"}
    erased = ErasedConcept.from_header(header, "x")
    assert erased.names == ("heart", "love") and erased.width == 96 and erased.sentences(3, 0)
    with pytest.raises(ValueError, match="x does not say what it erases"):
        ErasedConcept.from_header({}, "x")
    assert typed_concepts("heart, love\nstar") == [ErasedConcept(("heart", "love")), ErasedConcept(("star",))]
    joint = joint_header([header, {}], ["x", "y"], [1.0, 0.5], "sum")
    assert joint["eraseanything.concepts"] == '["heart", "y"]' and joint["modelspec.title"] == "eraser of heart, y"
    twice = joint_header([joint, header], ["z", "x"], [1.0, 1.0], "sum")
    assert twice["eraseanything.concepts"] == '["heart", "y", "heart"]', "one that was combined names all of its own"


NONSENSE = {
    "width": "9" * 23,
    "height": "16000000",
    "guidance": "nan",
    "synonyms": "[" * 100_000,
    "templates": "{}",
    "irrelevant": "star",
    "retain": "3",
}


@pytest.mark.parametrize("field", NONSENSE)
def test_a_header_that_is_nonsense_is_named(field):
    header = {"eraseanything.concept": "star", f"eraseanything.{field}": NONSENSE[field]}
    with pytest.raises(ValueError, match=f"the header of x.safetensors holds .* as eraseanything.{field}, ") as error:
        ErasedConcept.from_header(header, "x.safetensors")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_blank_words_are_no_words():
    """A blank synonym has no words, of which a share could stand in a prompt."""
    header = {"eraseanything.concept": "star", "eraseanything.synonyms": '["", " ", "sun"]'}
    assert ErasedConcept.from_header(header, "x").names == ("star", "sun")
    with pytest.raises(ValueError, match="the line ',' of `concepts` names no concept"):
        typed_concepts("star\n,")


# --- on a module


def test_applied_factors_can_be_turned():
    block = nn.Module()
    block.txt_attn = nn.Module()
    block.txt_attn.qkv = nn.Linear(12, 36)
    flux = nn.Module()
    flux.double_blocks = nn.ModuleList([block])
    x, f, scale = torch.randn(2, 5, 12), factors(2, 0), LoraScale(0.5)
    with torch.no_grad():
        plain = block.txt_attn.qkv(x)
        with lora_applied(flux, {K: f}, scale):
            half = block.txt_attn.qkv(x) - plain
            scale.value = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
            gated = block.txt_attn.qkv(x) - plain
        assert torch.equal(block.txt_attn.qkv(x), plain)
    whole = x @ (f.up @ f.down).T
    assert torch.allclose(half[..., 12:24], 0.5 * whole, atol=1e-4) and not half[..., :12].any()
    assert torch.allclose(gated[0, :, 12:24], whole[0], atol=1e-4) and gated[1].abs().max() < 1e-6
