"""What the pools hold is what the teacher would say in the pair that asks; their options do what they say."""

import dataclasses
import weakref

import pytest
import torch

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.text import ComfyTextEncoder
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.training import trainer, trajectories
from eraseanything_core.training.draws import Draw, unique_points
from eraseanything_core.training.features import teacher_features
from eraseanything_core.training.plan import conds, prepare
from eraseanything_core.training.recipe import train_eraser
from eraseanything_core.training.trajectory_cache import TrajectoryCache


@pytest.fixture
def make(patcher, clip, config):
    """An epoch of the configuration with changes; in a model whose adapters are not zero."""

    def epoch(number=0, **change):
        plan = prepare(dataclasses.replace(config, **change), ComfyTextEncoder(clip))
        with training_session(patcher) as model:
            lora = model.attach("all_qkv", 4, torch.Generator().manual_seed(0))
            for up in lora.up:
                up.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
            made = TrajectoryCache(model, plan).epoch(number)
            told = teacher(model, plan, made)
        return made, told

    return epoch


def teacher(model, plan, epoch):
    """The targets of every draw, asked for one by one at the time of the pair."""
    found = []
    for draw in (d for draws in epoch.draws.values() for d in draws):
        row, step = draw.erase
        x_t, sigma, _ = epoch.concept.at(row, step, "cpu")
        sentences = [epoch.concept.sources[i] for i in row]
        concept, neutral = (
            model.velocity(x_t, sigma, conds(model, plan, prompts), adapters=False)
            for prompts in ([s.concept for s in sentences], [s.neutral for s in sentences])
        )
        row, step = draw.retain
        x_t, sigma, _ = epoch.retain.at(row, step, "cpu")
        kept = conds(model, plan, [epoch.retain.sources[i] for i in row])
        retain = model.velocity(x_t, sigma, kept, adapters=False)
        row, step = draw.rsc
        x_t, sigma, _ = epoch.concept.at(row, step, "cpu")
        known = teacher_features(model, plan, [epoch.concept.sources[i] for i in row], x_t, sigma)
        found.append((concept, neutral, retain, known))
    return found


@pytest.mark.parametrize(
    "change",
    (
        {},
        {"rsc_samples": 2},
        {"on_policy_share": 0.5, "refresh_every": 2, "steps": 4, "number": 1},
        {"gradient_accumulation_steps": 2},
        {"shared_points": True, "cached_retain_trajectories": 5},
    ),
)
def test_the_targets_are_the_teachers(make, change):
    epoch, told = make(**change)
    draws = [d for draws in epoch.draws.values() for d in draws]
    assert len(draws) == len(told) == change.get("gradient_accumulation_steps", 1) * len(epoch.draws)
    for draw, (concept, neutral, retain, known) in zip(draws, told, strict=True):
        assert torch.allclose(epoch.concept.v[draw.erase], concept, atol=1e-4)
        assert torch.allclose(epoch.concept.neutral[draw.erase], neutral, atol=1e-4)
        assert torch.allclose(epoch.retain.v[draw.retain], retain, atol=1e-4)
        assert torch.allclose(epoch.concept.word_features[draw.rsc], known, atol=1e-5)


def test_few_points_for_the_maps(make):
    epoch, _ = make(rsc_samples=2, steps=20, refresh_every=20)
    assert len(unique_points([d.rsc for draws in epoch.draws.values() for d in draws])) == 2


def test_part_of_the_pool_is_walked_by_the_student(make):
    """From the second pool on, and only the share that is asked for."""
    (first, _), (frozen, _), (mixed, _) = (
        make(number, on_policy_share=share, refresh_every=2, steps=4)
        for number, share in ((0, 0.5), (1, 0.0), (1, 0.5))
    )
    same = [torch.allclose(a, b, atol=1e-4) for a, b in zip(frozen.concept.x, mixed.concept.x, strict=True)]
    assert same == [False, False, True, True]
    sigmas = first.concept.sigmas
    x, v = first.concept.x, first.concept.v
    steps = (sigmas[1:] - sigmas[:-1])[None, :, None, None, None]
    assert torch.allclose(x[:, :-1] + steps * v, x[:, 1:], atol=1e-5), "the first pool is the teacher's walk"


def test_retained_prompts_at_the_concepts_points(make, patcher, clip, config):
    """None has a walk of its own: x lies in memory once, and a stopped run finds it again."""
    change = {"shared_points": True, "cached_retain_trajectories": 5, "cached_trajectories": 2}
    epoch, _ = make(**change)
    assert len(epoch.retain.sources) == 5 and epoch.retain.x is epoch.concept.x
    row = torch.arange(5)
    x_t, _, _ = epoch.retain.at(row, torch.ones(5, dtype=int), "cpu")
    assert torch.equal(x_t, epoch.concept.x[row % 2, 1])
    assert set(epoch.tensors()) == {"concept.x", "concept.v", "concept.neutral", "concept.word_features", "retain.v"}
    plan = prepare(dataclasses.replace(config, **change), ComfyTextEncoder(clip))
    with training_session(patcher) as model:
        cache = TrajectoryCache(model, plan)
        first = cache.epoch(0)
        again = cache.epoch(0, {name: array.clone() for name, array in first.tensors().items()}, covered=config.steps)
    assert torch.equal(again.retain.v, first.retain.v) and again.retain.x is again.concept.x


def test_the_sizes_of_the_pools(make):
    epoch, _ = make(cached_trajectories=3, cached_retain_trajectories=2)
    assert len(epoch.concept.sources) == 3 and len(epoch.retain.sources) == 2


def test_no_trajectories_for_what_is_not_trained(patcher, clip, config):
    plan = prepare(dataclasses.replace(config, retain_weight=0.0, rsc_weight=0.0), ComfyTextEncoder(clip))
    with training_session(patcher) as model:
        epoch = TrajectoryCache(model, plan).epoch(0)
    assert epoch.retain is None and epoch.concept.word_features is None and not plan.retained


def test_a_pool_on_disk_trains_the_same(patcher, clip, config):
    one, other = (train_eraser(ComfyHost(patcher, clip), dataclasses.replace(config, cache_gib=g)) for g in (1.0, 0.0))
    assert all(torch.equal(one.lora[k], other.lora[k]) for k in one.lora)


def test_the_bound_is_one_for_all_arrays_of_the_pools(make, monkeypatch):
    """Those in memory together keep to it; more of them fit where it is wider, all where it is their sum."""
    on_disk, reserve = [], trajectories.reserve
    monkeypatch.setattr(trajectories, "reserve", lambda file, size: on_disk.append(size) or reserve(file, size))
    sizes = [tensor.nbytes for tensor in make()[0].tensors().values()]
    for share in (0.0, 0.4, 0.7, 1.0):
        bound, size = share * sum(sizes), sum(sizes)
        on_disk.clear()
        make(cache_gib=bound / 2**30)
        assert len(sizes) == 6 and size - sum(on_disk) <= bound
        assert size - sum(on_disk) >= bound - max(sizes)


def test_old_pools_go_before_new_ones_come(patcher, clip, config, monkeypatch):
    """Both would take the room twice."""
    made, alive, original = [], [], TrajectoryCache.epoch

    def drawn(*args):
        alive.append([each() for each in made if each() is not None])
        epoch = original(*args)
        made.append(weakref.ref(epoch))
        return epoch

    monkeypatch.setattr(TrajectoryCache, "epoch", drawn)
    train_eraser(ComfyHost(patcher, clip), dataclasses.replace(config, refresh_every=1))
    assert alive == [[], [], []]


def test_accumulation_is_the_mean_of_its_draws(patcher, clip, config):
    """Two draws in one update give the gradient that one draw of both gives: here the first step of AdamW."""
    config = dataclasses.replace(config, steps=1, alternate=False, gradient_accumulation_steps=2)
    plan = prepare(config, ComfyTextEncoder(clip))
    with training_session(patcher) as model:
        lora = model.attach("paper", 8, torch.Generator().manual_seed(0))
        epoch = TrajectoryCache(model, plan).epoch(0)
        one, two = epoch.draws[0]
        both = Draw(
            *(tuple(torch.cat(p) for p in zip(getattr(one, n), getattr(two, n))) for n in ("erase", "retain", "rsc"))
        )
        grads = []
        for draws in ([one, two], [both]):
            frozen = [torch.optim.SGD(lora.parameters(), lr=0.0) for _ in range(2)]
            split = dataclasses.replace(epoch, draws={0: draws})
            trainer.train_pair(model, plan, split, 0, lora, frozen)
            grads.append(torch.cat([p.grad.flatten() for p in lora.up]))
    assert (grads[0] - grads[1]).norm() < 1e-4 * grads[1].norm() and grads[0].norm() > 0


@pytest.mark.parametrize(
    "change",
    (
        {},
        {"rsc_samples": 2},
        {"on_policy_share": 0.5, "refresh_every": 2, "steps": 4, "number": 1},
        {"retain_weight": 0.0, "rsc_weight": 0.0},
        {"gradient_accumulation_steps": 2, "cached_trajectories": 2},
    ),
)
def test_the_preparation_of_an_epoch_is_reported_up_to_its_end(patcher, clip, config, change):
    """After every forward; the count of the sequences is known before the first one and reached with the last one."""
    number = change.pop("number", 0)
    reports, sequences = [], []
    plan = prepare(dataclasses.replace(config, **change), ComfyTextEncoder(clip))
    with training_session(patcher) as model:
        model.attach("all_qkv", 4, torch.Generator().manual_seed(0))
        hook = model.module.img_in.register_forward_hook(lambda module, args, _: sequences.append(len(args[0])))
        TrajectoryCache(model, plan, lambda done, total: reports.append((done, total))).epoch(number)
        hook.remove()
    done = [answered for answered, _ in reports]
    totals = {total for _, total in reports}
    assert totals == {done[-1]} == {sum(sequences)}
    assert done == sorted(set(done)) and len(done) == len(sequences)


def test_a_restored_epoch_reports_only_what_it_lacks(patcher, clip, config):
    plan = prepare(dataclasses.replace(config, steps=4, refresh_every=4), ComfyTextEncoder(clip))
    reports = []
    with training_session(patcher) as model:
        model.attach("all_qkv", 4, torch.Generator().manual_seed(0))
        cache = TrajectoryCache(model, plan, lambda done, total: reports.append((done, total)))
        stored = {name: tensor.clone() for name, tensor in cache.epoch(0).tensors().items()}
        whole = reports[-1][1]
        reports.clear()
        cache.epoch(0, stored, covered=4)
        assert not reports
        cache.epoch(0, stored, covered=2)
    assert reports[-1][0] == reports[-1][1] < whole
