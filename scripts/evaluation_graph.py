"""The workflow that judges an eraser, as code: `python -m scripts.evaluation_graph OBJECT_INFO` writes it.

It erases DEMO from TinyFlux, draws four prompt sets before and after, and reports. The thumbnail is the lower left
corner of the demo's picture.
"""

import json
import sys

from PIL import Image

from eraseanything_core.evaluation.prompt_sets import PromptRow, write
from lab.tinyflux.recipe import Cell, cells
from scripts.graph import api_to_ui, read_object_info
from scripts.workflows import DEMO, ROOT, WORKFLOWS, erase_graph

ROWS = {"acc_e": 20, "acc_g": 20, "acc_ir": 18}  # pictures a cell; acc_e's prompts are attacked as well
TITLES = {"acc_e": "the concept", "acc_g": "a held-out synonym", "acc_ir": "the others", "attack": "attacked"}


def node(kind: str, title: str = "", **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs} | ({"_meta": {"title": title}} if title else {})


def rows(cell: Cell, count: int) -> str:
    """A cell's first prompts as the text of a PromptSet."""
    told = zip(cell.prompts[:count], cell.seeds, cell.concepts)
    return write([PromptRow(prompt, seed, 3.5, concept) for prompt, seed, concept in told])


def drawn(name: str, prompt: list, rows: str, model: str, when: str) -> dict:
    """Nodes that draw a list of prompts, at the seeds and guidances of a PromptSet."""
    own = f"{name} {when}"
    return {
        f"text {own}": node("CLIPTextEncode", text=prompt, clip=["clip", 0]),
        f"guided {own}": node("FluxGuidance", conditioning=[f"text {own}", 0], guidance=[rows, 2]),
        f"sample {own}": node(
            "KSampler", model=[model, 0], seed=[rows, 1], steps=20, cfg=1.0, sampler_name="euler", scheduler="simple",
            positive=[f"guided {own}", 0], negative=["empty", 0], latent_image=["one", 0], denoise=1.0,
        ),
        own: node("VAEDecode", samples=[f"sample {own}", 0], vae=["vae", 0]),
    }  # fmt: skip


def judged(name: str, prompt: list, rows: str) -> dict:
    """A prompt set drawn before and after, and read."""
    return {
        **drawn(name, prompt, rows, "model", "before"),
        **drawn(name, prompt, rows, "erased", "after"),
        f"judge {name}": node(
            "EraseAnything_EraseJudge", TITLES[name], before=[f"{name} before", 0], after=[f"{name} after", 0],
            wanted=[rows, 3], judge="TinyFlux CNN", labels="", template="a photo of a {}", weights="", threshold=0.0,
            prompts=prompt, seeds=[rows, 1],
        ),
    }  # fmt: skip


def evaluation_graph(concept: str) -> dict:
    """Erase, draw, judge, report; in API format."""
    loaders = ("model", "clip", "vae", "empty", "erase", "erased")
    graph = {name: node for name, node in erase_graph(concept).items() if name in loaders}
    graph["one"] = node("EmptySD3LatentImage", width=96, height=96, batch_size=1)
    asked = cells(concept, max(ROWS.values()))
    for name, count in ROWS.items():
        graph[f"set {name}"] = node(
            "EraseAnything_PromptSet", TITLES[name], file="none", text=rows(asked[name], count), first=0, count=0
        )
        graph |= judged(name, [f"set {name}", 0], f"set {name}")
    graph["attack"] = node(
        "EraseAnything_EraseAttack", prompt=["set acc_e", 0], concept=concept, attack="double", synonyms="", seed=0,
        count=1,
    )  # fmt: skip
    graph |= judged("attack", ["attack", 0], "set acc_e")
    answers = {name: [f"judge {name}", 0] for name in TITLES}
    told = {"concept": concept, "model": f"TinyFlux, {concept} erased", "output_name": f"tinyflux_{concept}"}
    return graph | {
        "report": node("EraseAnything_ErasureReport", strength=1.0, **told, **answers),
        "grid": node("EraseAnything_ErasureGrid", before=["acc_e before", 0], after=["acc_e after", 0], columns=10),
    }  # fmt: skip


def main(source: str):
    workflow = api_to_ui(evaluation_graph(DEMO), read_object_info(source))
    path = WORKFLOWS / "evaluate_tinyflux.json"
    path.write_text(json.dumps(workflow, indent=2) + "\n", encoding="utf-8")
    shown = Image.open(ROOT / "demo" / "before_after.png").convert("RGB")
    half = shown.height // 2
    shown.crop((0, half, half, shown.height)).resize((400, 400)).save(path.with_suffix(".jpg"))


if __name__ == "__main__":
    main(sys.argv[1])
