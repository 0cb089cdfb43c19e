"""The boards' erasers and their gallery on the real TinyFlux."""

import dataclasses
import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from eraseanything_core.erasers import eap, mace, published_code
from eraseanything_core.erasers.mace_attention import drawn_pictures
from eraseanything_core.erasers.preserving_cache import cached_rows
from eraseanything_core.erasers.registry import method_of, settings_of
from eraseanything_core.lora.adapter import Lora
from eraseanything_core.lora.keys import target_slices
from eraseanything_core.tinyflux.concepts import SYNONYMS
from eraseanything_core.training.config import check_settings
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.trajectory_cache import TrajectoryCache
from lab.boards import benchmark_prompts
from lab.boards.board import OURS
from lab.boards.erasers import CHOSEN, SAME, mace_config, recipe, reference_config
from lab.boards.gallery import AttentionErased, Gallery, OutOfTime, parts_of
from lab.boards.tinyflux import LOSSES
from lab.provenance import digest
from lab.tinyflux.erase import train_eraser, trainable
from lab.tinyflux.measure import merged
from lab.tinyflux.pipeline import Pipeline, TrainerText, flux, judge_net
from lab.tinyflux.recipe import erase_config


@pytest.fixture(scope="module")
def base():
    return Pipeline(flux())


@pytest.fixture(scope="module")
def cell():
    return benchmark_prompts.asked("house")["acc_e"]


def test_a_lora_at_strength_0_is_the_same_model_bit_for_bit(base):
    lora = Lora(target_slices("all_qkv", 256, 2, 4, 4.0), 4, torch.Generator().manual_seed(0))
    for up in lora.up:
        up.data.normal_(0, 1.0)
    assert digest(merged(base.module, lora.tensors(), 0.0)) == digest(base.module)
    assert digest(merged(base.module, lora.tensors(), 1.0)) != digest(base.module)


def test_what_was_drawn_is_read_again_and_time_is_kept(base, cell, tmp_path):
    gallery = Gallery(base, judge_net(), tmp_path)
    first = gallery.readings("un-erased", "house", cell, 2, "cnn")
    late = Gallery(base, judge_net(), tmp_path, until=time.monotonic() - 1)
    assert late.readings("un-erased", "house", cell, 2, "cnn") == first
    with pytest.raises(OutOfTime):
        late.readings("prompt filter", "house", cell, 2, "cnn")
    assert not [path for path in tmp_path.rglob("*.part")]


def test_seconds_are_kept_beside_what_took_them(base, cell, tmp_path):
    first = Gallery(base, judge_net(), tmp_path)
    first.readings("un-erased", "house", cell, 1, "cnn")
    told = first.spent()
    assert told["untimed"] == 0 and told["training"] == 0 and told["sum"] == told["drawing"] + told["reading"]
    (drawn,) = first.took["drawing"].values()
    later = Gallery(base, judge_net(), tmp_path)
    later.readings("un-erased", "house", cell, 2, "cnn")
    (longer,) = later.took["drawing"].values()
    assert longer > drawn > 0
    again = Gallery(base, judge_net(), tmp_path)
    again.readings("un-erased", "house", cell, 1, "cnn")
    (share,) = again.took["drawing"].values()
    assert share == pytest.approx(longer / 2)
    for path in tmp_path.rglob("*.safetensors"):
        save_file({name: x.clone() for name, x in load_file(path).items()}, path)  # as before times were kept
    again.readings("un-erased", "house", cell, 1, "cnn")
    assert again.spent()["untimed"] == 1 and again.spent()["drawing"] == 0


def test_judges_agree_on_pictures_that_both_read_alike(base, cell, tmp_path):
    gallery = Gallery(base, judge_net(), tmp_path)
    cnn = gallery.readings("un-erased", "house", cell, 2, "cnn")
    oracle = gallery.readings("un-erased", "house", cell, 2, "oracle")
    assert gallery.agreement("cnn", "oracle") == [a == b for a, b in zip(cnn, oracle)]
    spoilt = next(path for path in (tmp_path / "readings").glob("*.json") if json.loads(path.read_text()) == oracle)
    spoilt.write_text(json.dumps(["moon", *oracle[1:]]))
    assert gallery.agreement("cnn", "oracle") != [True, True]


def test_a_larger_count_goes_on_where_a_smaller_one_ended(base, cell, tmp_path):
    gallery = Gallery(base, judge_net(), tmp_path)
    one, two = (gallery.latents("un-erased", "house", cell, count) for count in (1, 2))
    assert one[0] == two[0] and torch.equal(one[1][0], two[1][0]) and len(two[1]) == 2


def test_merged_rows_name_their_parts():
    assert parts_of("mean of 3", "house") == [
        ("EraseAnything", "house", 1 / 3), ("EraseAnything", "striped", 1 / 3), ("EraseAnything", "dotted", 1 / 3)
    ]  # fmt: skip
    assert len(parts_of("sum of 10", "inside")) == 10 and parts_of("scale 1.5", "moon")[0][2] == 1.5
    assert parts_of("esd+attn", "moon") == [("esd+attn", "moon", 1.0)]


def test_relearning_is_a_lora_over_the_erased_weights(base, tmp_path):
    gallery = Gallery(base, judge_net(), tmp_path)
    plain = gallery.pipeline("un-erased", "house", 0).module
    again = gallery.pipeline("un-erased + awaking 2", "house", 0).module
    assert digest(plain) != digest(again) and len(list((tmp_path / "loras").iterdir())) == 1


def test_what_an_inversion_found_is_drawn_whatever_the_prompt(base, cell, tmp_path):
    gallery = Gallery(base, judge_net(), tmp_path)
    erased, attacked = (gallery.pipeline("un-erased" + attack, "house", 0) for attack in ("", " + inversion 2"))
    one, other = (attacked.encode([prompt]) for prompt in ("a photo of a house", "a moon"))
    assert all(torch.equal(a, b) for a, b in zip(one, other)) and attacked.module is erased.module
    assert not torch.equal(one[0], erased.encode(["a photo of a house"])[0])
    drawn = [gallery.latents("un-erased" + attack, "house", cell, 1) for attack in (" + inversion 2", "")]
    assert drawn[0][0] != drawn[1][0] and not torch.equal(drawn[0][1], drawn[1][1])
    again = Gallery(base, judge_net(), tmp_path, until=time.monotonic() - 1)
    assert again.latents("un-erased + inversion 2", "house", cell, 1)[0] == drawn[0][0]


def test_rows_differ_only_where_they_act(base, cell, tmp_path):
    gallery = Gallery(base, judge_net(), tmp_path)
    other = benchmark_prompts.asked("house")["acc_ir"]
    plain, filtered, deleted = (
        gallery.latents(row, "house", cell, 2) for row in ("un-erased", "prompt filter", "attention map")
    )
    assert len({plain[0], filtered[0], deleted[0]}) == 3
    assert (plain[1] - deleted[1]).abs().mean() > 0.05
    names = {gallery.latents(row, "house", other, 1)[0] for row in ("un-erased", "prompt filter", "attention map")}
    assert len(names) == 1  # no prompt there names the concept


def test_without_words_deleting_columns_is_the_plain_forward(base, cell):
    plain = base.latents(cell.prompts[:2], cell.seeds[:2], 3.5)
    same = AttentionErased(base, ()).latents(cell.prompts[:2], cell.seeds[:2], 3.5)
    assert (plain - same).abs().mean() < 0.05  # two forwards in bf16


def test_the_published_target_moves_with_the_student(base):
    """With the anchor's prompt for the concept's every prediction is the same one: the loss is 0 at any LoRA."""
    config = reference_config("house", 0)
    config = dataclasses.replace(config, anchor=config.prompt, shuffle_rate=0.0, synonym_rate=0.0, images=1)
    with trainable(base) as model:
        run = published_code.PublishedRun(model, TrainerText(base), config)
        for up in run.lora.up:
            up.data.normal_(0, 0.5)
        found = published_code.erase_losses(run, 0.5)
        assert float(found["esd"]) == 0 and float(found["attn"]) > 0
        assert next(run.lora.parameters()).dtype == torch.bfloat16
        kept = published_code.preserve_losses(run, 0.5)
        assert float(kept["lora"]) > 0 and float(kept["rsc"]) < 0  # a log of a share


def test_the_published_code_trains_every_pair_of_factors(base):
    plan = recipe("reference", "house", steps=4)
    lora = plan.train(base, plan.config)
    assert len(lora) == 8  # q and k of the text stream in two dual blocks
    assert all(t.abs().sum() > 0 and t.isfinite().all() for t in lora.values())


def test_concept_ablation_leads_to_the_anchor(base):
    plan = recipe("concept ablation", "house", steps=12)
    plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, cached_trajectories=4, batch_size=4))
    result = train_eraser(base, plan.config)
    losses = result.losses["ablation"]
    assert sum(losses[-4:]) < sum(losses[:4]) and len(result.lora) == 16


@pytest.mark.parametrize("row", [*LOSSES, *CHOSEN, *(f"{row}{SAME}" for row in CHOSEN), OURS])
def test_the_configuration_of_every_row_is_accepted(row):
    config = recipe(row, "house").config
    check_settings(config)
    assert method_of(config).name == config.method


def strings(value) -> set[str]:
    """Every string in a configuration."""
    if isinstance(value, str):
        return {value}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return set().union(*map(strings, parts))


@pytest.mark.parametrize("concept", [c for found in benchmark_prompts.CONCEPTS.values() for c in found])
def test_no_row_is_told_what_the_boards_ask(concept):
    cells = (
        benchmark_prompts.asked(concept)
        | benchmark_prompts.attacked(concept)
        | {"kept": benchmark_prompts.kept(concept)}
    )
    measured = {prompt for cell in cells.values() for prompt in cell.prompts}
    for row in ("reference", "UCE", "MACE", "EAP", "ESD", "concept ablation", OURS):
        told = strings(dataclasses.asdict(recipe(row, concept).config))
        assert told and not told & measured
        assert not {SYNONYMS[concept][2]} & {word.strip(",") for text in told for word in text.split(" ")}


def test_the_papers_images_are_the_teachers():
    config = recipe("esd+lora", "house").config
    assert (
        config.retain_loss == "paper"
        and 0 < config.student_rows(config.cached_trajectories) < config.cached_trajectories
    )
    with pytest.raises(ValueError, match="takes its images from the teacher"):
        check_settings(dataclasses.replace(config, on_policy_share=1.0))


def test_eap_keeps_what_it_damages_most(base):
    few = {
        "steps": 4,
        "cached_trajectories": 2,
        "cached_retain_trajectories": 4,
        "refresh_every": 4,
        "batch_size": 2,
        "retain_batch_size": 2,
        "sampling_steps": 4,
    }
    config = dataclasses.replace(erase_config("house"), **settings_of("eap") | few)
    plan = prepare(config, TrainerText(base))
    with trainable(base) as model:
        pool = TrajectoryCache(model, plan).epoch(0).retain
        lora = model.attach("all_qkv", 4, torch.Generator().manual_seed(0))
        assert float(eap.damage(model, plan, pool, torch.Generator()).max()) < 1e-3  # the LoRA changes nothing yet
        lora.up[0].data.normal_(0, 1.0)
        damages = eap.damage(model, plan, pool, torch.Generator())
    result = train_eraser(base, config)
    assert eap.hardest(damages, 0.25).tolist() == [int(damages.argmax())] and float(damages.max()) > 1e-3
    assert set(result.losses) == {"esd", "retain", "loss"} and len(result.lora) == 16


def test_mace_moves_the_words_beside_the_concept(base):
    config = recipe("MACE", "house").config
    text, weight = TrainerText(base), base.module.txt_in.weight.float()
    first = mace.refinement(weight, text, config.erased, config.guides, config.kept, config.lam)["context_embedder"]
    one, other = mace.other_states(text, config.erased[0], config.guides[0])
    assert len(one) == text.encode(config.erased[0][0])[0].shape[1] - 1
    refined = weight + first.up @ first.down
    before, after = (((one @ w.T) - (other @ weight.T)).norm() for w in (weight, refined))
    assert after < 0.8 * before
    kept = text.encode(config.kept[0][0])[0][0]
    assert ((kept @ refined.T) - (kept @ weight.T)).norm() < 0.3 * (kept @ weight.T).norm()


def test_a_preserving_cache_does_what_its_prompts_do(base, tmp_path):
    config = recipe("MACE", "house").config
    text, weight = TrainerText(base), base.module.txt_in.weight.float()
    prompts = [prompt for prompt, _ in config.kept]

    def read(prompt):
        return text.encode(prompt).context[0]

    rows = cached_rows(tmp_path, "tinyflux", prompts, read)
    texts = (weight, text, config.erased, config.guides)
    by_prompts = mace.refinement(*texts, config.kept, config.lam)["context_embedder"]
    by_cache = mace.refinement(*texts, config.kept[:1], config.lam, rows)["context_embedder"]
    doubled = mace.refinement(*texts, (*config.kept, config.kept[0]), config.lam)["context_embedder"]
    assert len(rows) <= 128 < sum(len(read(prompt)) for prompt in prompts)
    torch.testing.assert_close(by_cache.up @ by_cache.down, doubled.up @ doubled.down, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(by_cache.up @ by_cache.down, 0 * (by_prompts.up @ by_prompts.down), atol=1e-3)
    again = cached_rows(tmp_path, "tinyflux", prompts, None)  # from the file: nothing is read
    assert torch.equal(again, rows)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"no file")
    with pytest.raises(ValueError, match="is damaged"):
        cached_rows(tmp_path, "tinyflux", prompts, read)


def test_mace_trains_a_lora_inside_the_mask_and_confines_it(base):
    config = mace_config(erase_config("house", steps=8, batch_size=2, sampling_steps=4))
    attention = dataclasses.replace(config.attention, pictures=2, single=True)
    fusion = dataclasses.replace(config.fusion, prompts=1, kept_prompts=1, steps=1)
    config = dataclasses.replace(config, attention=attention, fusion=fusion)
    with trainable(base) as model:
        result = mace.erase(model, base.module.txt_in.weight, TrainerText(base), config)
    lora = result.lora
    assert len(lora) == 10 and all(t.isfinite().all() for t in lora.values())  # keys and values of two dual blocks
    assert lora["transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight"].shape[0] == 1
    assert result.losses[-1] < result.losses[0]


def test_the_models_own_mask_lies_on_the_object(base):
    """Against the cells of the picture that differ from its flat background."""
    config = dataclasses.replace(recipe("MACE", "house").config.attention, pictures=4)
    with trainable(base) as model:
        pictures = drawn_pictures(model, TrainerText(base), config, None, torch.Generator().manual_seed(0))
    image = base.decode(pictures.latents.float()).clamp(0, 1)
    object_cells = (image - image[:, :, :1, :1]).abs().amax(1) > 0.2
    share = torch.nn.functional.avg_pool2d(object_cells.float()[:, None], 16)[:, 0].flatten(1)  # a token is 16 px
    inside = torch.stack([row[mask].mean() for row, mask in zip(share, pictures.masks, strict=True)])
    outside = torch.stack([row[~mask].mean() for row, mask in zip(share, pictures.masks, strict=True)])
    assert (inside > 2 * outside).all()


def test_a_row_that_does_not_exist_is_refused():
    with pytest.raises(KeyError, match="magic"):
        recipe("magic", "house")
