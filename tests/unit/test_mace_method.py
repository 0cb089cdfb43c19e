"""MACE as a method of the trainer, on a toy in float64: each stage by its equation, and what it does together."""

import dataclasses

import pytest
import torch

from eraseanything_core.erasers.mace_attention import MASK_TIME
from eraseanything_core.erasers.mace_method import columns_of, kept_prompts
from eraseanything_core.erasers.registry import method_of
from eraseanything_core.lora.fusion import FusionConfig, confinement, read_states
from eraseanything_core.training import trainer
from eraseanything_core.training.plan import conds, generator, prepare
from tests.unit.eraser_cases import config_of, of_pair, points, started
from tests.unit.toy_model import FEATURES, HIDDEN, ToyModel, ToyText

pytestmark = pytest.mark.usefixtures("double_precision")

SHIFTED = {"templates": ("a photo of {} at night",), "neutral": "{big thing}"}  # two words in the place of one


class Spread(ToyText):
    """Every state has a little of all words in it, as an encoder's have."""

    def encode(self, text):
        encoded = super().encode(text)
        return encoded._replace(context=encoded.context + 0.5 * encoded.context.mean(1, keepdim=True))


def test_stage_1_reads_the_other_tokens_as_beside_the_super_category():
    """Against a dense solution of all rows: every token but the word's, each with that in its place."""
    plan = prepare(config_of("mace", {"lam": 0.3}, steps=1, cached_trajectories=1, **SHIFTED), Spread())
    model, method = ToyModel(), method_of(plan.config)
    lora = model.attach(plan.config.targets, 1, torch.Generator().manual_seed(0))
    method.begin(model, plan, lora)
    (sentence,) = plan.sentences
    c, g = (plan.encode(prompt.text).context[0] for prompt in (sentence.concept, sentence.neutral))
    # "a photo of star at night" and padding; "a photo of big thing at night" and padding
    places = {0: 0, 1: 1, 2: 2, 4: 5, 5: 6, 6: 7, 7: 7}
    erased, guides = c[list(places)], g[list(places.values())]
    kept = torch.cat([plan.encode(prompt.text).context[0] for prompt in kept_prompts(plan)])
    own = 0.3**0.5 * torch.eye(FEATURES)
    weight = model.module.text.weight
    wanted = torch.cat((guides, kept, own)) @ weight.T
    solved = torch.linalg.lstsq(torch.cat((erased, kept, own)), wanted).solution.T
    change, student_alone = model.frozen
    torch.testing.assert_close(weight + change, solved, rtol=1e-4, atol=1e-4)
    assert student_alone, "the teacher is the original, which previews and looks compare with"
    assert set(method.tensors(lora)) == {f"transformer.text.lora_{side}.weight" for side in "AB"}


def test_a_step_lowers_the_attention_inside_the_masks():
    """By the matrix of the softmax, with masks from the original model's own at noised pictures."""
    run = started("mace", {"level": 0.4})
    at, pair = points(run), run.pair()
    found = of_pair(run)["attention"]
    walks = run.epoch.concept
    x_0 = walks.x[at.row, -1].double()
    concept = [sentence.concept for sentence in at.of]
    select = columns_of(run.plan, concept).double()
    cond = conds(run.model, run.plan, concept)
    chances = run.method.chances
    t = ((torch.multinomial(chances, len(x_0), replacement=True, generator=pair.rng) + 1) / 1000).double()
    noise = torch.randn(x_0.shape, generator=pair.rng)
    x_t = (1 - t)[:, None, None, None] * x_0 + t[:, None, None, None] * noise

    def attention(x, adapters):
        keys = run.model.tokens(cond, adapters)
        return (x.flatten(2).transpose(1, 2) @ run.model.query @ keys.transpose(1, 2)).softmax(-1) @ select

    total = 0.0
    for i, row in enumerate(at.row.tolist()):
        own = torch.randn(1, *x_0.shape[1:], generator=generator(~run.config.seed, row))
        noised = (1 - MASK_TIME) * x_0 + MASK_TIME * own
        shares = attention(noised, False)[i].sum(-1)
        inside = shares > 0.4 * shares.max()
        assert 0 < int(inside.sum()) < len(inside), "some of the picture is inside, and some is not"
        total += float(attention(x_t, True)[i][inside].square().sum())
    assert found == pytest.approx(total / len(x_0), rel=1e-5)


def test_whole_pictures_have_no_mask():
    run = started("mace", {"masks": "whole"})
    like = torch.zeros(2, 1, 16, 1)
    assert bool(run.method.masks_of(run.pair(), [0, 1], like).all())


def test_stage_3_confines_the_factors_to_the_concepts_states():
    run = started("mace")
    down = run.lora.down[0].detach().clone()
    assert run.method.finish(run.model, run.plan, run.lora)
    own = run.config
    config = FusionConfig(width=own.width, height=own.height, guidance=own.guidance, seed=own.seed)
    prompts = (list(dict.fromkeys(s.concept for s in run.plan.sentences)), kept_prompts(run.plan))
    rows = (config.rows, 4 * config.rows)
    states = []
    for chosen, count in zip(prompts, rows, strict=True):
        texts = [run.plan.encode(prompt.text) for prompt in chosen]
        states.append(read_states(run.model, texts, ["text"], count, config)["text"].double())
    g, p = (each.T @ each / len(each) for each in states)
    m = g + p
    m += config.ridge * m.diagonal().mean() * torch.eye(FEATURES)
    torch.testing.assert_close(run.lora.down[0].data, down @ g @ torch.linalg.inv(m), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(confinement(*states, config), g @ torch.linalg.inv(m), rtol=1e-6, atol=1e-9)


def attention_to_the_word(model, plan):
    """The student's, of all cells, and the teacher's."""
    x = torch.randn(len(plan.sentences), 2, 4, 4, generator=torch.Generator().manual_seed(3))
    concept = [sentence.concept for sentence in plan.sentences]
    cond, select = conds(model, plan, concept), columns_of(plan, concept)
    t = torch.full((len(x),), 0.3)
    maps = [model.columns(x, t, cond, on, model.capture(select))[0].mean() for on in (True, False)]
    return tuple(float(share) for share in maps)


def test_a_run_takes_the_attention_from_the_word():
    settings = {"steps": 80, "refresh_every": 20, "lr_low": 0.03, "rank": 2, "cached_trajectories": 6}
    plan, model = prepare(config_of("mace", {"masks": "whole"}, **settings), ToyText()), ToyModel()
    result = trainer.train(model, plan, method=method_of(plan.config))
    after, before = attention_to_the_word(model, plan)
    assert after < 0.7 * before
    assert result.lora["transformer.text.lora_B.weight"].shape[0] == HIDDEN


def test_a_run_that_was_resumed_at_its_end_is_not_confined_again(tmp_path):
    torch.set_default_dtype(torch.float32)
    plan = prepare(config_of("mace", steps=3, save_every=1), ToyText())
    first, second = (
        trainer.train(ToyModel(), plan, run_dir=tmp_path / "run", method=method_of(plan.config)) for _ in range(2)
    )
    assert all(torch.equal(first.lora[key], second.lora[key]) for key in first.lora)


def test_tokens_that_are_not_the_prompts_are_refused():
    plan = prepare(config_of("mace"), ToyText())
    plan = dataclasses.replace(plan, pieces={text: pieces[:-1] for text, pieces in plan.pieces.items()})
    with pytest.raises(ValueError, match="MACE cannot tell which token of a prompt is where"):
        method_of(plan.config).begin(ToyModel(), plan, None)


def test_a_look_without_a_word_is_refused():
    plan = prepare(config_of("mace"), ToyText())
    plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, unasked="{}, blurred"))
    with pytest.raises(ValueError, match="MACE needs a word to erase"):
        method_of(plan.config).begin(ToyModel(), plan, None)
