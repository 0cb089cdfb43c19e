"""Erases a concept from TinyFlux in a real ComfyUI, and measures what is gone and what is left.

Queues workflows/tinyflux_erase.json, then draws the same prompts and seeds before and after, and lets both judges
read them. Writes demo/report.json, demo/report.md and demo/before_after.png.

    python scripts/dev.py demo                      the concept of the workflow
    python scripts/dev.py demo --more               and five that no setting was chosen on
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from lab.provenance import commit
from scripts.erase_settings import TRAINER
from scripts.graph import ui_to_api
from scripts.server import ComfyServer
from scripts.workflows.template import WORKFLOWS
from scripts.workflows.tinyflux import DEMO, trainer_inputs

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "demo"
IMAGES = 200  # pairs of pictures a cell
CELLS = {
    "acc_e": "the concept, by its name",
    "acc_g": "the concept, by a synonym that training never saw",
    "acc_ir": "the nine others of its kind",
    "unrelated": "concepts of the other kinds",
}


def demo_graph(server: ComfyServer, concept: str) -> dict:
    """The shipped workflow in API format, with another concept's words where it is not the workflow's own."""
    workflow = json.loads((WORKFLOWS / "tinyflux_erase.json").read_text(encoding="utf-8"))
    graph = ui_to_api(workflow, server.object_info())
    for node in graph.values():
        if node["class_type"] == TRAINER:
            node["inputs"] |= trainer_inputs(concept)
    return graph


def erase(server: ComfyServer, concept: str) -> tuple[Path, float]:
    """Runs the graph; the LoRA's file and the seconds that the trainer's node took."""
    graph = demo_graph(server, concept)
    clock: dict[str, float] = {}
    trainer = next(key for key, node in graph.items() if node["class_type"] == TRAINER)

    def follow(kind: str, data: dict) -> None:
        if kind == "executing" and data.get("node") == trainer:
            clock["start"] = time.monotonic()
        elif kind == "executed" and data.get("node") == trainer:
            clock["end"] = time.monotonic()
        elif kind == "progress_text" and data["node"] == trainer:
            line = data["text"].split("\n")[0]
            print(f"\r  erasing {concept}: {line[:60]:<60}", end="", flush=True)

    entry = server.run(graph, on_event=follow)
    print("\n  " + entry["outputs"][trainer]["text"][0].replace("\n", "\n  "))
    (name,) = entry["outputs"][trainer]["lora"]
    return server.base / "models" / "loras" / name, clock["end"] - clock["start"]


def measure(concept: str, lora_file: Path, count: int) -> tuple[dict, dict]:
    """Both judges' cells of a concept, and the pictures."""
    from eraseanything_core.lora.files import load_lora
    from lab.tinyflux.measure import compare, merged
    from lab.tinyflux.pipeline import Pipeline, flux, judge_net
    from lab.tinyflux.recipe import cells

    before = Pipeline(flux())
    after = Pipeline(merged(before.module, load_lora(lora_file)[0]), before.encoder, before.decode)
    return compare(before, after, judge_net(), cells(concept, count))


def run(server: ComfyServer, concept: str, count: int) -> tuple[dict, dict]:
    """Erases and measures one concept; its part of the report, and the pictures."""
    lora_file, seconds = erase(server, concept)
    print(f"  measuring {concept} on {4 * count} pairs of pictures", flush=True)
    judges, pictures = measure(concept, lora_file, count)
    return {"concept": concept, "train_seconds": round(seconds, 1), **judges["oracle"], "judges": judges}, pictures


def markdown(report: dict) -> str:
    """The report for people."""
    lines = [
        "| erased | judge | cell | before | after (95 % interval) | images |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for part in (report, *report["more"]):
        for judge, cells in part["judges"].items():
            for name, cell in cells.items():
                after = f"{cell['after']:.3f} ({cell['low']:.3f} to {cell['high']:.3f})"
                row = (part["concept"], judge, f"{name}: {CELLS[name]}", f"{cell['before']:.3f}", after, str(cell["n"]))
                lines.append(f"| {' | '.join(row)} |")
    seconds = ", ".join(f"{part['concept']} {part['train_seconds']:.0f} s" for part in (report, *report["more"]))
    return "\n".join([*lines, "", f"Training time: {seconds}. `{report['command']}` at {report['commit']}.", ""])


def picture(pictures: dict, path: Path, columns: int = 10) -> None:
    """Saves one picture: for every cell a row before and a row after, same prompts and seeds."""
    import torch
    from PIL import Image
    from torchvision.utils import make_grid

    rows = []
    for before, after in pictures.values():
        rows += [before[:columns], after[:columns]]
    grid = make_grid(torch.cat(rows), nrow=columns, padding=2, pad_value=1.0)
    Image.fromarray((grid * 255).byte().permute(1, 2, 0).numpy()).save(path)


def write(parts: list[dict], about: dict) -> None:
    """Writes and prints the report of the concepts that are done so far."""
    report = parts[0] | about | {"more": parts[1:]}
    (OUT / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (OUT / "report.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


def main() -> None:
    """Starts ComfyUI, erases and measures each concept, and writes the report after each."""
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES, help="pairs of pictures a cell")
    parser.add_argument("--more", action="store_true", help="also erase five concepts that no setting was chosen on")
    args = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    OUT.mkdir(exist_ok=True)
    base = Path(os.environ["COMFYUI_BASE"])
    command = "python scripts/dev.py demo"
    if args.more:
        command += " --more"
    if args.images != IMAGES:
        command += f" --images {args.images}"
    seeds = f"pictures: 100000 * cell + 0 .. n - 1; training: {trainer_inputs(DEMO)['seed']}"
    about = {"judge": "oracle", "seeds": seeds, "command": command, "commit": commit()}
    parts = []
    print("starting ComfyUI")
    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), base, ROOT / ".cache" / "demo.log") as server:
        from lab.tinyflux.recipe import TEST

        concepts = [DEMO, *TEST] if args.more else [DEMO]
        for concept in concepts:
            part, pictures = run(server, concept, args.images)
            parts.append(part)
            if concept == DEMO:
                picture(pictures, OUT / "before_after.png")
            write(parts, about)
    print(f"demo/report.json, demo/report.md and demo/before_after.png are written (in {OUT})")


if __name__ == "__main__":
    main()
