"""Text that people and programs really send: brackets in a concept, and half of a character."""

import pytest

from eraseanything_core.comfy_bridge.text import ComfyTextEncoder
from eraseanything_core.concepts import matching
from eraseanything_core.concepts.concept_set import ConceptSet
from eraseanything_core.concepts.prompts import fill
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.plan import prepare
from scripts.graph import inputs_of
from scripts.server import GraphError

HALF = "a heart \ud800 in snow"
BRACKETS = (
    "tracer (overwatch)",
    r"tracer \(overwatch\)",
    "[logo]",
    "Matrix: Reloaded",
    "(star)",
    "a (b) [c]",
    "star (disambiguation)",
    r"hatsune miku \(vocaloid\)",
    "Half-Life 2: Episode One",
    ":)",
    "R2-D2 <robot>",
)


@pytest.fixture(scope="module")
def clip(pack):
    return pack["EraseAnything_TinyFlux"].PREPARE_CLASS_CLONE(None).execute("tinyflux_text.safetensors").args[0]


@pytest.mark.parametrize("concept", BRACKETS)
def test_a_concept_with_brackets_goes_the_whole_way(concept, clip, pack):
    """Concept Sampler writes its prompts, Erase Trainer takes them, and Attention Probe finds it in each."""
    concepts = ConceptSet.from_json(sample_offline(ConceptRequest(concept)).to_json())
    assert concepts.prompts and concepts.concept == concept
    text = ComfyTextEncoder(clip)
    config = EraseConfig(**concepts.settings(), cached_trajectories=4, sentences=8)
    plan = prepare(config, text, frozenset())
    for sentence in plan.sentences:
        columns = plan.select[sentence.concept]
        assert 0 < columns.sum() < len(columns)
    for template in concepts.prompts:
        prompt = fill(template, concept)
        spans, _ = matching.locate(text.pieces(prompt), concept)
        assert len(spans) >= 1
        # Nothing of the sentence around it is taken for the concept.
        pieces = text.pieces(prompt)
        inside = "".join(pieces[i] for span in spans for i in span).replace("▁", " ")
        assert matching.replace(inside, concept, "").strip() == ""


def node(kind: str, info: dict, **inputs) -> dict:
    """A node with its defaults."""
    values = {entry.name: entry.default() for entry in inputs_of(kind, info) if entry.is_widget}
    return {"class_type": kind, "inputs": values | inputs}


def hostile_nodes(info: dict, text) -> dict[str, tuple[dict, str]]:
    """Graphs with one text in a node of each kind, and the name of the input that holds it."""
    clip = node("EraseAnything_TinyFlux", info)
    sampler = node("EraseAnything_ConceptSampler", info, concept=text, words_from="offline", prompts_from="templates")
    attack = node("EraseAnything_EraseAttack", info, prompt="a heart", concept=text, attack="double")
    genetic = node("EraseAnything_GeneticAttack", info, concept=text, clip=["clip", 0], population=4, generations=1)
    table = node("EraseAnything_PromptSet", info, file="none", text=text)
    compare = node("EraseAnything_ErasureCompare", info, reports=text)
    return {
        "ConceptSampler": ({"1": sampler}, "concept"),
        "EraseAttack": ({"1": attack}, "concept"),
        "GeneticAttack": ({"1": genetic, "clip": clip}, "concept"),
        "PromptSet": ({"1": table, "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}}, "text"),
        "ErasureCompare": ({"1": compare}, "reports"),
    }


NAMES = ("ConceptSampler", "EraseAttack", "GeneticAttack", "PromptSet", "ErasureCompare")


@pytest.mark.parametrize("name", NAMES)
def test_half_a_character_is_refused_when_it_is_queued(name, server):
    graph, entry = hostile_nodes(server.object_info(), HALF)[name]
    with pytest.raises(GraphError, match=rf"`{entry}` holds '\\ud800', half of a character, at position 9"):
        server.queue(graph)


@pytest.mark.parametrize("name", NAMES)
def test_half_a_character_over_a_link_does_not_end_the_queue(name, server):
    graph, entry = hostile_nodes(server.object_info(), ["text", 0])[name]
    graph["text"] = {"class_type": "PrimitiveString", "inputs": {"value": HALF}}
    with pytest.raises(GraphError, match=rf"`{entry}` holds '\\ud800', half of a character"):
        server.run(graph, timeout=60)
    # The thread that runs the queue is alive: the next graph is done.
    misspelt = {"prompt": "a cat", "concept": "cat", "attack": "double"}
    after = {"1": node("EraseAnything_EraseAttack", server.object_info(), **misspelt)}
    assert server.run(after, timeout=60)["status"]["completed"]


def test_a_megabyte_is_not_echoed(server):
    graph = {"1": node("EraseAnything_EraseAttack", server.object_info(), prompt="x" * 1_000_000, concept="cat")}
    with pytest.raises(GraphError) as failure:
        server.run(graph, timeout=60)
    assert "(1,000,000 characters)" in str(failure.value) and len(str(failure.value)) < 2000


def test_numbers_and_choices_are_still_checked(server):
    """Naming texts in a node's own check must not take core's check of the other inputs away."""
    info = server.object_info()
    with pytest.raises(GraphError, match="bigger than max"):
        server.queue({"1": node("EraseAnything_EraseAttack", info, prompt="a cat", concept="cat", count=10**9)})
    with pytest.raises(GraphError, match="not in list"):
        server.queue({"1": node("EraseAnything_EraseAttack", info, prompt="a cat", concept="cat", attack="none")})
