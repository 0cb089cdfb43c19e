"""The workflows on TinyFlux, which run on a CPU in minutes."""

from typing import Any

from scripts import erase_settings
from scripts.graph import Graph
from scripts.workflows.template import Template, before_and_after, node, probed, sampled, sampled_keys

DEMO = "moon"  # what workflows/tinyflux_erase.json erases
SIZE = {"width": 96, "height": 96}  # of TinyFlux's pictures; all else is the preset's
NOTE = """**TinyFlux** is a FLUX checkpoint that is small enough for a CPU. It knows simple shapes only.
It shows how the nodes work; it says nothing about the quality on FLUX.1-dev.

Its files are `tinyflux.safetensors`, `tinyflux_text.safetensors` and `tinyflux_vae.safetensors`. They come with the
pack's repository and ComfyUI finds them there, so there is nothing to copy.

"""


def trainer_inputs(concept: str) -> dict[str, Any]:
    """The values of an EraseTrainer node, as a user types them: the word alone."""
    return {
        "concept": concept,
        "preset": "balanced",
        "output_name": f"tinyflux_without_{concept}",
        "seed": 0,
    }


def loaders() -> Graph:
    """Nodes that load TinyFlux."""
    return {
        "model": node("UNETLoader", unet_name="tinyflux.safetensors", weight_dtype="default"),
        "clip": node("EraseAnything_TinyFlux", text_encoder="tinyflux_text.safetensors"),
        "vae": node("VAELoader", vae_name="tinyflux_vae.safetensors"),
    }


def question(prompt: str | list, count: int) -> Graph:
    """Nodes that ask TinyFlux for a prompt."""
    return {
        "prompt": node("CLIPTextEncode", text=prompt, clip=["clip", 0]),
        "empty": node("CLIPTextEncode", text="", clip=["clip", 0]),
        "guidance": node("FluxGuidance", conditioning=["prompt", 0], guidance=3.5),
        "latent": node("EmptySD3LatentImage", width=96, height=96, batch_size=count),
    }


def trained(concept: str, key: str = "erase") -> Graph:
    """An EraseTrainer node and its EraseSettings nodes, whose keys begin with its own."""
    graph, settings = erase_settings.settings_nodes(key, SIZE)
    links = {"model": ["model", 0], "clip": ["clip", 0], "vae": ["vae", 0], "settings": settings}
    return {**graph, key: node(erase_settings.TRAINER, **links, **trainer_inputs(concept))}


def trained_keys(key: str = "erase") -> list[str]:
    """The keys of the nodes of `trained`."""
    return [f"{key} pictures", key]


LOAD = {"1. Load TinyFlux": ["model", "clip", "vae"]}
ASK = ["prompt", "empty", "guidance", "latent"]


def erase_graph(concept: str) -> Graph:
    """The whole job: load TinyFlux, train an eraser, show the concept before and after."""
    return {**loaders(), **trained(concept), **before_and_after("erase")}


def erase(concept: str) -> Template:
    """Erases a concept and shows it before and after."""
    groups = {
        **LOAD,
        "2. Type a word, press Run": trained_keys(),
        "3. Before (left) and after (right)": ["pictures", "report"],
    }
    note = f"Press Run. After a few minutes you see *{concept}* before and after, from the same noise."
    return Template(erase_graph(concept), groups, NOTE + note)


def combine(first: str, second: str) -> Template:
    """Trains two erasers, combines them, and saves them as one LoRA."""
    graph = {
        **loaders(),
        **question(f"a photo of a {first} beside a {second}", 4),
        **trained(first, "erase first"),
        **trained(second, "erase second"),
        "combine": node(
            "EraseAnything_MultiEraseLoRA",
            model=["model", 0],
            clip=["clip", 0],
            **{"loras.lora0": ["erase first", 1], "loras.lora1": ["erase second", 1]},
        ),
        "save": node(
            "EraseAnything_SaveEraseLoRA",
            lora=["combine", 1],
            output_name=f"tinyflux_without_{first}_and_{second}",
            concept="",
        ),
        **sampled(["model", 0], "before"),
        **sampled(["combine", 0], "after"),
    }
    groups = {
        **LOAD,
        "2. Train two erasers": [*trained_keys("erase first"), *trained_keys("erase second")],
        "3. Combine them": ["combine", "save"],
        "4. Before and after": [*ASK, *sampled_keys("before", "after")],
    }
    note = f"Press Run. It trains an eraser of *{first}* and one of *{second}*, and applies both."
    return Template(graph, groups, NOTE + note)


def strength(concept: str) -> Template:
    """Applies an eraser at half and at full strength, and only in the first half of the sampling."""
    shared = {"model": ["model", 0], "clip": ["clip", 0], "lora": ["erase", 1]}
    graph = {
        **loaders(),
        **question(f"a photo of a {concept}", 4),
        **trained(concept),
        **sampled(["model", 0], "before"),
    }
    strengths = {
        "half": {"strength": 0.5},
        "full": {"strength": 1.0},
        "early steps": {"strength": 1.0, "end_percent": 0.5},
    }
    for title, settings in strengths.items():
        graph[f"strength {title}"] = node("EraseAnything_EraseStrength", title, **shared, **settings)
        graph |= sampled([f"strength {title}", 0], title)
    groups = {
        **LOAD,
        "2. Train the eraser": trained_keys(),
        "3. Choose strengths": [f"strength {title}" for title in strengths],
        "4. Compare": [*ASK, *sampled_keys("before", *strengths)],
    }
    note = "Press Run. Strength 0.5 is half of the effect: the first run measures the eraser for it."
    return Template(graph, groups, NOTE + note)


def attention_graph(concept: str, kind: str, output: int, **settings: Any) -> Graph:
    """TinyFlux with an attention node, which encodes the prompt itself.

    Args:
        kind: the node's class.
        output: number of its conditioning output.
        settings: its other inputs.
    """
    prompt = f"a photo of a {concept}"
    graph = loaders() | question(prompt, 4)
    del graph["prompt"]
    graph["guidance"]["inputs"]["conditioning"] = ["attention", output]
    graph["attention"] = node(kind, model=["model", 0], clip=["clip", 0], prompt=prompt, concept=concept, **settings)
    return graph


def probe(concept: str) -> Template:
    """Samples with a probe, and shows where the concept is attended to."""
    graph = {
        **attention_graph(concept, "EraseAnything_AttentionProbe", 1),
        **probed(),
    }
    groups = {
        **LOAD,
        "2. Watch a word": ["attention"],
        "3. Sample": ["empty", "guidance", "latent", *sampled_keys("probed")],
        "4. Where the word acts": ["maps", "bars"],
    }
    note = f"Press Run. The heat maps show where the pictures attend to the word *{concept}*."
    return Template(graph, groups, NOTE + note)


def attention_erase(concept: str) -> Template:
    """The same prompt and seeds with the concept's attention as it is, and deleted."""
    # All blocks: of the dual ones alone more is left, see benchmarks/attention_erase.md.
    graph = {
        **attention_graph(concept, "EraseAnything_AttentionErase", 1, blocks="all"),
        **sampled(["model", 0], "before"),
        **sampled(["attention", 0], "after"),
    }
    groups = {
        **LOAD,
        "2. Delete a word's attention": ["attention"],
        "3. Before and after": ["empty", "guidance", "latent", *sampled_keys("before", "after")],
    }
    note = "Press Run. Nothing is trained: the attention to the word is set to zero while sampling."
    return Template(graph, groups, NOTE + note)


# Title and sentence of the cards in the template browser.
CARDS = {
    "tinyflux_erase": ("Erase a word (tiny)", "TinyFlux on a CPU: train an eraser, see before and after."),
    "tinyflux_combine": ("Combine erasers (tiny)", "TinyFlux: two erasers applied to one prompt."),
    "tinyflux_strength": ("Set the strength (tiny)", "TinyFlux: an eraser at rising strength."),
    "tinyflux_probe": ("Watch a word (tiny)", "TinyFlux: where pictures attend to a word."),
    "tinyflux_attention_erase": ("Erase attention (tiny)", "TinyFlux: a word's attention deleted, no training."),
    "tinyflux_evaluate": ("Measure an eraser (tiny)", "TinyFlux: draw before and after, judge, report."),
}


def templates() -> dict[str, Template]:
    """All of them but the evaluation, by file name."""
    return {
        "tinyflux_erase": erase(DEMO),
        "tinyflux_combine": combine(DEMO, "fish"),
        "tinyflux_strength": strength(DEMO),
        "tinyflux_probe": probe(DEMO),
        # Not the heart: TinyFlux often draws one where little is left of its prompt.
        "tinyflux_attention_erase": attention_erase("star"),
    }
