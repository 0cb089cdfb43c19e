"""The thumbnails of workflows, by running them: `python -m scripts.thumbnails [--only NAME ...]` writes the JPEGs.

It needs COMFYUI_PATH. Erasers are trained for a quarter of the time that the workflows give them, and a dial is
measured on fewer seeds.
"""

import argparse
import io
import json
import os
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image

from lab.tinyflux.eraser_cache import QUICK
from scripts.base import prepare_base
from scripts.graph import ui_to_api
from scripts.server import ComfyServer
from scripts.workflows import ROOT, WORKFLOWS

SIDE = 200  # px of one picture
SHOWN = {  # the nodes whose pictures are shown, and how many of each
    "multi_erase": ("PreviewImage", 2),
    "erase_strength": ("PreviewImage", 1),
    "probe_attention": ("EraseAnything_AttentionMaps", 4),
    "erase_attention_map": ("PreviewImage", 2),
}

SHORTENED = {"EraseAnything_EraseTrainer": QUICK, "EraseAnything_EraseStrength": {"images": 4}}


def squares(server: ComfyServer, images: list[dict]) -> list[Image.Image]:
    """The pictures that a node shows; what stands under a square one, a legend, is cut off."""
    pictures = [Image.open(io.BytesIO(server.get(f"/view?{urlencode(image)}"))).convert("RGB") for image in images]
    return [p.crop((0, 0, p.width, p.width)).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for p in pictures]


def thumbnail(server: ComfyServer, name: str) -> Image.Image:
    """Two pictures by two of what a workflow draws."""
    graph = ui_to_api(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")), server.object_info())
    for node in graph.values():
        node["inputs"] |= SHORTENED.get(node["class_type"], {})
    outputs = server.run(graph, timeout=3600)["outputs"]
    kind, count = SHOWN[name]
    shown = [outputs[node]["images"] for node in graph if graph[node]["class_type"] == kind]
    pictures = [p for images in shown for p in squares(server, images[:count])]
    whole = Image.new("RGB", (2 * SIDE, 2 * SIDE))
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i % 2 * SIDE, i // 2 * SIDE))
    return whole


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SHOWN, default=list(SHOWN))
    names = parser.parse_args().only
    base = prepare_base(ROOT / ".cache" / "base", ROOT)
    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), base, ROOT / ".cache" / "thumbnails.log") as server:
        for name in names:
            thumbnail(server, name).save(WORKFLOWS / f"{name}.jpg")


if __name__ == "__main__":
    main()
