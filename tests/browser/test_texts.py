"""What nodes say can be read on them, in both of ComfyUI's renderers."""

import json

import pytest

MODEL = {"class_type": "UNETLoader", "inputs": {"unet_name": "tinyflux.safetensors", "weight_dtype": "default"}}
CLIP = {"class_type": "EraseAnything_TinyFlux", "inputs": {"text_encoder": "tinyflux_text.safetensors"}}
PICTURE = {"class_type": "EmptyImage", "inputs": {"width": 96, "height": 96, "batch_size": 1, "color": 255}}
CONCEPTS = {"class_type": "EraseAnything_LoadConcepts", "inputs": {"source": '{"concept": "heart"}'}}


def pack_node(name: str, **inputs) -> dict:
    """A node of the pack; inputs that are not given have their defaults."""
    return {"class_type": f"EraseAnything_{name}", "inputs": inputs}


JUDGED = {
    "2": PICTURE,
    "3": pack_node("EraseJudge", before=["2", 0], after=["2", 0], wanted="heart", judge="TinyFlux oracle"),
}
PROBED = pack_node("AttentionProbe", model=["2", 0], clip=["3", 0], prompt="a heart and a star", concept="heart, star")
SAMPLED = {
    "class_type": "KSampler",
    "inputs": {
        "model": ["4", 0],
        "positive": ["4", 1],
        "negative": ["4", 1],
        "latent_image": ["5", 0],
        "steps": 1,
        "cfg": 1.0,
    },
}
LATENT = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}

# The node that speaks is 1.
GRAPHS = {
    "Concept Sampler": {"1": pack_node("ConceptSampler", concept="heart", words_from="offline")},
    "Load Concepts": {"1": CONCEPTS},
    "Save Concepts": {"2": CONCEPTS, "1": pack_node("SaveConcepts", concepts=["2", 0])},
    "Attack Prompts": {"1": pack_node("EraseAttack", prompt="a heart", concept="heart", attack="double", count=3)},
    "Genetic Attack": {
        "2": CLIP,
        "1": pack_node("GeneticAttack", clip=["2", 0], concept="heart", population=4, generations=1),
    },
    "Judge Pictures": {"2": PICTURE, "1": JUDGED["3"]},
    "Erasure Report": {**JUDGED, "1": pack_node("ErasureReport", concept="heart", acc_e=["3", 0])},
    "Attention Erase": {
        "2": MODEL,
        "3": CLIP,
        "1": pack_node("AttentionErase", model=["2", 0], clip=["3", 0], prompt="a red heart", concept="heart"),
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["1", 2]}},
    },
    "Attention Maps": {
        "2": MODEL,
        "3": CLIP,
        "4": PROBED,
        "5": LATENT,
        "6": SAMPLED,
        "1": pack_node("AttentionMaps", attention=["4", 2], samples=["6", 0]),
    },
}


@pytest.mark.parametrize("node", GRAPHS)
def test_a_node_shows_its_text(canvas, node):
    (text,) = canvas.run(GRAPHS[node])["1"]["text"]
    assert canvas.is_on_screen(text.splitlines()[0])


def test_every_line_is_kept_apart(canvas):
    """On the page as in the history, so that a list is not read as one sentence."""
    (text,) = canvas.run(GRAPHS["Attack Prompts"])["1"]["text"]
    lines = text.splitlines()
    assert len(lines) == 3
    assert canvas.text_with(lines[0]).inner_text().splitlines() == lines


def test_a_text_is_no_markup(canvas):
    """Words come from files and servers of others: the page must not run or load what stands in them."""
    word = "<img src=x onerror=window.ran=1>heart *a* [b](c) # 1. | &amp;"
    canvas.run({"1": pack_node("LoadConcepts", source=json.dumps({"concept": word}))})
    assert canvas.is_on_screen(word)
    assert canvas.page.locator("img[src=x]").count() == 0


def test_a_text_stays_when_the_graph_runs_again(canvas):
    canvas.run(GRAPHS["Save Concepts"])
    (text,) = canvas.run_again()["1"]["text"]
    assert canvas.is_on_screen(text)
