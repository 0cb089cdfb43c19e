"""Every setting does what it says, seen in the pools and the forwards of a pair."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eraseanything_core import sampling
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.comfy_bridge.text import ComfyTextEncoder
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.lora.keys import TARGETS
from eraseanything_core.training import losses, method, optimizers, run_files, trainer
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.recipe import train_eraser
from eraseanything_core.training.trajectory_cache import TrajectoryCache


@pytest.fixture
def first_pair(patcher, clip, config, monkeypatch):
    """What the first pair of a changed configuration looked at: its pools, the student's forwards, the losses' last
    arguments, the LoRA, and which of the two optimisers stepped."""

    def run(change):
        seen = SimpleNamespace(forwards=[], given={})
        original = FluxModel._run

        def forward(self, x_t, sigma, cond, adapters, capture, stop):
            seen.forwards.append(SimpleNamespace(x=x_t, sigma=sigma, cond=cond, adapters=adapters))
            return original(self, x_t, sigma, cond, adapters, capture, stop)

        monkeypatch.setattr(FluxModel, "_run", forward)
        for name in ("esd_loss", "rsc_loss"):
            loss = getattr(losses, name)
            keep = lambda *a, name=name, loss=loss: seen.given.update({name: a}) or loss(*a)  # noqa: E731
            monkeypatch.setattr(losses, name, keep)
        seen.plan = prepare(dataclasses.replace(config, **change), ComfyTextEncoder(clip))
        with training_session(patcher) as model:
            seen.lora = model.attach(seen.plan.config.targets, seen.plan.config.rank, torch.Generator())
            seen.epoch = TrajectoryCache(model, seen.plan).epoch(0)
            both, seen.steps = [torch.optim.SGD(seen.lora.parameters(), lr=0.0) for _ in range(2)], []
            for i, each in enumerate(both):
                each.register_step_post_hook(lambda *_, i=i: seen.steps.append(i))
            trainer.train_pair(model, seen.plan, seen.epoch, 0, seen.lora, both)
        seen.students = [f for f in seen.forwards if f.adapters]
        seen.gradient = torch.cat([p.grad.flatten() for p in seen.lora.parameters()])
        return seen

    return run


SAYS = {
    "guidance": ({"guidance": 3.5}, lambda p: {float(g) for f in p.forwards for g in f.cond.guidance} == {3.5}),
    "width and height": ({"width": 64, "height": 32}, lambda p: {f.x.shape[2:] for f in p.forwards} == {(4, 8)}),
    "sampling_steps": ({"sampling_steps": 6}, lambda p: p.epoch.concept.x.shape[1] == p.epoch.retain.x.shape[1] == 7),
    "mu": ({"mu": 0.3}, lambda p: torch.equal(p.epoch.concept.sigmas, sampling.shifted_sigmas(4, 0.3))),
    "batch_size": ({"batch_size": 3, "retain_batch_size": 1}, lambda p: [len(f.x) for f in p.students] == [3, 1, 3]),
    "rank": ({"rank": 5}, lambda p: {len(down) for down in p.lora.down} == {5}),
    "k_irrelevant": ({"k_irrelevant": 2}, lambda p: p.epoch.concept.word_features.shape[2] == 1 + 2),
    "erase_time": (
        {"erase_time": 0.8, "batch_size": 8},
        lambda p: len(p.students[0].sigma) == 8 and p.students[0].sigma.min() >= 0.8,
    ),
    "rsc_time": ({"rsc_time": 0.9, "batch_size": 8}, lambda p: p.students[2].sigma.min() >= 0.9),
    "eta": ({"eta": 2.5}, lambda p: p.given["esd_loss"][3] == 2.5),
    "tau": ({"tau": 0.2}, lambda p: p.given["rsc_loss"][3] == 0.2),
    "sentences": ({"sentences": 1}, lambda p: len({s.concept for s in p.epoch.concept.sources}) == 1),
    "retain_prompt_share": (
        {"retain_prompt_share": 1.0},
        lambda p: {r.text for r in p.epoch.retain.sources} == {"a green box"},
    ),
    "targets": ({"targets": "text_kv"}, lambda p: {part.key.split(".")[-1] for part in p.lora.parts} == KV),
    "alternate": ({"alternate": False}, lambda p: p.steps == [0]),
    "max_grad_norm": ({"max_grad_norm": 1e-3}, lambda p: abs(p.gradient.norm() - 1e-3) < 1e-5),
    "gradient_accumulation_steps": ({"gradient_accumulation_steps": 2}, lambda p: len(p.students) == 6),
}
KV = {"add_k_proj", "add_v_proj"}


@pytest.mark.parametrize("name", SAYS)
def test_a_setting_does_what_it_says(first_pair, name):
    change, says = SAYS[name]
    assert says(first_pair(change))


def test_it_is_not_so_without_it(first_pair):
    plain = first_pair({})
    assert not [name for name, (_, says) in SAYS.items() if says(plain)]


def test_the_weights(first_pair):
    """Each loss has its weight's share of the gradient: what doubling each adds is together the gradient."""
    weights = {"esd_weight": 1.0, "attn_weight": 0.1, "retain_weight": 1.0, "rsc_weight": 0.05}
    summed = weights | {"alternate": False, "max_grad_norm": 1e9}
    whole = first_pair(summed).gradient
    parts = [first_pair(summed | {name: 2 * weight}).gradient - whole for name, weight in weights.items()]
    assert torch.allclose(sum(parts), whole, atol=1e-3 * float(whole.norm())) and all(p.norm() > 0 for p in parts)
    assert not torch.allclose(sum(parts[:3]), whole, atol=1e-3 * float(whole.norm()))


FACTORS = {  # of the rates, over six pairs of which two are the rise
    "constant": (0.5, 1, 1, 1, 1, 1),
    "linear": (0.5, 1, 1, 0.75, 0.5, 0.25),
    "cosine": (0.5, 1, 1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4),
    "wsd": (0.5, 1, 1, 1, 1, 0.5),
}


@pytest.mark.parametrize(
    "name, kind, plan",
    (
        ("adamw", "AdamW", "cosine"),
        ("adamw8bit", "AdamW8bit", "constant"),
        ("prodigy", "Prodigy", "linear"),
        ("adamw", "AdamW", "wsd"),
    ),
)
def test_what_the_optimisers_are_given(patcher, clip, config, monkeypatch, name, kind, plan):
    """Their kind, their decay, and in each pair the two rates."""
    given, original = [], method.optimizer_step

    def update(optimizer, *args):
        group = optimizer.param_groups[0]
        given.append((type(optimizer).__name__, group["weight_decay"], group["lr"]))
        return original(optimizer, *args)

    monkeypatch.setattr(method, "optimizer_step", update)
    change = {"optimizer": name, "weight_decay": 0.25, "lr_schedule": plan, "warmup_steps": 2, "steps": 6}
    result = train_eraser(ComfyHost(patcher, clip), dataclasses.replace(config, lr_low=0.01, lr_up=0.0025, **change))
    assert {kind for kind, *_ in given} == {kind} and {decay for _, decay, _ in given} == {0.25}
    rates = [rate for *_, rate in given]
    assert rates == pytest.approx([rate * factor for factor in FACTORS[plan] for rate in (0.01, 0.0025)])
    assert all(t.abs().max() > 0 for t in result.lora.values())


def test_every_optimiser_and_every_schedule_is_tested():
    tested = test_what_the_optimisers_are_given.pytestmark[0].args[1]
    assert {name for name, *_ in tested} == set(optimizers.LIBRARIES) == set(optimizers.STATE_BYTES)
    assert {plan for *_, plan in tested} == set(optimizers.SCHEDULES) == set(FACTORS)


TRAINED = {  # the projections of each choice: of dual blocks' text and image streams, and of single blocks
    "paper": (("add_q_proj", "add_k_proj"), ()),
    "text_qkv": (("add_q_proj", "add_k_proj", "add_v_proj"), ()),
    "text_kv": (("add_k_proj", "add_v_proj"), ()),
    "dual_qk": (("add_q_proj", "add_k_proj", "to_q", "to_k"), ()),
    "dual_qkv": (("add_q_proj", "add_k_proj", "add_v_proj", "to_q", "to_k", "to_v"), ()),
    "all_kv": (("add_k_proj", "add_v_proj", "to_k", "to_v"), ("to_k", "to_v")),
    "all_qkv": (("add_q_proj", "add_k_proj", "add_v_proj", "to_q", "to_k", "to_v"), ("to_q", "to_k", "to_v")),
}


@pytest.mark.parametrize("targets", TARGETS)
def test_the_targets_are_trained_and_nothing_else(patcher, clip, config, targets):
    """Both factors of each projection of every block move from where they began: A at random, B at zero."""
    config, (dual, single) = dataclasses.replace(config, targets=targets, steps=2), TRAINED[targets]
    made = train_eraser(ComfyHost(patcher, clip), config).lora
    began = train_eraser(ComfyHost(patcher, clip), dataclasses.replace(config, lr_low=0.0, lr_up=0.0)).lora
    names = [f"transformer_blocks.{i}.attn.{name}" for i in range(2) for name in dual]
    names += [f"single_transformer_blocks.{i}.attn.{name}" for i in range(4) for name in single]
    assert set(made) == {f"transformer.{name}.lora_{factor}.weight" for name in names for factor in "AB"}
    assert all(not torch.equal(made[key], began[key]) for key in made)
    assert not any(t.any() for key, t in began.items() if "lora_B" in key)


@pytest.mark.parametrize("name, dtype", (("fp32", torch.float32), ("bf16", torch.bfloat16)))
def test_the_precision_of_the_transformer(patcher, clip, config, monkeypatch, name, dtype):
    seen, attend = set(), FluxModel._attention

    def look(self, *args):
        run = attend(self, *args)
        return lambda other, q, *rest, **more: seen.add(q.dtype) or run(other, q, *rest, **more)

    monkeypatch.setattr(FluxModel, "_attention", look)
    train_eraser(ComfyHost(patcher, clip), dataclasses.replace(config, dtype=name, steps=1))
    assert seen == {dtype}


def test_how_often_the_run_is_saved(patcher, clip, config, tmp_path, monkeypatch):
    """Every two pairs, and at the end."""
    pairs, original = [], run_files.save_state
    monkeypatch.setattr(run_files, "save_state", lambda *a: pairs.append(len(a[4]["loss"])) or original(*a))
    train_eraser(ComfyHost(patcher, clip), dataclasses.replace(config, steps=5, save_every=2), run_dir=tmp_path)
    assert pairs == [2, 4, 5]


ELSEWHERE = {  # the test that holds an option which the first pair does not show
    "concept": "test_sentences_keep_the_concept_together",
    "synonyms": "test_synonyms_stand_in_at_the_asked_rate",
    "irrelevant": "test_one_sentence_differs_only_in_the_substitute",
    "tiers": "test_a_sentence_takes_one_word_of_each_tier",
    "templates": "test_a_template_or_a_prompt",
    "neutral": "test_neutral",
    "retain": "test_retained_prompts_are_half_the_users_and_never_the_concept",
    "shuffle_rate": "test_shuffling_keeps_all_words_and_the_concept_together",
    "synonym_rate": "test_synonyms_stand_in_at_the_asked_rate",
    "esd_weight": "test_the_weights",
    "attn_weight": "test_the_weights",
    "retain_weight": "test_the_weights",
    "rsc_weight": "test_the_weights",
    "attn_share": "test_each_loss_has_its_share_of_the_first_gradient",
    "rsc_share": "test_each_loss_has_its_share_of_the_first_gradient",
    "own_times": "test_each_trajectory_has_times_of_its_own",
    "importance_sampling": "test_an_epoch_draws_with_them",
    "retain_loss": "test_each_trains",
    "paper_sign": "test_each_trains",
    "attention_blocks": "test_block_minus_one_is_the_last",
    "cached_trajectories": "test_the_sizes_of_the_pools",
    "cached_retain_trajectories": "test_the_sizes_of_the_pools",
    "refresh_every": "test_trajectories_are_drawn_anew",
    "shared_points": "test_retained_prompts_at_the_concepts_points",
    "rsc_samples": "test_few_points_for_the_maps",
    "on_policy_share": "test_part_of_the_pool_is_walked_by_the_student",
    "cache_gib": "test_beyond_its_bound_an_array_lies_on_disk_and_holds_the_same",
    "steps": "test_trains_saves_and_returns",
    "lr_low": "test_what_the_optimisers_are_given",
    "lr_up": "test_what_the_optimisers_are_given",
    "weight_decay": "test_what_the_optimisers_are_given",
    "optimizer": "test_what_the_optimisers_are_given",
    "lr_schedule": "test_what_the_optimisers_are_given",
    "warmup_steps": "test_what_the_optimisers_are_given",
    "seed": "test_equal_seeds_give_equal_loras",
    "dtype": "test_the_precision_of_the_transformer",
    "gradient_checkpointing": "test_checkpointing_gives_the_same_lora",
    "deterministic": "test_deterministic_algorithms_are_on_for_the_run_alone",
    "save_every": "test_how_often_the_run_is_saved",
    "unasked": "test_a_look_that_no_prompt_names",
    "wanted": "test_a_look_that_no_prompt_names",
    "attention_reduction": "test_attention_as_the_paper_prints_it",
    "monitor_every": "test_erasing_lowers_the_reading",
    "watched": "test_prompts_that_are_watched_are_not_trained_on",
    "other_neutrals": "test_the_first_text_that_does_not_show_the_concept",
    "held_out": "test_the_sentences_that_are_looked_at",
    "look_pictures": "test_forwards_are_counted",
    "look_steps": "test_forwards_are_counted",
    "adapt_rate": "test_the_learning_rates_follow_the_looks",
    "stop_when_gone": "test_it_stops_when_gone_and_goes_no_further_when_resumed",
    "stop_drift": "test_it_is_watched_and_stops",
    "preview_images": "test_trains_saves_and_returns",
    "method": "test_a_run_is_never_trained_by_another_method",
    "method_settings": "test_a_methods_own_settings_are_those_that_differ",
    "meta_weight": "test_the_meta_step_goes_on_top_of_any_method",
    "divergence": "test_a_run_with_another_divergence_has_its_gradient",
    "alpha": "test_divergences_are_those_of_two_gaussians",
    "divergence_width": "test_divergences_are_those_of_two_gaussians",
    "anchor_pictures": "test_pictures_without_their_hash_are_no_run",
    "walk": "test_ablation_walks_with_the_anchor_and_leads_the_concept_there",
    "walk_noise": "test_eraseflow_is_the_square_of_one_sum",
}


def test_every_option_has_a_test():
    """An option that comes later needs a line above."""
    shown = {option for change, _ in SAYS.values() for option in change}
    assert shown | set(ELSEWHERE) == {field.name for field in dataclasses.fields(EraseConfig)}
    written = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[2].rglob("test_*.py"))
    assert all(f"def {test}(" in written for test in ELSEWHERE.values())
