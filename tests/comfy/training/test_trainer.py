"""The loop does what DESIGN.md section 3 says; each test fails on a mistake of the paper's reference code."""

import dataclasses
import os

import comfy.sample
import pytest
import torch

from eraseanything_core import sampling
from eraseanything_core.attention import columns
from eraseanything_core.comfy_bridge.capture import Capture
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.comfy_bridge.text import ComfyTextEncoder
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.concepts import matching
from eraseanything_core.training import objective, run_files, trainer
from eraseanything_core.training.features import teacher_features
from eraseanything_core.training.optimizers import lora_optimizer
from eraseanything_core.training.plan import conds, prepare, select_words
from eraseanything_core.training.recipe import train_eraser
from eraseanything_core.training.trajectory_cache import TrajectoryCache


@pytest.fixture
def text(clip):
    return ComfyTextEncoder(clip)


@pytest.fixture
def plan(config, text):
    return prepare(config, text)


@pytest.fixture
def forwards(monkeypatch):
    """Every forward of the seam during training, as keyword arguments."""
    seen, original = [], FluxModel._run

    def run(self, x_t, sigma, cond, adapters, capture, stop):
        row = {"x": x_t, "sigma": sigma, "cond": cond, "adapters": adapters, "capture": capture, "stop": stop}
        seen.append(row | {"grad": torch.is_grad_enabled()})
        return original(self, x_t, sigma, cond, adapters, capture, stop)

    monkeypatch.setattr(FluxModel, "_run", run)
    return seen


def test_a_pair_is_three_forwards_of_the_student(patcher, plan, forwards):
    """The teacher has spoken before: at the same x_t, t, prompt and guidance that the student is asked at."""
    with training_session(patcher) as model:
        lora = model.attach("paper", 8, torch.Generator())
        epoch = TrajectoryCache(model, plan).epoch(0)
        assert all(not f["adapters"] for f in forwards), "the trajectories and targets are the frozen model's"
        forwards.clear()
        both = [lora_optimizer(lora, 1e-3, plan.config) for _ in range(2)]
        found = trainer.train_pair(model, plan, epoch, 1, lora, both)
        erased, kept, mapped = forwards
        assert all(f["adapters"] and f["grad"] for f in forwards) and [f["stop"] for f in forwards] == [0, 0, 1]
        assert set(found) == {"esd", "attn", "retain", "rsc"}
        assert set(erased["capture"].maps) == {0, 1}, "all dual blocks, same forward as the velocity"
        draw = epoch.draws[1][0]
        sentences = [epoch.concept.sources[i] for i in draw.erase[0]]
        neutral = conds(model, plan, [s.neutral for s in sentences])
        told = model.velocity(erased["x"], erased["sigma"], neutral, adapters=False)
        assert torch.equal(neutral.guidance, erased["cond"].guidance)
    assert torch.allclose(told, epoch.concept.neutral[draw.erase], atol=1e-5)


def test_the_target_stays_while_the_student_moves(patcher, plan):
    """The reference code's targets moved with the LoRA. Here e_c and e_n are those of the base model after steps."""
    with training_session(patcher) as model:
        x, sigma = torch.randn(1, 16, 12, 12), torch.tensor([0.7])
        sentence = plan.sentences[0]
        before = [model.velocity(x, sigma, conds(model, plan, [p]), False) for p in sentence.prompts()]
        trainer.train(model, plan)
        after = [model.velocity(x, sigma, conds(model, plan, [p]), False) for p in sentence.prompts()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_points_lie_on_the_trajectory(patcher, plan):
    """Each x_t follows from the one before by the teacher's velocity at the sigma that is asked, from pure noise."""
    with training_session(patcher) as model:
        model.attach("paper", 8, torch.Generator())
        pool = TrajectoryCache(model, plan).epoch(0).concept
        row, step = pool.draw(64, 0.0, torch.Generator().manual_seed(0))
        x, sigma, v = pool.at(row, step, "cpu")
        cond = conds(model, plan, [pool.sources[i].concept for i in row])
        assert torch.allclose(model.velocity(x, sigma, cond, adapters=False), v, atol=1e-4)
    following = x + (pool.sigmas[step + 1] - sigma)[:, None, None, None] * v
    assert torch.allclose(following, pool.x[row, step + 1], atol=1e-5)
    assert abs(pool.x[:, 0].std() - 1) < 0.05
    assert set(step.tolist()) == {0, 1, 2, 3} and pool.sigmas[0] == 1 and pool.sigmas[-1] == 0


def test_each_trajectory_has_times_of_its_own(patcher, clip, config):
    """Between the sampler's, the same when asked again; and the points lie on the trajectory as before."""
    config = dataclasses.replace(config, own_times=True, cached_trajectories=6, cached_retain_trajectories=3)
    plan = prepare(config, ComfyTextEncoder(clip))
    with training_session(patcher) as model:
        model.attach("paper", 8, torch.Generator())
        cache = TrajectoryCache(model, plan)
        epoch = cache.epoch(0)
        fine = model.sigmas(20 * config.sampling_steps)
        for pool, rows in ((epoch.concept, 6), (epoch.retain, 3)):
            times = pool.sigmas
            assert times.shape == (rows, config.sampling_steps + 1) and len(set(times[:, 1].tolist())) == rows
            assert (times[:, 0] == 1).all() and (times[:, -1] == 0).all() and (times.diff() < 0).all()
            assert torch.isin(times, fine).all() and times[:, 1].max() > fine[10] and times[:, 1].min() < fine[30]
            assert torch.equal(times, cache.times(0, rows)) and not torch.equal(times, cache.times(1, rows))
            row, step = pool.draw(64, 0.0, torch.Generator().manual_seed(0))
            x, sigma, v = pool.at(row, step, "cpu")
            assert torch.equal(sigma, times[row, step]) and set(row.tolist()) == set(range(rows))
            asked = [getattr(pool.sources[i], "concept", pool.sources[i]) for i in row]
            assert torch.allclose(model.velocity(x, sigma, conds(model, plan, asked), adapters=False), v, atol=1e-4)
            following = x + (times[row, step + 1] - sigma)[:, None, None, None] * v
            assert torch.allclose(following, pool.x[row, step + 1], atol=1e-5)
            high = pool.draw(64, 0.9, torch.Generator().manual_seed(0))
            assert times[high].min() >= 0.9


def test_every_time_above_the_lowest_has_answers(patcher, clip, config):
    """The second step's time is 0.9 by the sampler and above on some trajectories; the teacher is asked on those."""
    change = {"own_times": True, "importance_sampling": True, "erase_time": 0.92, "cached_trajectories": 6}
    plan = prepare(dataclasses.replace(config, **change), ComfyTextEncoder(clip))
    with training_session(patcher) as model:
        model.attach("paper", 8, torch.Generator())
        concept = TrajectoryCache(model, plan).epoch(0).concept
    allowed = concept.sigmas[:, :-1] >= 0.92
    assert allowed[:, 1].any() and not allowed[:, 1].all()
    assert concept.neutral.abs().amax((2, 3, 4))[allowed].min() > 0


def test_noise_on_the_way_wants_one_schedule(patcher, clip, config):
    with pytest.raises(ValueError, match="turn own_times off"):
        train_eraser(ComfyHost(patcher, clip), dataclasses.replace(config, own_times=True, walk_noise=0.5))


def test_a_trajectory_is_the_stock_samplers(patcher, plan):
    """KSampler's euler with the simple schedule, from the same noise, ends in the same latent."""
    prompt, steps = plan.sentences[0].concept, 20
    with training_session(patcher) as model:
        noise = torch.randn(1, 16, 12, 12, generator=torch.Generator().manual_seed(3))
        sigmas = sampling.shifted_sigmas(steps, model.mu)
        ours = list(model.trajectory(conds(model, plan, [prompt]), noise, sigmas))[-1][0]
    context, pooled = plan.encode(prompt.text)
    cond = [[context, {"pooled_output": pooled, "guidance": plan.config.guidance}]]
    zero = torch.zeros_like(noise)
    theirs = comfy.sample.sample(
        patcher, noise, steps, 1.0, "euler", "simple", cond, cond, zero, disable_pbar=True, seed=0
    )
    theirs = patcher.model.process_latent_in(theirs)
    assert (ours - theirs).norm() / theirs.norm() < 1e-3


def test_every_prompt_has_its_own_span(patcher, text, config, forwards):
    """Synonyms of another length at another place: the columns of each prompt spell its own word."""
    config = dataclasses.replace(config, synonyms=("Betelgeuse",), irrelevant=("a very old house", "dog", "sun"))
    plan = prepare(config, text)
    with training_session(patcher) as model:
        model.attach("paper", 8, torch.Generator())
        sentences, where = plan.sentences[:2], (torch.randn(2, 16, 12, 12), torch.tensor([0.9, 0.7]))
        known = teacher_features(model, plan, sentences, *where)
        objective.rsc(model, plan, sentences, *where, known)
    (teacher, student), (x, _) = forwards, where
    assert student["adapters"] and not teacher["adapters"] and student["stop"] and teacher["stop"]
    assert torch.equal(teacher["x"], x.repeat_interleave(4, 0)), "the same x_t for synonym and irrelevant words"
    asked = [p for s in sentences for p in (s.synonym, *s.irrelevant)]
    chosen = asked, [s.concept for s in sentences]
    for forward, expected in zip(forwards, chosen, strict=True):
        for prompt, select in zip(expected, forward["capture"].select, strict=True):
            pieces = text.pieces(prompt.text)
            spelled = "".join(pieces[i] for i in select[:, 0].nonzero()[:, 0]).replace("▁", " ").strip()
            assert spelled == prompt.word
            assert select.sum() == len(matching.positions(pieces, prompt.word)) > 0
        for maps in forward["capture"].maps.values():
            assert maps.shape == (len(expected), 2, 36, 1), "image queries only, every head"


def test_only_the_concept_carries_a_gradient_in_rsc(patcher, plan):
    with training_session(patcher) as model:
        lora = model.attach("paper", 8, torch.Generator().manual_seed(0))
        where = torch.randn(1, 16, 12, 12), torch.tensor([0.9])
        known = teacher_features(model, plan, plan.sentences[:1], *where)
        assert not known.requires_grad
        objective.rsc(model, plan, plan.sentences[:1], *where, known).backward()
    assert sum(float(up.grad.norm()) for up in lora.up) > 0


def test_two_learning_rates_and_two_optimisers(patcher, plan, monkeypatch):
    made, original = [], trainer.lora_optimizer
    monkeypatch.setattr(trainer, "lora_optimizer", lambda *a: made.append(original(*a)) or made[-1])
    with training_session(patcher) as model:
        trainer.train(model, plan)
    lower, upper = made
    assert (lower.param_groups[0]["lr"], upper.param_groups[0]["lr"]) == (1e-3, 5e-4)
    moments = [o.state[o.param_groups[0]["params"][1]] for o in made]
    assert [m["step"] for m in moments] == [3, 3]
    assert not torch.equal(moments[0]["exp_avg"], moments[1]["exp_avg"])
    assert all(p.dtype == torch.float32 for o in made for p in o.param_groups[0]["params"])


def test_trajectories_are_drawn_anew(patcher, text, config, monkeypatch):
    drawn, original = [], TrajectoryCache.epoch
    monkeypatch.setattr(TrajectoryCache, "epoch", lambda *args: drawn.append(args[1]) or original(*args))
    plan = prepare(dataclasses.replace(config, steps=5, refresh_every=2), text)
    with training_session(patcher) as model:
        trainer.train(model, plan)
        one, other = (original(TrajectoryCache(model, plan), epoch).concept for epoch in (0, 1))
    assert drawn == [0, 1, 2] and not torch.equal(one.x, other.x)
    assert [s.concept for s in one.sources + other.sources] == [s.concept for s in plan.sentences], "each in turn"


def test_masters_stay_float32_under_bf16(patcher, text, config):
    """bf16 weights would lose steps of a small learning rate: here 20 of 1e-6 all count."""
    config = dataclasses.replace(config, dtype="bf16", steps=20, lr_low=1e-6, alternate=False)
    with training_session(patcher, torch.bfloat16) as model:
        result = trainer.train(model, prepare(config, text))
    ups = torch.cat([t.flatten() for k, t in result.lora.items() if "lora_B" in k])
    assert ups.dtype == torch.float32 and 1e-6 < ups.abs().mean() < 2.1e-5


@pytest.mark.parametrize(
    "change",
    (
        {},
        {"alternate": False},
        {"retain_loss": "paper"},
        {"retain_loss": "paper", "on_policy_share": 0.5, "cached_trajectories": 2, "refresh_every": 2},
        {"paper_sign": True},
        {"rsc_weight": 0},
        {"attention_blocks": (1,)},
        {"attention_blocks": (-1,)},
    ),
)
def test_the_options_train(patcher, text, config, change):
    plan = prepare(dataclasses.replace(config, **change), text)
    with training_session(patcher) as model:
        result = trainer.train(model, plan)
    assert result.steps == 3 and all(len(values) == 3 for values in result.losses.values())


def test_block_minus_one_is_the_last(patcher, plan):
    prompt, maps = plan.sentences[0].concept, []
    with training_session(patcher) as model:
        for block in (-1, 1, 0):
            capture = model.capture(select_words(model, plan, [prompt]), (block,))
            where = torch.ones(1, 16, 12, 12), torch.tensor([0.8])
            maps += model.columns(*where, conds(model, plan, [prompt]), False, capture).values()
    assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])


def test_the_loss_falls(patcher, text, config):
    """Forty pairs with all projections: the student follows the turned-away target far better than at the start."""
    config = dataclasses.replace(
        config, steps=40, batch_size=4, targets="all_qkv", lr_low=3e-3, retain_weight=0.0, rsc_weight=0
    )
    with training_session(patcher) as model:
        esd = trainer.train(model, prepare(config, text)).losses["esd"]
    assert sum(esd[-5:]) < 0.7 * sum(esd[:5])


def test_checkpointing_gives_the_same_lora(patcher, clip, config):
    plain, recomputed = (
        train_eraser(ComfyHost(patcher, clip), dataclasses.replace(config, gradient_checkpointing=on)).lora
        for on in (False, True)
    )
    assert all(torch.allclose(plain[k], recomputed[k], atol=1e-6) for k in plain)


def test_resuming_gives_the_same_bits(patcher, clip, config, tmp_path):
    """Four pairs, stopped after three whose state was saved after two; the trajectories change after three."""
    config = dataclasses.replace(config, steps=4, save_every=2, refresh_every=3)
    whole = train_eraser(ComfyHost(patcher, clip), config)

    def stop(step, losses):
        if step == 3:
            raise KeyboardInterrupt

    first = train_eraser(ComfyHost(patcher, clip), config, stop, tmp_path / "run")
    assert first.interrupted and first.steps == 3
    second = train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path / "run")
    assert second.losses == whole.losses and all(torch.equal(second.lora[k], whole.lora[k]) for k in whole.lora)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_run_of_other_settings_is_not_resumed(patcher, clip, config, tmp_path):
    config = dataclasses.replace(config, save_every=1, steps=1)
    train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="other settings: eta"):
        train_eraser(ComfyHost(patcher, clip), dataclasses.replace(config, eta=3.0), run_dir=tmp_path / "run")


def test_a_crash_while_saving_leaves_the_old_state(patcher, text, config, tmp_path, monkeypatch):
    plan = prepare(dataclasses.replace(config, save_every=1), text)
    calls, original = [], os.fsync

    def fsync(fd):
        calls.append(1)
        if len(calls) > 2:  # the pools, the first state
            raise OSError(28, "No space left on device")
        original(fd)

    monkeypatch.setattr("os.fsync", fsync)
    with (
        pytest.raises(OSError, match="cannot save the run in .*No space left.*make room"),
        training_session(patcher) as m,
    ):
        trainer.train(m, plan, run_dir=tmp_path / "run")
    with training_session(patcher) as model:
        lora = model.attach("paper", 8, torch.Generator())
        both = [lora_optimizer(lora, 1.0, plan.config) for _ in range(2)]
        assert len(run_files.load_state(tmp_path / "run", lora, both, plan.config)[0]["loss"]) == 1
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"state.safetensors", "pools-0.safetensors"}


def test_sentences_keep_the_concept_together(text, config):
    config = dataclasses.replace(
        config,
        shuffle_rate=1.0,
        sentences=40,
        cached_trajectories=40,
        cached_retain_trajectories=40,
        neutral="{person}",
    )
    plan = prepare(config, text)
    assert all("red star" in s.concept.text and "red star" not in s.neutral.text for s in plan.sentences)
    assert all("person" in s.neutral.text for s in plan.sentences)
    assert len({s.concept.text for s in plan.sentences}) > 10
    assert all(len({w.word for w in s.irrelevant}) == 3 for s in plan.sentences)
    assert not any(matching.occurs(p.text, "red star") for p in plan.retained)


def test_the_columns_are_those_of_the_full_softmax(patcher, plan):
    """Read out of a real forward: after RMSNorm and RoPE, over all keys, image rows."""
    seen = {}

    class Spy(Capture):
        def read(self, q, k, block):
            seen[block] = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
            super().read(q, k, block)

    prompt = plan.sentences[0].concept
    with training_session(patcher) as model:
        capture = Spy(select_words(model, plan, [prompt]))
        x = torch.randn(1, 16, 12, 12)
        model.velocity(x, torch.tensor([0.8]), conds(model, plan, [prompt]), False, capture)
    span = capture.select[0, :, 0].nonzero()[:, 0]
    for block, full in seen.items():
        assert torch.allclose(full.sum(-1), torch.ones(()))
        assert torch.allclose(capture.maps[block][..., 0], full[:, :, 32:, span].sum(-1), atol=1e-6)
    feature = columns.image_feature(capture.maps)
    expected = sum(full[:, :, 32:, span].sum(-1).mean(1) for full in seen.values()) / 2
    assert feature.shape == (1, 36) and torch.allclose(feature, expected, atol=1e-6)


@pytest.mark.parametrize("neutral", ("", "a dog", "{}", "{person}", "{dog|cat}"))
def test_neutral_prompts(text, config, neutral):
    plan = prepare(dataclasses.replace(config, neutral=neutral), text)
    found = {s.neutral.text for s in plan.sentences}
    assert all("star" not in t and "{" not in t for t in found)
    assert (len(found) == 1) == ("{" not in neutral)


def test_pieces_are_those_of_comfyuis_tokenizer(clip):
    pieces = ComfyTextEncoder(clip).pieces("a (nude:1.3) woman by Frida Kahlo")
    assert len(pieces) == 32
    for word, written in (("nude", "nude"), ("frida kahlo", "Frida Kahlo")):
        spelled = "".join(pieces[i] for i in matching.positions(pieces, word))
        assert spelled.replace("▁", " ").strip() == written
