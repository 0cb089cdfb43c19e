"""What is wrong with a typed value is said when the graph is queued, by the node that has it, and once."""

import pytest

from scripts.server import GraphError
from tests.comfy.test_hostile import node

LORA = ["lora", 1]
LINKED = "(the linked lora)"
NO_ERASER = "there is no eraser: choose a file, or link a LORA_MODEL"
EMPTY = "`concept` is empty: type the word to erase, or connect `concepts`"
MODELS = {
    "model": ("UNETLoader", {"unet_name": "tinyflux.safetensors", "weight_dtype": "default"}),
    "clip": ("EraseAnything_TinyFlux", {"text_encoder": "tinyflux_text.safetensors"}),
    "vae": ("VAELoader", {"vae_name": "tinyflux_vae.safetensors"}),
}


def said(server, kind: str, inputs: dict) -> str:
    """What the server says about a node with its defaults, these inputs, and the loaders that it needs."""
    info = server.object_info()
    graph = {
        "1": node(f"EraseAnything_{kind}", info, **inputs),
        "lora": node("EraseAnything_EraseNow", info, concept="cat", model=["model", 0], clip=["clip", 0]),
    }
    for name, (loader, values) in MODELS.items():
        graph[name] = {"class_type": loader, "inputs": values}
        if name in info[f"EraseAnything_{kind}"]["input"].get("required", {}):
            graph["1"]["inputs"][name] = [name, 0]
    used = {"1"} | {link[0] for link in graph["1"]["inputs"].values() if isinstance(link, list)}
    if "lora" in used:
        used |= {"model", "clip"}
    with pytest.raises(GraphError) as caught:
        server.queue({key: graph[key] for key in graph if key in used})
    return str(caught.value)


@pytest.mark.parametrize(
    "kind, inputs, message",
    (
        ("EraseTrainer", {"concept": " ", "output_name": "x"}, EMPTY),
        ("EraseTrainer", {"concept": "cat", "output_name": "../x"}, "is no file name"),
        ("ConceptSampler", {"concept": ""}, "the concept is empty: type the word to erase"),
        ("ErasureReport", {"concept": "cat", "output_name": "a/b"}, "type a plain file name"),
        ("IsItGone", {"concept": " ", "file": LINKED}, EMPTY),
        ("IsItGone", {"concept": "cat", "file": LINKED}, NO_ERASER),
        ("EraseStrength", {"file": LINKED}, NO_ERASER),
        ("EraseStrength", {"file": "none.safetensors"}, "`file` is 'none.safetensors': choose one of"),
        ("EraseStrength", {"start_percent": -0.5, "lora": LORA}, "`start_percent` is -0.5: type 0.0 to 1.0"),
        (
            "EraseStrength",
            {"start_percent": 0.6, "end_percent": 0.5, "lora": LORA},
            "start_percent 0.6 must be below end_percent 0.5",
        ),
        ("ExportCheckpoint", {"file": LINKED}, NO_ERASER),
        ("ExportCheckpoint", {"strength": 0.0, "lora": LORA}, "strength is 0: set a number that is not 0"),
        ("ExportCheckpoint", {"strength": 11.0, "lora": LORA}, "`strength` is 11.0: type -10.0 to 10.0"),
        ("MultiEraseLoRA", {}, "there is no LoRA: choose a file, or link one"),
        ("MultiEraseLoRA", {"weights": "1, x", "loras.lora0": LORA}, "'x' in '1, x' is no number"),
        ("MultiEraseLoRA", {"file_2": "none.safetensors"}, "`file_2` is 'none.safetensors': choose one of none"),
    ),
    ids=str,
)
def test_what_is_wrong_is_said_once(server, kind, inputs, message):
    """ComfyUI repeats a message that a check returns for every input that the check names."""
    (line,) = said(server, kind, inputs).splitlines()
    assert line.startswith(f"EraseAnything_{kind} (node 1): ") and line.count(message) == 1
