"""The workflows on TinyFlux, which run on a CPU in minutes."""

import dataclasses
from typing import Any

from lab.tinyflux.recipe import erase_config
from scripts.graph import Graph
from scripts.workflows.template import Template, node, sampled, sampled_keys

DEMO = "heart"  # what workflows/tinyflux_erase.json erases
SHOWN = 8  # pictures of the concept before and after
LISTS = {"synonyms": ", ", "irrelevant": ", ", "templates": "\n", "retain": "\n"}  # how the node takes them
SETTINGS = (
    "concept",
    "neutral",
    "eta",
    "tau",
    "k_irrelevant",
    "esd_weight",
    "attn_weight",
    "retain_weight",
    "rsc_weight",
    "guidance",
    "width",
    "height",
    "sampling_steps",
    "cached_trajectories",
    "refresh_every",
    "steps",
    "batch_size",
    "retain_batch_size",
    "rank",
    "lr_low",
    "lr_up",
    "targets",
    "alternate",
    "dtype",
    "gradient_checkpointing",
    "seed",
    "cached_retain_trajectories",
    "rsc_samples",
    "on_policy_share",
    "optimizer",
    "lr_schedule",
    "warmup_steps",
    "weight_decay",
    "gradient_accumulation_steps",
    "max_grad_norm",
)
NOTE = """**TinyFlux** is a FLUX checkpoint that is small enough for a CPU. It knows simple shapes only.
It shows how the nodes work; it says nothing about the quality on FLUX.1-dev.

Files, all in `eraseanything_core/tinyflux/weights` of this pack's repository. Copy them to:

- `models/diffusion_models/tinyflux.safetensors`
- `models/text_encoders/tinyflux_text.safetensors`
- `models/vae/tinyflux_vae.safetensors`

"""


def trainer_inputs(concept: str) -> dict[str, Any]:
    """The values of an EraseTrainer node that erases a concept of TinyFlux's world."""
    config = dataclasses.asdict(erase_config(concept))
    inputs = {name: config[name] for name in SETTINGS}
    for name, separator in LISTS.items():
        inputs[name] = separator.join(config[name])
    return inputs | {
        "output_name": f"tinyflux_without_{concept}",
        "preset": "custom",  # a preset would go over the settings that were found for TinyFlux
        "resume": "",
        "memory": "auto",
        "save_every": 25,
        "monitor_every": 20,
        "stop_score": 0.0,
        "stop_drift": 0.0,
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


def trained(concept: str) -> dict[str, Any]:
    """An EraseTrainer node."""
    links = {"model": ["model", 0], "clip": ["clip", 0], "vae": ["vae", 0]}
    return node("EraseAnything_EraseTrainer", **links, **trainer_inputs(concept))


LOAD = {"1. Load TinyFlux": ["model", "clip", "vae"]}
ASK = ["prompt", "empty", "guidance", "latent"]


def erase_graph(concept: str) -> Graph:
    """The whole job: load TinyFlux, train an eraser, sample the concept before and after."""
    return {
        **loaders(),
        **question(f"a photo of a {concept}", SHOWN),
        "erase": trained(concept),
        "erased": node("LoraModelLoader", model=["model", 0], lora=["erase", 0], strength_model=1.0, bypass=False),
        **sampled(["model", 0], "before"),
        **sampled(["erased", 0], "after"),
    }


def erase(concept: str) -> Template:
    """Erases a concept and shows it before and after."""
    groups = {
        **LOAD,
        "2. Train the eraser": ["erase", "erased"],
        "3. Before and after": [*ASK, *sampled_keys("before", "after")],
    }
    note = f"Press Run. After a few minutes you see *{concept}* before and after, at the same seeds."
    return Template(erase_graph(concept), groups, NOTE + note)


def combine(first: str, second: str) -> Template:
    """Trains two erasers, combines them for a prompt, and saves them as one LoRA."""
    graph = {
        "text": node("PrimitiveStringMultiline", "The prompt", value=f"a photo of a {first} beside a {second}"),
        **loaders(),
        **question(["text", 0], 4),
        "erase first": trained(first),
        "erase second": trained(second),
        "combine": node(
            "EraseAnything_MultiEraseLoRA",
            model=["model", 0],
            clip=["clip", 0],
            prompt=["text", 0],
            **{"loras.lora0": ["erase first", 0], "loras.lora1": ["erase second", 0]},
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
        "2. Train two erasers": ["erase first", "erase second"],
        "3. Combine them": ["text", "combine", "save"],
        "4. Before and after": [*ASK, *sampled_keys("before", "after")],
    }
    note = f"Press Run. It trains an eraser of *{first}* and one of *{second}*, and applies both."
    return Template(graph, groups, NOTE + note)


def strength(concept: str) -> Template:
    """Applies an eraser at half and at full strength, and only in the first half of the sampling."""
    shared = {"model": ["model", 0], "clip": ["clip", 0], "lora": ["erase", 0]}
    graph = {
        **loaders(),
        **question(f"a photo of a {concept}", 4),
        "erase": trained(concept),
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
        "2. Train the eraser": ["erase"],
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
        **sampled(["attention", 0], "probed"),
        "maps": node(
            "EraseAnything_AttentionMaps",
            attention=["attention", 2],
            samples=["sample probed", 0],
            image=["decode probed", 0],
        ),
        "bars": node("PreviewImage", "shares", images=["maps", 2]),
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
