"""What an eraser of TinyFlux is trained on, and what it is measured on: never the same templates or synonyms."""

import random
from dataclasses import dataclass

from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.tinyflux import GUIDANCE, STEPS
from eraseanything_core.tinyflux.concepts import CONCEPTS, SYNONYMS, kind_of
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.presets import run_config
from lab.tinyflux.captions import VOCABULARY, caption
from lab.tinyflux.prompts import prompt_with
from lab.tinyflux.scenes import draw_scene

TEMPLATES = {
    "entity": (
        "a photo of a {}",
        "a red {}",
        "a green {} on a white background",
        "an image of a blue {}",
        "one yellow {}",
        "a purple {} on a grey background",
        "an orange {} on a mint background",
        "{} on a pink background",
    ),
    "style": (
        "a {} ball",
        "a photo of a {} red box",
        "a {} blue star on a white background",
        "green heart, {}",
        "a yellow moon in {} style",
        "a {} picture of a purple cross",
        "an image of a {} orange ring",
        "a {} house on a grey background",
        "a {} tree",
        "a {} fish",
    ),
    "relation": (
        "a ball {} a box",
        "a red star {} a green heart",
        "a photo of a blue moon {} an orange cross",
        "a ring {} a house on a white background",
        "an image of one tree {} one fish",
        "a yellow box {} a purple star",
        "cross {} ball",
        "a fish {} a ring on a grey background",
    ),
}
NEUTRAL = {"entity": "{thing}", "style": "{}", "relation": "{}"}  # another thing; the same sentence without the word
VALIDATION = ("star", "cross", "dotted", "shaded", "above", "beside")  # settings were chosen on these
TEST = ("fish", "house", "outlined", "glowing", "inside")  # and never on these


def kept_prompts(concept: str, count: int, seed: int) -> tuple[str, ...]:
    """Captions of the world in which none of the concept's names stands."""
    rng = random.Random(seed)
    kept = []
    while len(kept) < count:
        text = caption(rng, draw_scene(rng), synonyms=0.2)
        if not {VOCABULARY.get(word.strip(",")) for word in text.split(" ")} & {concept}:
            kept.append(text)
    return tuple(kept)


def erase_config(concept: str, **settings) -> EraseConfig:
    """The configuration that erases a concept of the world, as the search chose it; `settings` go over it."""
    kind = kind_of(concept)
    world = {
        "concept": concept,
        "synonyms": SYNONYMS[concept][:2],
        "templates": TEMPLATES[kind],
        "irrelevant": tuple(c for c in CONCEPTS[kind] if c != concept),
        "retain": kept_prompts(concept, 96, seed=1),
        "width": 96,
        "height": 96,
        "sampling_steps": STEPS,
        "neutral": NEUTRAL[kind],
        "guidance": GUIDANCE,
        "eta": 0.5,
        "rsc_weight": 0.02,
        "targets": "text_kv",
        "cached_trajectories": 16,
        "refresh_every": 20,
        "on_policy_share": 0.75,
        "steps": 120,
        "batch_size": 8,
        "retain_batch_size": 16,
        "lr_low": 3e-3,
        "lr_up": 3e-3,
    }
    return EraseConfig(**world | settings)


def preset_config(concept: str, preset: str, **settings) -> EraseConfig:
    """The configuration of the node when the word alone is typed: all other words are Concept Sampler's.

    TinyFlux draws 96 px, so the size is set beside the preset; `settings` go over it.
    """
    words = sample_offline(ConceptRequest(concept)).settings()
    return run_config(words, preset, {"width": 96, "height": 96, **settings})


@dataclass(frozen=True)
class Cell:
    """Prompts of one question, with the concept that each must show and the seed that it is drawn with."""

    kinds: list[str]
    concepts: list[str]
    prompts: list[str]
    seeds: list[int]


def cells(concept: str, count: int, seed: int = 0) -> dict[str, Cell]:
    """The cells of a report, `count` prompts each, in held-out templates.

    acc_e: the concept by its name. acc_g: by its held-out synonym. acc_ir: the others of its kind, as in the paper.
    unrelated: concepts of the other kinds. No prompt but those of acc_e and acc_g names the concept.
    """
    rng = random.Random(f"{concept} {seed}")
    kind = kind_of(concept)
    near = [c for c in CONCEPTS[kind] if c != concept]
    far = [c for other, concepts_of_kind in CONCEPTS.items() if other != kind for c in concepts_of_kind]
    choices = {"acc_e": [concept], "acc_g": [concept], "acc_ir": near, "unrelated": far}
    by_name = {}
    for number, (name, choice) in enumerate(choices.items()):
        concepts = [choice[i % len(choice)] for i in range(count)]
        word = SYNONYMS[concept][2] if name == "acc_g" else None
        prompts = [_prompt(rng, c, word, concept if name in ("acc_ir", "unrelated") else None) for c in concepts]
        by_name[name] = Cell(
            [kind_of(c) for c in concepts], concepts, prompts, [100_000 * number + i for i in range(count)]
        )
    return by_name


def _prompt(rng: random.Random, concept: str, word: str | None, without: str | None) -> str:
    while True:
        text = prompt_with(rng, concept, word)
        if without is None or without not in [w.strip(",") for w in text.split(" ")]:
            return text
