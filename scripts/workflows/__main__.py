"""Writes the shipped workflows, their cards and the blueprints: `python -m scripts.workflows OBJECT_INFO`.

OBJECT_INFO is the address of a running server, or a file with its /object_info. The cards with pictures of the other
TinyFlux workflows are drawn by `python -m scripts.workflows.thumbnails`, which runs them.
"""

import json
import sys

from PIL import Image

from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from scripts.graph import api_to_ui, read_object_info
from scripts.workflows import blueprint, cards, concepts, evaluation, flux, other_erasers, tinyflux
from scripts.workflows.template import Template, template_folders

CARDS = {**flux.CARDS, **tinyflux.CARDS, **other_erasers.CARDS, **concepts.CARDS}


def templates() -> dict[str, Template]:
    """Every shipped workflow, by file name."""
    return {
        **flux.templates(),
        **tinyflux.templates(),
        **other_erasers.templates(),
        "tinyflux_evaluate": evaluation.evaluate(tinyflux.DEMO),
        "sample_concepts": concepts.sample_concepts(),
    }


def drawn_cards() -> dict[str, Image.Image]:
    """The cards that need no run of their workflow."""
    drawn = {name: cards.labelled("FLUX.1-dev", *texts) for name, texts in flux.CARDS.items()}
    pictures = {
        "tinyflux_erase": cards.corner_of_demo(row=0),
        "tinyflux_evaluate": cards.corner_of_demo(row=1),
    }
    for name, picture in pictures.items():
        drawn[name] = cards.captioned(picture, *CARDS[name])
    words = cards.written(sample_offline(ConceptRequest(concepts.WORD)).text())
    drawn["sample_concepts"] = cards.with_band(words, *CARDS["sample_concepts"])
    return drawn


def write_blueprints(info: dict) -> None:
    """Writes every blueprint into `blueprint.SUBGRAPHS`."""
    blueprint.SUBGRAPHS.mkdir(exist_ok=True)
    for name, entry in blueprint.blueprints().items():
        text = json.dumps(blueprint.to_file(name, entry, info), indent=2) + "\n"
        (blueprint.SUBGRAPHS / f"{name}.json").write_text(text, encoding="utf-8")


def main(source: str) -> None:
    """Writes the blueprints, and every workflow and every drawn card into each of `template_folders`."""
    info = read_object_info(source)
    write_blueprints(info)
    for folder in template_folders():
        folder.mkdir(exist_ok=True)
        for name, template in templates().items():
            workflow = api_to_ui(template.graph, info, groups=template.groups, note=template.note)
            text = json.dumps(workflow, indent=2) + "\n"
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
        for name, card in drawn_cards().items():
            card.save(folder / f"{name}.jpg")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
