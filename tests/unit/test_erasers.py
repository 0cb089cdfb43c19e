"""The methods that a user can choose, on a toy in float64: losses by their equations, gradients by differences."""

import dataclasses
import math

import pytest
import torch

from eraseanything_core import sampling
from eraseanything_core.erasers import eap, eraseanything_pp, gem, meta_unlearning, registry, slider
from eraseanything_core.training.divergences import Divergence
from eraseanything_core.training.objective import weighted_sum
from eraseanything_core.training.plan import conds, generator
from tests.unit.eraser_cases import (
    asked,
    config_of,
    differences,
    gradient,
    graphs,
    of_pair,
    points,
    shift,
    started,
    trained,
)

pytestmark = pytest.mark.usefixtures("double_precision")


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
