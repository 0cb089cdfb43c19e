"""The methods that a user can choose, on a toy in float64: losses by their equations, gradients by differences."""

import dataclasses
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eraseanything_core import sampling
from eraseanything_core.erasers import eap, eraseanything_pp, gem, meta_unlearning, registry, slider
from eraseanything_core.training import trainer
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.divergences import Divergence
from eraseanything_core.training.method import Pair
from eraseanything_core.training.objective import weighted_sum
from eraseanything_core.training.optimizers import lora_optimizer
from eraseanything_core.training.plan import conds, generator, prepare
from eraseanything_core.training.presets import run_config
from eraseanything_core.training.trajectory_cache import TrajectoryCache
from tests.unit.toy_model import ToyModel, ToyText

BASE = {
    "concept": "star",
    "irrelevant": ("dog", "tree"),
    "templates": ("a photo of {}", "{} at night"),
    "retain": ("a house", "two balls"),
    "neutral": "{thing}",
    "width": 16,
    "height": 16,
    "sampling_steps": 4,
    "cached_trajectories": 3,
    "cached_retain_trajectories": 4,
    "refresh_every": 2,
    "batch_size": 2,
    "retain_batch_size": 2,
    "rank": 2,
    "steps": 4,
    "attn_weight": 0.0,
    "rsc_weight": 0.0,
    "alternate": False,
    "monitor_every": 0,
}
SMALL = {"rank": 2, "batch_size": 2, "cached_retain_trajectories": 4}  # over what a method sets


@pytest.fixture(autouse=True)
def _in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def config_of(name, own=None, **settings):
    return EraseConfig(**BASE | registry.settings_of(name, own) | SMALL | settings)


def started(name, own=None, step=0, **settings):
    """A run after its first epoch was prepared, its LoRA somewhere, and one of its pairs."""
    config = config_of(name, own, **settings)
    model = ToyModel()
    plan = prepare(config, ToyText())
    lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(0))
    lora.up[0].data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    optimizers = [lora_optimizer(lora, config.lr_low, config) for _ in range(2)]
    epoch = TrajectoryCache(model, plan).epoch(0)
    model.asked.clear()

    def pair():
        """Anew each time: its chance starts from the beginning."""
        return Pair(model, plan, epoch, step, lora, optimizers, generator(config.seed, step + 2**40))

    method = registry.method_of(config)
    return SimpleNamespace(config=config, model=model, plan=plan, lora=lora, epoch=epoch, pair=pair, method=method)


def graphs(run):
    """Every graph of the pair, both levels."""
    pair = run.pair()
    for draw in run.method.draws(pair):
        yield from run.method.erase(pair, draw)
        yield from run.method.preserve(pair, draw)


def gradient(run):
    """The gradient of the weighted sum, one vector."""
    parameters = list(run.lora.parameters())
    for parameter in parameters:
        parameter.grad = None
    for graph in graphs(run):
        weighted_sum(graph, run.config).backward()
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def shift(lora, way):
    """Moves the factors along a vector."""
    for parameter, part in zip(lora.parameters(), way.split([p.numel() for p in lora.parameters()]), strict=True):
        parameter.data += part.view_as(parameter)


def differences(run, total, count=3, step=1e-5):
    """Directional derivatives of a function of the factors: directions, and central differences along them."""
    rng = torch.Generator().manual_seed(3)
    size = sum(parameter.numel() for parameter in run.lora.parameters())
    ways, slopes = torch.randn(count, size, generator=rng), []
    for way in ways:
        shift(run.lora, step * way)
        ahead = total()
        shift(run.lora, -2 * step * way)
        behind = total()
        shift(run.lora, step * way)
        slopes.append((ahead - behind) / (2 * step))
    return ways, torch.tensor(slopes)


KINDS = {
    "eraseanything": ("eraseanything", None),
    "esd": ("esd", None),
    "ablation": ("concept_ablation", None),
    "ablation with prior": ("concept_ablation", {"prior_weight": 0.5}),
    "ablation to noise": ("concept_ablation", {"target": "noise", "prior_weight": 0.5}),
    "eap": ("eap", None),
    "spm": ("spm", None),
    "slider": ("slider", None),
    "eraseflow": ("eraseflow", {"z_rate": 0.0}),  # else z changes from one evaluation to the next
    "gem": ("gem", None),
    "eraseanything_pp": ("eraseanything_pp", None),
    "mace": ("mace", None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_loss(kind):
    name, own = KINDS[kind]
    run = started(name, own)
    found = gradient(run)

    def total():
        return sum(float(weighted_sum(graph, run.config).detach()) for graph in graphs(run))

    ways, slopes = differences(run, total)
    assert slopes.abs().max() > 1e-4, "nothing would be compared"
    torch.testing.assert_close(ways @ found, slopes, rtol=1e-5, atol=1e-8)


def test_every_method_is_here():
    assert {name for name, _ in KINDS.values()} == set(registry.METHODS)


def points(run):
    """The first draw's x_t, t, rows, and its sentences."""
    (draw,) = run.epoch.draws[0]
    row, step = draw.erase
    x_t, sigma, v = run.epoch.concept.at(row, step, "cpu")
    return SimpleNamespace(x=x_t, t=sigma, v=v, row=row, step=step, of=[run.epoch.concept.sources[i] for i in row])


def asked(run, prompts, at, adapters):
    return run.model.velocity(at.x, at.t, conds(run.model, run.plan, prompts), adapters)


def of_pair(run):
    """The sum of each loss of the pair."""
    found = {}
    for graph in graphs(run):
        for name, loss in graph.items():
            found[name] = found.get(name, 0.0) + float(loss.detach())
    return found


def test_esd_is_the_papers_form():
    run = started("esd", neutral="")
    at = points(run)
    concept, empty = ([getattr(s, side) for s in at.of] for side in ("concept", "neutral"))
    assert {prompt.text for prompt in empty} == {""}
    v_c, v_0 = asked(run, concept, at, False), asked(run, empty, at, False)
    expected = (asked(run, concept, at, True) - (v_0 - 1.0 * (v_c - v_0))).square().mean()
    assert of_pair(run) == {"esd": pytest.approx(float(expected))}


@pytest.mark.parametrize("variant, part", (("strict", "text and image k,v"), ("x", "all"), ("u", "unconditional")))
def test_variants_of_esd_are_targets(variant, part):
    assert registry.settings_of("esd", {"variant": variant})["targets"].startswith(part)


def test_ablation_walks_with_the_anchor_and_leads_the_concept_there():
    run = started("concept_ablation", {"prior_weight": 0.5})
    at = points(run)
    concept, anchor = ([getattr(s, side) for s in at.of] for side in ("concept", "neutral"))
    v_a = asked(run, anchor, at, False)
    torch.testing.assert_close(v_a, at.v)
    assert run.epoch.concept.neutral is None, "nothing is asked twice"
    found = of_pair(run)
    assert found["ablation"] == pytest.approx(float((asked(run, concept, at, True) - v_a).square().mean()))
    assert found["prior"] == pytest.approx(0.5 * float((asked(run, anchor, at, True) - v_a).square().mean()))


def test_noise_based_ablation_leads_to_the_anchors_pictures():
    run = started("concept_ablation", {"target": "noise"})
    at = points(run)
    pair = run.pair()
    noise = torch.randn(2, 2, 4, 4, generator=pair.rng)
    t = torch.rand(2, generator=pair.rng)
    x_a = run.epoch.concept.x[at.row, -1]
    cond = conds(run.model, run.plan, [s.concept for s in at.of])
    wide = t[:, None, None, None]
    student = run.model.velocity((1 - wide) * x_a + wide * noise, t, cond, True)
    assert of_pair(run)["ablation"] == pytest.approx(float((student - (noise - x_a)).square().mean()))


def test_eap_preserves_what_is_damaged_most():
    run = started("eap", {"worst_share": 0.25})
    pair = run.pair()
    damages = eap.damage(run.model, run.plan, run.epoch.retain, generator(~run.config.seed, 0))
    (draw,) = run.method.draws(pair)
    assert set(draw.retain[0].tolist()) == {int(damages.argmax())}
    assert torch.equal(draw.retain[1], run.epoch.draws[0][0].retain[1]), "the times stay"
    # Between two looks the choice is the one that was made.
    shift(run.lora, torch.randn(sum(p.numel() for p in run.lora.parameters())))
    later = dataclasses.replace(pair, step=1)
    (draw,) = run.method.draws(later)
    assert set(draw.retain[0].tolist()) == {int(damages.argmax())}
    assert eap.hardest(torch.tensor([0.1, 0.9, 0.5, 0.2]), 0.5).tolist() == [1, 2]


def test_spms_anchors_lie_between_two_prompts_that_must_stay():
    run = started("spm", {"anchors": 20})
    (draw,) = run.epoch.draws[0]
    kept = [run.plan.encode(prompt.text).context for prompt in run.plan.retained]
    for anchor in run.method.anchors(run.pair(), draw):
        # The distances to both ends add up to theirs.
        sums = [(anchor.context - a).norm() + (anchor.context - b).norm() - (a - b).norm() for a in kept for b in kept]
        assert min(map(float, sums)) < 1e-9


def test_spm_draws_what_is_unlike_the_concept_more_often():
    """Of two prompts one is the concept's own: about their centre it is as like the concept as can be."""
    run = started("spm", {"anchors": 50, "tries": 20})
    sentence = run.epoch.concept.sources[0]
    run.plan.retained[:] = [sentence.concept, run.plan.retained[0]]
    (draw,) = run.epoch.draws[0]
    here = dataclasses.replace(draw, erase=(torch.tensor([0]), torch.tensor([0])))
    own, other = (run.plan.encode(prompt.text).context for prompt in run.plan.retained)
    for anchor in run.method.anchors(run.pair(), here):
        assert (anchor.context - other).norm() <= (anchor.context - own).norm() + 1e-9


def test_a_slider_has_both_directions():
    run = started("slider", eta=0.5)
    at = points(run)
    concept, neutral = ([getattr(s, side) for s in at.of] for side in ("concept", "neutral"))
    v_c, v_n = asked(run, concept, at, False), asked(run, neutral, at, False)
    expected = 0.0
    for strength in (1, -1):
        with slider.at_strength(run.lora, strength):
            student = asked(run, concept, at, True)
        target = v_n - 0.5 * (v_c - v_n) if strength == 1 else v_c + 1.5 * (v_c - v_n)
        expected += float((student - target).square().mean()) / 2
    assert of_pair(run)["slider"] == pytest.approx(expected) and run.lora.scale == 1


def test_the_stochastic_walk_has_the_marginals_of_eulers():
    """Pictures from N(3, 0.5^2): the velocity is known, and so are mean and variance at every time."""
    rng = torch.Generator().manual_seed(0)
    sigmas = torch.linspace(0.9, 0, 101)
    x = 0.1 * 3 + (0.1**2 * 0.25 + 0.9**2) ** 0.5 * torch.randn(20000, 1, 1, 1, generator=rng)
    for t, s in zip(sigmas[:-1], sigmas[1:], strict=True):
        variance = (1 - t) ** 2 * 0.25 + t**2
        # E[n - x_0 | x_t], by the regression of jointly Gaussian numbers.
        v = -3 + (t - (1 - t) * 0.25) / variance * (x - (1 - t) * 3)
        mean, deviation = sampling.noisy_step(x, v, t, s, 0.7)
        x = mean + deviation * torch.randn(x.shape, generator=rng)
        if s > 0:
            wanted = (1 - s) ** 2 * 0.25 + s**2
            assert float(x.mean()) == pytest.approx(float((1 - s) * 3), abs=0.05)
            assert float(x.var()) == pytest.approx(float(wanted), rel=0.06)


def test_without_noise_the_step_is_eulers():
    x, v = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    mean, deviation = sampling.noisy_step(x, v, torch.tensor(0.6), torch.tensor(0.5), 0.0)
    torch.testing.assert_close(mean, x - 0.1 * v)
    assert deviation == 0


def test_eraseflow_is_the_square_of_one_sum():
    """By densities of the transitions: a Gaussian each, whose constants cancel."""
    run = started("eraseflow", {"beta": 1.5, "z_rate": 0.1})
    walks = run.epoch.concept
    rows = points(run).row
    total = torch.zeros(len(rows))
    for step in range(4):
        x_t, t, v_a = walks.at(rows, torch.full_like(rows, step), "cpu")
        cond = conds(run.model, run.plan, [walks.sources[i].concept for i in rows])
        for v, sign in ((run.model.velocity(x_t, t, cond, True), 1), (v_a, -1)):
            mean, deviation = sampling.noisy_step(x_t, v, walks.sigmas[step], walks.sigmas[step + 1], 0.7)
            density = torch.distributions.Normal(mean, deviation).log_prob(walks.x[rows, step + 1])
            total += sign * density.mean((1, 2, 3)).detach()
    assert of_pair(run)["balance"] == pytest.approx(float((total - 1.5).square().mean()))
    assert run.pair().remembered("z", 0.0) == pytest.approx(-0.1 * 2 * float((total - 1.5).mean()))


def test_gems_hinge_stops():
    """Its value from three points on a line, and no gradient once the anchor is near enough."""
    anchor, concept = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    for place, value in ((1.0, 1.0), (0.5, 0.5 - 0.25 * 0.5), (0.19, 0.0), (0.1, 0.0)):
        student = torch.full((2, 1, 2, 2), place, requires_grad=True)
        loss = gem.hinge(student, anchor, concept, 0.25)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(value, abs=1e-5)
        assert bool(student.grad.any()) == (value > 0)
    at_anchor = torch.zeros(2, 1, 2, 2, requires_grad=True)
    gem.hinge(at_anchor, anchor, concept, 0.0).backward()
    assert at_anchor.grad.isfinite().all()


def test_surgery_gives_way_only_where_it_would_harm():
    torch.manual_seed(0)
    f, r = [torch.randn(3, 2), torch.randn(4)], [torch.randn(3, 2), torch.randn(4)]

    def dot(a, b):
        return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))

    if dot(f, r) > 0:
        r = [-each for each in r]
    given = eraseanything_pp.mixed(f, r, 0.0)
    assert dot(f, r) < 0 and dot(given, r) == pytest.approx(0, abs=1e-12)
    against = [x - g for x, g in zip(f, given, strict=True)]
    assert dot(against, against) == pytest.approx(dot(f, r) ** 2 / dot(r, r))
    # Where both agree nothing is taken away, and without any damage neither.
    back = [-each for each in r]
    assert all(map(torch.equal, eraseanything_pp.mixed(f, back, 0.0), f))
    assert all(map(torch.equal, eraseanything_pp.mixed(f, [0 * each for each in r], 0.0), f))
    half = eraseanything_pp.mixed(f, back, 1.0)
    torch.testing.assert_close(half[0], (f[0] + back[0]) / 2)


def test_the_dual_variable_follows_retention_at_the_same_points():
    run = started("eraseanything_pp", {"rate": 2.0, "slack": 0.1, "floor": 0.5}, lr_low=0.05)
    pair = run.pair()
    before = of_pair(run)
    run.method.step(run.pair())
    after = of_pair(run)
    floor = 0.5 * before["esd"]
    growth = math.log((after["retain"] + floor) / (before["retain"] + floor))
    assert pair.remembered("w", None) == pytest.approx(max(0.0, 2.0 * (growth - 0.1)))
    # A second pair measures against the first one's erasing loss still.
    run.method.step(run.pair())
    assert pair.remembered("first", None) == pytest.approx(before["esd"])
    pair.remember("w", 1.0)
    run.method.update_dual(pair, run.method.draws(pair), 1.0, before=1e9)
    assert pair.remembered("w", None) == 0.0


def test_the_meta_step_is_taken_where_somebody_trains_the_concept_back():
    run = started("esd", meta_weight=0.5, retain_weight=1.0)
    pair, own = run.pair(), meta_unlearning.SETTINGS
    (draw,) = run.method.draws(pair)
    parameters = list(run.lora.parameters())
    at = points(run)
    concept = [s.concept for s in at.of]

    def relearning():
        return (asked(run, concept, at, True) - asked(run, concept, at, False)).square().mean()

    assert float(meta_unlearning.relearning(pair, draw)) == pytest.approx(float(relearning()))
    start = [parameter.detach().clone() for parameter in parameters]
    back = torch.cat([-own.rate * g.sign().flatten() for g in torch.autograd.grad(relearning(), parameters)])
    for parameter in parameters:
        parameter.grad = None
    for graph in meta_unlearning.meta_graphs(run.method, pair, draw):
        graph["meta"].backward()
    found = torch.cat([parameter.grad.flatten() for parameter in parameters])
    assert all(map(torch.equal, parameters, start)), "it is where it was"
    shift(run.lora, back)

    def total():
        parts = of_pair(run)
        return 0.5 * (parts["esd"] - own.harm * float(relearning()) - own.related * parts["retain"])

    ways, slopes = differences(run, total)
    torch.testing.assert_close(ways @ found, slopes, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name, own", KINDS.values(), ids=KINDS)
def test_the_meta_step_goes_on_top_of_any_method(name, own):
    config = config_of(name, own, meta_weight=1.0)
    losses = trained(config).losses
    assert len(losses["meta"]) == config.steps and any(losses["meta"])


@pytest.mark.parametrize("divergence, alpha", (("hellinger", 0.5), ("alpha", 0.3), ("alpha", 2.0)))
def test_divergences_are_those_of_two_gaussians(divergence, alpha):
    """By quadrature of the densities, in one dimension; small distances are squared errors."""
    width, student, target, untrained = 0.7, 0.9, 0.2, 1.1
    s_squared = width * (untrained - target) ** 2
    z = torch.linspace(-12, 12, 200001)
    p, q = (torch.distributions.Normal(mean, s_squared**0.5).log_prob(z) for mean in (student, target))
    integral = torch.trapezoid((alpha * p + (1 - alpha) * q).exp(), z)
    expected = 2 * s_squared * (1 - integral) / (alpha * (1 - alpha))
    values = [torch.full((1, 1, 1, 1), value) for value in (student, target, untrained)]
    found = Divergence(divergence, alpha, width)(*values)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    near = Divergence(divergence, alpha, width)(values[1] + 1e-4, values[1], values[2])
    assert float(near) == pytest.approx(1e-8, rel=1e-3)


def test_a_bounded_divergence_pulls_less_from_far_away():
    slopes = {}
    for distance in (0.1, 10.0):
        student = torch.full((1, 1, 1, 1), distance, requires_grad=True)
        Divergence("hellinger")(student, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).backward()
        slopes[distance] = float(student.grad)
    assert slopes[10.0] < 0.01 * slopes[0.1]


@pytest.mark.parametrize("divergence", ("hellinger", "alpha"))
def test_a_run_with_another_divergence_has_its_gradient(divergence):
    run = started("esd", divergence=divergence, alpha=0.3)
    found = gradient(run)
    ways, slopes = differences(run, lambda: of_pair(run)["esd"])
    torch.testing.assert_close(ways @ found, slopes, rtol=1e-5, atol=1e-8)


def counted(name, **settings):
    """Sequences of one step of the preset `balanced`, with a gradient and without, over the first twenty."""
    words = {field: BASE[field] for field in ("concept", "irrelevant", "templates", "retain", "neutral")}
    plain = {"width": 16, "height": 16, "attn_weight": 0.0, "steps": 20, "refresh_every": 20, "monitor_every": 0}
    off = {"stop_when_gone": False, "adapt_rate": False}
    config = run_config(words, "balanced", registry.settings_of(name) | plain | off | settings)
    model, plan, method = ToyModel(), prepare(config, ToyText()), registry.method_of(config)
    lora = model.attach(config.targets, config.rank, torch.Generator())
    optimizers = [lora_optimizer(lora, config.lr_low, config) for _ in range(2)]
    epoch = TrajectoryCache(model, plan).epoch(0)
    model.asked.clear()
    for step in range(config.steps):
        trainer.train_pair(model, plan, epoch, step, lora, optimizers, method=method)
    return tuple(sum(rows for rows, _, grad in model.asked if grad is on) / config.steps for on in (True, False))


def test_the_page_has_the_counted_costs():
    page = (Path(__file__).resolve().parents[2] / "docs" / "erasers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    told = {label: (float(on), float(off)) for label, on, off in rows}
    assert told == {method.label: counted(name) for name, method in registry.METHODS.items()}
    plain, meta = counted("esd", retain_weight=1.0), counted("esd", retain_weight=1.0, meta_weight=1.0)
    assert "four more with a gradient, and none without" in page
    assert (meta[0] - plain[0], meta[1] - plain[1]) == (4, 0)


def trained(config, **rest):
    return trainer.train(ToyModel(), prepare(config, ToyText()), method=registry.method_of(config), **rest)


def nearness(model, plan):
    """Where the student's velocities lie between the neutral text's (0) and the concept's (1), as gone pictures do."""
    rng = torch.Generator().manual_seed(11)
    x, t = torch.randn(32, 2, 4, 4, generator=rng), torch.rand(32, generator=rng)
    chosen = [plan.sentences[i % len(plan.sentences)] for i in range(32)]
    student, v_c = (model.velocity(x, t, conds(model, plan, [s.concept for s in chosen]), on) for on in (True, False))
    v_n = model.velocity(x, t, conds(model, plan, [s.neutral for s in chosen]), False)
    return float(((student - v_n) * (v_c - v_n)).sum() / (v_c - v_n).square().sum())


# The toy's velocity does not depend on its attention; see tests/unit/test_mace_method.py.
BY_VELOCITY = [name for name in registry.METHODS if name != "mace"]


@pytest.mark.parametrize("name", BY_VELOCITY)
def test_it_erases_the_toys_concept(name):
    """From 1, the original model, to under a half. tests/comfy/test_erasers.py asks TinyFlux for pictures."""
    config = config_of(name, steps=80, refresh_every=20, lr_low=0.03, rank=4, cached_trajectories=6)
    model, plan = ToyModel(), prepare(config, ToyText())
    trainer.train(model, plan, method=registry.method_of(config))
    reached = nearness(model, plan)
    model.lora.scale = 0.0
    assert nearness(model, plan) == pytest.approx(1.0)
    assert reached < 0.5


@pytest.mark.parametrize("name", registry.METHODS)
def test_a_stopped_run_goes_on_to_the_same_bits(name, tmp_path):
    """What a method remembers is saved with the optimizer."""
    torch.set_default_dtype(torch.float32)  # as a state is saved
    config = config_of(name, steps=5, save_every=1)
    whole = trained(config)

    def stop(done, losses):
        if done == 3:
            raise KeyboardInterrupt

    first = trained(config, progress=stop, run_dir=tmp_path / "run")
    assert first.interrupted and first.steps == 3
    second = trained(config, run_dir=tmp_path / "run")
    assert second.losses == whole.losses
    assert all(torch.equal(second.lora[key], whole.lora[key]) for key in whole.lora)


@pytest.mark.parametrize(
    "name, settings, message",
    (
        ("gem", {"attn_weight": 0.1}, "GEM has no loss on attention: set attn_weight to 0"),
        ("slider", {"divergence": "alpha"}, "has a loss of its own: set divergence to squared"),
        ("eap", {"retain_weight": 0.0}, "EAP needs prompts that must stay: set retain_weight above 0"),
        ("eap", {"on_policy_share": 0.5}, "EAP needs trajectories of the original model alone: set on_policy_share"),
        ("esd", {"walk": "neutral"}, "ESD needs walk to be concept"),
        ("magic", {}, "there is no method 'magic'; there are eraseanything, "),
        ("esd", {"method_settings": (("size", 1),)}, "esd has no setting 'size'; it has variant"),
    ),
    ids=str,
)
def test_settings_that_a_method_cannot_work_with_are_refused(name, settings, message):
    base = config_of(name) if name in registry.METHODS else EraseConfig("star", method=name)
    with pytest.raises(ValueError, match=message):
        registry.method_of(dataclasses.replace(base, **settings))


def test_a_run_is_never_trained_by_another_method():
    with pytest.raises(AssertionError, match="the settings are for esd"):
        trainer.train(ToyModel(), prepare(config_of("esd"), ToyText()))
