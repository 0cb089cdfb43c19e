"""The graphs that this repository ships, as code: `python -m scripts.workflows OBJECT_INFO` writes workflows/*.

OBJECT_INFO is the address of a running server or a file with its /object_info. The thumbnails are a corner of
the demo's picture, and what a node shows; scripts/thumbnails.py draws those of `PICTURED`.
"""

import dataclasses
import json
import sys
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

from eraseanything_core.concepts.sampler import Request, Service, offline
from lab.tinyflux.recipe import erase_config
from scripts.graph import api_to_ui, read_object_info

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
DEMO = "heart"  # what workflows/erase_tinyflux.json erases
SHOWN = 8  # pictures of the concept before and after
SERVICE = ("words_from", "provider", "base_url", "model", "credential", "timeout")
LISTS = {"synonyms": ", ", "irrelevant": ", ", "templates": "\n", "retain": "\n"}  # how the node takes them


def trainer_inputs(concept: str) -> dict:
    """The values of an EraseTrainer node that erases a concept of TinyFlux's world."""
    config = dataclasses.asdict(erase_config(concept))
    lists = {name: separator.join(config[name]) for name, separator in LISTS.items()}
    names = (
        "concept", "neutral", "eta", "tau", "k_irrelevant", "esd_weight", "attn_weight", "retain_weight", "rsc_weight", "guidance", "width",
        "height", "sampling_steps", "cached_trajectories", "refresh_every", "steps", "batch_size", "retain_batch_size", "rank", "lr_low", "lr_up",
        "targets", "alternate", "dtype", "gradient_checkpointing", "seed", "cached_retain_trajectories", "rsc_samples", "on_policy_share", "optimizer",
        "lr_schedule", "warmup_steps", "weight_decay", "gradient_accumulation_steps",
    )  # fmt: skip
    node = {
        "output_name": f"tinyflux_without_{concept}",
        "max_grad_norm": config["max_grad_norm"],
        "preset": "custom",
        "resume": "",
        "memory": "auto",
    }
    watch = {"save_every": 25, "monitor_every": 20, "stop_score": 0.0, "stop_drift": 0.0}
    return {name: config[name] for name in names} | lists | node | watch


def sampled(model: list, title: str) -> dict:
    """Nodes that sample the prompt with a model and show the pictures; their names end in the title."""
    settings = {
        "seed": 1, "steps": 20, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        "positive": ["guidance", 0], "negative": ["empty", 0], "latent_image": ["latent", 0], "model": model,
    }  # fmt: skip
    return {
        f"sample {title}": {"class_type": "KSampler", "inputs": settings},
        f"decode {title}": {
            "class_type": "VAEDecode",
            "inputs": {"samples": [f"sample {title}", 0], "vae": ["vae", 0]},
        },
        f"show {title}": {
            "class_type": "PreviewImage",
            "inputs": {"images": [f"decode {title}", 0]},
            "_meta": {"title": title},
        },
    }


def tinyflux(concept: str, count: int) -> dict:
    """Nodes that load TinyFlux and ask it for a concept."""
    prompt = {"text": f"a photo of a {concept}", "clip": ["clip", 0]}
    return {
        "model": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": "tinyflux.safetensors", "weight_dtype": "default"},
        },
        "clip": {"class_type": "EraseAnything_TinyFlux", "inputs": {"text_encoder": "tinyflux_text.safetensors"}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "tinyflux_vae.safetensors"}},
        "prompt": {"class_type": "CLIPTextEncode", "inputs": prompt},
        "empty": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["clip", 0]}},
        "guidance": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["prompt", 0], "guidance": 3.5}},
        "latent": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 96, "height": 96, "batch_size": count}},
    }


def trained(concept: str) -> dict:
    """An EraseTrainer node."""
    links = {"model": ["model", 0], "clip": ["clip", 0], "vae": ["vae", 0]}
    return {"class_type": "EraseAnything_EraseTrainer", "inputs": links | trainer_inputs(concept)}


def erase_graph(concept: str) -> dict:
    """The whole job in API format: load TinyFlux, train an eraser, sample the concept before and after."""
    return {
        **tinyflux(concept, SHOWN),
        "erase": trained(concept),
        "erased": {
            "class_type": "LoraModelLoader",
            "inputs": {"model": ["model", 0], "lora": ["erase", 0], "strength_model": 1.0, "bypass": False},
        },
        **sampled(["model", 0], "before"),
        **sampled(["erased", 0], "after"),
    }


def multi_graph(first: str, second: str) -> dict:
    """Trains two erasers, combines them for a prompt and saves the one LoRA; samples the prompt before and after."""
    combine = {
        "model": ["model", 0],
        "clip": ["clip", 0],
        "loras.lora0": ["erase first", 0],
        "loras.lora1": ["erase second", 0],
        "prompt": ["text", 0],
    }
    name = f"tinyflux_without_{first}_and_{second}"
    made = tinyflux(f"{first} beside a {second}", 4)
    text = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": made["prompt"]["inputs"]["text"]}}
    made["prompt"]["inputs"]["text"] = ["text", 0]
    return {
        "text": text,
        **made,
        "erase first": trained(first),
        "erase second": trained(second),
        "combine": {"class_type": "EraseAnything_MultiEraseLoRA", "inputs": combine},
        "save": {
            "class_type": "EraseAnything_SaveEraseLoRA",
            "inputs": {"lora": ["combine", 1], "output_name": name, "concept": ""},
        },
        **sampled(["model", 0], "before"),
        **sampled(["combine", 0], "after"),
    }


def strength_graph(concept: str) -> dict:
    """Trains an eraser and applies it at half and at full strength, and only in the first half of the sampling."""
    settings = {"model": ["model", 0], "clip": ["clip", 0], "lora": ["erase", 0]}
    made = {**tinyflux(concept, 4), "erase": trained(concept), **sampled(["model", 0], "before")}
    for title, change in (
        ("half", {"strength": 0.5}),
        ("full", {"strength": 1.0}),
        ("early steps", {"strength": 1.0, "end_percent": 0.5}),
    ):
        made[f"strength {title}"] = {"class_type": "EraseAnything_EraseStrength", "inputs": settings | change}
        made |= sampled([f"strength {title}", 0], title)
    return made


def concepts_graph(concept: str) -> dict:
    """A word turned into its concept set, which is shown and saved."""
    request, service = Request(concept), Service()
    values = dataclasses.asdict(request) | {name: getattr(service, name) for name in SERVICE}
    values |= {"synonyms": "", "prompts_from": "templates"}
    save = {"concepts": ["words", 0], "output_name": concept}
    return {
        "words": {"class_type": "EraseAnything_ConceptSampler", "inputs": values},
        "save": {"class_type": "EraseAnything_SaveConcepts", "inputs": save},
    }


def written(text: str) -> Image.Image:
    """A thumbnail that shows a text."""
    picture = Image.new("RGB", (400, 400), "#222")
    lines = [part for line in text.splitlines() for part in wrap(line, 38) or [""]]
    ImageDraw.Draw(picture).multiline_text((16, 16), "\n".join(lines[:17]), "#ddd", ImageFont.load_default(18))
    return picture


def attention_graph(concept: str, node: str, slot: int) -> dict:
    """TinyFlux with an attention node that encodes the prompt itself; `slot` is the node's conditioning."""
    made = tinyflux(concept, 4)
    text = made.pop("prompt")["inputs"]["text"]
    given = {"model": ["model", 0], "clip": ["clip", 0], "prompt": text, "concept": concept}
    made["guidance"]["inputs"]["conditioning"] = ["attention", slot]
    return made | {"attention": {"class_type": node, "inputs": given}}


def probe_graph(concept: str) -> dict:
    """Samples with a probe, and shows where the concept is attended to."""
    shown = {"attention": ["attention", 2], "samples": ["sample probed", 0], "image": ["decode probed", 0]}
    bars = {"class_type": "PreviewImage", "inputs": {"images": ["maps", 2]}, "_meta": {"title": "shares"}}
    return {
        **attention_graph(concept, "EraseAnything_AttentionProbe", 1),
        **sampled(["attention", 0], "probed"),
        "maps": {"class_type": "EraseAnything_AttentionMaps", "inputs": shown},
        "bars": bars,
    }


def map_graph(concept: str) -> dict:
    """The same prompt and seeds with the concept's attention as it is, and deleted."""
    made = attention_graph(concept, "EraseAnything_AttentionErase", 1)
    made["attention"]["inputs"]["blocks"] = "all"  # less is left than by the dual ones: benchmarks/attention_erase.md
    return {
        **made,
        **sampled(["model", 0], "before"),
        **sampled(["attention", 0], "after"),
    }


GRAPHS = {
    "erase_tinyflux": erase_graph(DEMO),
    "multi_erase": multi_graph(DEMO, "fish"),
    "erase_strength": strength_graph(DEMO),
    "sample_concepts": concepts_graph("cat"),
    "probe_attention": probe_graph(DEMO),
    "erase_attention_map": map_graph("star"),  # TinyFlux often draws a heart where little is left of its prompt
}
PICTURED = ("multi_erase", "erase_strength", "probe_attention", "erase_attention_map")  # by scripts/thumbnails.py


def main(source: str):
    info = read_object_info(source)
    shown = Image.open(ROOT / "demo" / "before_after.png").convert("RGB")
    thumbnail = shown.crop((0, 0, shown.height // 2, shown.height // 2)).resize((400, 400))
    for name, graph in GRAPHS.items():
        text = json.dumps(api_to_ui(graph, info), indent=2) + "\n"
        (WORKFLOWS / f"{name}.json").write_text(text, encoding="utf-8")
        if name not in PICTURED:
            thumbnail.save(WORKFLOWS / f"{name}.jpg")
    written(offline(Request("cat")).text()).save(WORKFLOWS / "sample_concepts.jpg")


if __name__ == "__main__":
    main(sys.argv[1])
