"""Erase Now and Erase at Sampling as nodes, on a random FLUX.1 in process."""

import json

import pytest
import torch

from eraseanything_core.comfy_bridge.text_linears import FLUX_CONTEXT, FLUX_POOLED, TextLinears
from eraseanything_core.concepts.concept_set import ConceptSet, Word
from eraseanything_core.erasers import uce
from eraseanything_core.erasers.erase_now import RIDGE, ClosedFormConfig, erase_now
from eraseanything_core.lora.headers import ErasedConcept
from eraseanything_core.lora.key_styles import read_eraser
from tests.comfy.training.node_runs import execute

WORDS = ConceptSet(
    "red star",
    synonyms=("crimson star",),
    irrelevant={"mid": (Word("tree", 0.4),), "far": (Word("dog", 0.1),)},
    prompts=("a photo of {} at night", "{} on a table"),
    retain=("a green box",),
    neutral="{thing}",
)
VALUES = {"concept": "", "method": "UCE", "rank": 0, "seed": 0, "concepts": WORDS}


@pytest.fixture
def run(pack, patcher, clip):
    def run(**values):
        node = pack["EraseAnything_EraseNow"]
        return execute(node, {"model": patcher, "clip": clip, **VALUES, **values}).result

    return run


def test_the_pooled_linear_is_solved_exactly(patcher, clip):
    """Against one least-squares problem, from the encoder's own vectors."""
    config = ClosedFormConfig.of(WORDS, "UCE", 0, 0)
    reader = TextLinears(patcher, clip)
    with torch.no_grad():
        result = erase_now(config, reader, lambda done: None)
    pairs = config.pairs()
    kept = [*config.kept_prompts(), *dict.fromkeys(pair.guide for pair in pairs)]

    def rows(texts):
        return torch.cat([clip.encode_from_tokens(clip.tokenize(text), True)[1] for text in texts]).double()

    erased, guides, stay = rows(p.prompt for p in pairs), rows(p.guide for p in pairs), rows(kept)
    weight = patcher.model.diffusion_model.vector_in.in_layer.weight.double()
    lam = RIDGE * float(torch.cat((erased, stay)).square().sum()) / 64
    root = lam**0.5 * torch.eye(64, dtype=torch.float64)
    system = torch.cat([erased, stay, root])
    solved = torch.linalg.lstsq(system, torch.cat([guides, stay, root]) @ weight.T).solution.T
    up, down = result.eraser[FLUX_POOLED]
    torch.testing.assert_close(weight + (up @ down).double(), solved, rtol=1e-4, atol=1e-4)


def test_all_tokens_of_the_concepts_sentences_are_moved(patcher, clip):
    config = ClosedFormConfig.of(WORDS, "UCE", 0, 0)
    with torch.no_grad():
        result = erase_now(config, TextLinears(patcher, clip), lambda done: None)
    weight = patcher.model.diffusion_model.txt_in.weight.float()
    up, down = result.eraser[FLUX_CONTEXT]
    edited = weight + up @ down

    def states(text):
        return clip.encode_from_tokens(clip.tokenize(text), True)[0][0]

    before, after = states("red star on a table") @ weight.T, states("red star on a table") @ edited.T
    guide = states("thing on a table") @ weight.T
    star, thing = 1, 0  # the last piece of the concept, and what stands in its place
    left = (after[star] - guide[thing]).norm() / (before[star] - guide[thing]).norm()
    assert left < 0.5
    tree = states("tree on a table")
    assert ((tree @ edited.T - tree @ weight.T).norm() / (tree @ weight.T).norm()) < 0.1


def test_the_node_gives_a_model_and_a_lora_with_a_header(run, patcher):
    before = {name: weight.clone() for name, weight in patcher.model.diffusion_model.named_parameters()}
    model, lora, report = run()
    assert len(model.patches) == 2 and not patcher.patches
    assert lora.header["eraseanything.method"] == "UCE in closed form"
    assert lora.header["modelspec.title"] == "eraser of red star"
    concept = ErasedConcept.from_header(lora.header, "the LoRA")
    assert concept.names == ("red star", "crimson star") and concept.irrelevant == ("dog", "tree")
    assert set(read_eraser(lora, lora.header, "the LoRA")) == {FLUX_CONTEXT, FLUX_POOLED}
    assert "exact" in report and "Is It Gone?" in report and "erased" not in report
    for name, weight in patcher.model.diffusion_model.named_parameters():
        assert torch.equal(weight, before[name]), name


def test_a_smaller_rank_says_what_it_loses(run):
    _, lora, report = run(rank=1)
    assert all(len(tensor) == 1 for key, tensor in lora.items() if "lora_A" in key)
    assert "rank 1, loses" in report


def test_double_projection_is_another_lora(run):
    first, second = run()[1], run(method="double projection")[1]
    assert second.header["eraseanything.method"] == "double projection in closed form"
    key = f"transformer.{FLUX_POOLED}.lora_B.weight"
    assert first[key].shape != second[key].shape or not torch.allclose(first[key], second[key])


def test_the_same_words_and_seed_give_the_same_file(run):
    first, second = run()[1], run()[1]
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert json.dumps(first.header) == json.dumps(second.header)


def test_a_change_that_rounding_takes_away_is_a_warning(pack, flux_weights):
    import comfy.sd
    from pack_under_test.eraseanything_core.comfy_bridge.patch import with_lora
    from pack_under_test.nodes.erase_now import lost_lines

    from eraseanything_core.lora.factors import Factors

    faint = {FLUX_CONTEXT: Factors(torch.full((256, 1), 1e-5), torch.full((1, 128), 1e-5))}
    strong = {FLUX_CONTEXT: Factors(torch.ones(256, 1), torch.ones(1, 128))}
    with torch.inference_mode():
        state = {name: weight.bfloat16() for name, weight in flux_weights.items()}
        patcher = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.bfloat16})
        (line,) = lost_lines(with_lora(patcher, faint, 1.0), faint)
        assert lost_lines(with_lora(patcher, strong, 1.0), strong) == []
    assert line.startswith("WARNING: bfloat16 keeps ")


def test_a_look_that_no_prompt_names_is_refused(run):
    look = ConceptSet("blur", prompts=("a man",), unasked="{}, blurred", wanted="{}, sharp")
    with pytest.raises(ValueError, match="a look that no prompt names"):
        run(concepts=look)


def test_uce_as_published_needs_only_the_words_last_states():
    """What boards call so: one state a sentence, which is what `uce.lora` takes."""
    g = torch.Generator().manual_seed(0)
    layers = {"context_embedder": uce.LinearStates(*(torch.randn(n, 16, generator=g) for n in (8, 2, 2, 4)))}
    assert uce.lora(layers)["transformer.context_embedder.lora_A.weight"].shape == (2, 16)


def test_typed_sentences_become_templates():
    words = ConceptSet("red star", prompts=("a red star at night", "two {} here"), neutral="{thing}")
    config = ClosedFormConfig.of(words, "UCE", 0, 0)
    assert [pair.guide for pair in config.pairs()] == ["a thing at night", "two thing here"]


def test_erase_at_sampling_says_what_it_compares(pack, patcher, clip):
    class Scheduled(type(clip)):
        def encode_from_tokens_scheduled(self, tokens):
            context, pooled = self.encode_from_tokens(tokens, True)
            return [[context, {"pooled_output": pooled}]]

    node = pack["EraseAnything_EraseAtSampling"]
    values = {"concept": "", "threshold": 0.1, "strength": 1.0, "end": 0.5, "concepts": WORDS}
    given = {"model": patcher, "clip": Scheduled(clip.tokenizer.t5xxl), **values}
    model, text = execute(node, given).result
    assert text == "looks for: a photo of red star at night\nagainst: a photo of thing at night"
    assert model is not patcher and not patcher.wrappers.get("calc_cond_batch")
