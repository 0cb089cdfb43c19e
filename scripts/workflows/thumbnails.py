"""The cards of workflows, by running them: `python -m scripts.workflows.thumbnails [--only NAME ...]` writes the JPEGs.

It needs COMFYUI_PATH. Erasers are trained for a quarter of the time that the workflows give them, and a dial is
measured on fewer seeds.
"""

import argparse
import io
import json
import os
from pathlib import Path

from PIL import Image

from lab.tinyflux.eraser_cache import QUICK
from scripts.base import prepare_base
from scripts.erase_settings import with_settings
from scripts.graph import ui_to_api
from scripts.server import ComfyServer
from scripts.workflows import other_erasers, tinyflux
from scripts.workflows.cards import captioned
from scripts.workflows.template import ROOT, WORKFLOWS, template_folders

CARDS = {**tinyflux.CARDS, **other_erasers.CARDS}
SIDE = 200  # px of one picture
SHOWN = {  # the nodes whose pictures are shown, and how many of each
    "tinyflux_combine": ("PreviewImage", 2),
    "tinyflux_strength": ("PreviewImage", 1),
    "tinyflux_probe": ("EraseAnything_AttentionMaps", 4),
    "tinyflux_attention_erase": ("PreviewImage", 2),
    "tinyflux_erase_now": ("PreviewImage", 2),
    "tinyflux_at_sampling": ("PreviewImage", 2),
    "tinyflux_method": ("PreviewImage", 2),
}

SHORTENED = {"EraseAnything_EraseStrength": {"images": 4}}


def squares(server: ComfyServer, images: list[dict]) -> list[Image.Image]:
    """The pictures that a node shows; what stands under a square one, a legend, is cut off."""
    pictures = []
    for image in images:
        picture = Image.open(io.BytesIO(server.view(image))).convert("RGB")
        square = picture.crop((0, 0, picture.width, picture.width))
        pictures.append(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return pictures


def thumbnail(server: ComfyServer, name: str) -> Image.Image:
    """Two pictures by two of what a workflow draws."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    graph = with_settings(ui_to_api(workflow, server.object_info()), QUICK)
    for node in graph.values():
        node["inputs"] |= SHORTENED.get(node["class_type"], {})
    outputs = server.run(graph, timeout=3600)["outputs"]
    kind, count = SHOWN[name]
    pictures = []
    for key, node in graph.items():
        if node["class_type"] == kind:
            pictures += squares(server, outputs[key]["images"][:count])
    card = Image.new("RGB", (2 * SIDE, 2 * SIDE))
    for i, picture in enumerate(pictures):
        card.paste(picture, (i % 2 * SIDE, i // 2 * SIDE))
    return card


def main() -> None:
    """Runs the workflows and writes their cards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SHOWN, default=list(SHOWN))
    names = parser.parse_args().only
    base = prepare_base(ROOT / ".cache" / "base", ROOT)
    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), base, ROOT / ".cache" / "thumbnails.log") as server:
        for name in names:
            card = captioned(thumbnail(server, name), *CARDS[name])
            for folder in template_folders():
                card.save(folder / f"{name}.jpg")


if __name__ == "__main__":
    main()
