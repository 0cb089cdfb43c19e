"""The workflows on TinyFlux that train nothing, and the one that chooses how a concept is erased."""

from scripts import erase_settings
from scripts.graph import Graph
from scripts.workflows.template import Template, node, sampled, sampled_keys
from scripts.workflows.tinyflux import ASK, LOAD, NOTE, SIZE, loaders, question, trainer_inputs

WORD = "star"
METHOD = "Concept Ablation"
# Every field that a settings node shows goes over the method: these two stand there as the method needs them.
OF_METHOD = {"importance_sampling": False, "on_policy_share": 0.0}
CARDS = {
    "tinyflux_erase_now": ("Erase now (tiny)", "TinyFlux: a word erased in seconds, without training."),
    "tinyflux_at_sampling": ("Erase at sampling (tiny)", "TinyFlux: a word erased while sampling, without a LoRA."),
    "tinyflux_method": ("Choose a method (tiny)", "TinyFlux: the method that paints something else instead."),
}


def compared(concept: str, erasing: Graph, key: str) -> Graph:
    """A whole graph: the model as it is, and as the node `key` hands it out, asked for one prompt."""
    return {
        **loaders(),
        **question(f"a photo of a {concept}", 4),
        **erasing,
        **sampled(["model", 0], "before"),
        **sampled([key, 0], "after"),
    }


def groups(title: str, keys: list[str]) -> dict[str, list[str]]:
    """The groups of such a graph, with a title for the erasing nodes."""
    return {**LOAD, title: keys, "3. Before and after": [*ASK, *sampled_keys("before", "after")]}


def erase_now(concept: str) -> Template:
    """Solves the linears that read the text, and saves the result as a LoRA."""
    erasing = {
        "erase": node("EraseAnything_EraseNow", model=["model", 0], clip=["clip", 0], concept=concept),
        "save": node(
            "EraseAnything_SaveEraseLoRA",
            lora=["erase", 1],
            output_name=f"tinyflux_without_{concept}_now",
            concept=concept,
        ),
    }
    note = f"Press Run. *{concept}* is erased in seconds. Erasing is shallower than by *Erase Trainer*."
    found = groups("2. Type a word", ["erase", "save"])
    return Template(compared(concept, erasing, "erase"), found, NOTE + note)


def at_sampling(concept: str) -> Template:
    """Takes the concept off each prediction; nothing is left of it once the node is gone."""
    inputs = {"model": ["model", 0], "clip": ["clip", 0], "concept": concept}
    erasing = {"erase": node("EraseAnything_EraseAtSampling", **inputs)}
    note = "Press Run. Nothing is trained or saved: the word is taken off while the pictures are sampled."
    found = groups("2. Type a word", ["erase"])
    return Template(compared(concept, erasing, "erase"), found, NOTE + note)


def method(concept: str) -> Template:
    """Trains by another method than EraseAnything, with a text for what is painted instead."""
    values = {**SIZE, **OF_METHOD, "neutral": "{ball}", "method": METHOD}
    graph, settings = erase_settings.settings_nodes("erase", values)
    links = {"model": ["model", 0], "clip": ["clip", 0], "vae": ["vae", 0], "settings": settings}
    inputs = trainer_inputs(concept) | {"output_name": f"tinyflux_{concept}_to_ball"}
    erasing = {**graph, "erase": node(erase_settings.TRAINER, **links, **inputs)}
    note = f"""Press Run. After a few minutes every *{concept}* is a ball. The method is in the group `method` of
*Erase Settings*, and what is painted instead is `neutral` in the group `words`. The help page has them all."""
    found = groups("2. Choose the method, type a word", list(erasing))
    return Template(compared(concept, erasing, "erase"), found, NOTE + note)


def templates() -> dict[str, Template]:
    """All three, by file name."""
    return {
        "tinyflux_erase_now": erase_now(WORD),
        "tinyflux_at_sampling": at_sampling(WORD),
        "tinyflux_method": method(WORD),
    }
