"""Text that people and programs really send: brackets in a concept, and half of a character."""

import functools

import folder_paths
import pytest
from comfy_api.latest import io

from eraseanything_core.comfy_bridge.text import ComfyTextEncoder
from eraseanything_core.concepts import matching
from eraseanything_core.concepts.concept_set import ConceptSet
from eraseanything_core.concepts.prompts import fill
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.plan import prepare
from scripts.graph import inputs_of
from scripts.server import GraphError
from tests.comfy.training.node_runs import said

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


def test_no_node_takes_nan_for_a_number(pack):
    """It passes ComfyUI's check of a range: no comparison with it holds."""
    tried = 0
    for cls in pack.values():
        floats = [entry.id for entry in cls.define_schema().inputs if isinstance(entry, io.Float.Input)]
        tried += len(floats)
        for name in floats:
            for number in (float("nan"), float("inf"), [1.0, float("-inf")]):
                with pytest.raises(ValueError, match=f"^{name} is -?(nan|inf): set a number$"):
                    cls.PREPARE_CLASS_CLONE(None).execute(**{name: number})
    assert tried > 20


@pytest.mark.parametrize("encoding", ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"))
def test_a_concept_file_in_any_encoding(encoding, pack, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    (tmp_path / "concepts" / "folder.json").mkdir(parents=True)
    (tmp_path / "concepts" / "muse.json").write_bytes('{"concept": "Musée d\'Orsay"}'.encode(encoding))
    node = pack["EraseAnything_LoadConcepts"]
    options = {entry.id: entry for entry in node.define_schema().inputs}["choice"].options
    assert "saved: muse" in options and "saved: folder" not in options
    loaded = node.PREPARE_CLASS_CLONE(None).execute(source="", choice="saved: muse").args[0]
    assert loaded.concept == "Musée d'Orsay"


def test_a_folder_with_a_name_that_no_disk_has_is_named(pack):
    check = functools.partial(said, pack["EraseAnything_TrainRecogniser"])
    for name in ("x" * 10_000, "a\0b"):
        answer = check(output_name="x", folder=name)
        assert "Error" not in answer and len(answer) < 500


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
