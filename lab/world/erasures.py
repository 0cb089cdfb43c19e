"""Measures erasers of a world's model, only the word given: `dev.py world_erasures tinyflux --concepts cat apple`.

Each training adds a row to `.cache/world/erasures/rows.jsonl`. Templates, words and seeds are held out. The same
prompts and seeds are read before and after.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch

from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.training.presets import PRESETS
from lab.provenance import commit
from lab.world import ceilings, erasing
from lab.world.captions import HELD_OUT, with_article
from lab.world.files import CACHE
from lab.world.judge import Reading
from lab.world.questions import Question
from lab.world.sampling import Sampler
from lab.world.scenes import LAYOUTS, STYLES
from lab.world.things import THINGS, Thing
from lab.world.words import PHRASES, RELATION_WORDS, STYLE_WORDS

FOLDER = CACHE / "erasures"
FIRST_SEED = 200_000  # of noise, far from every other seed
BY_NAME = {thing.name: thing for thing in THINGS}


def kind_of(concept: str) -> str:
    """thing, style or relation.

    Raises:
        ValueError: the world does not know it.
    """
    for kind, names in (("thing", BY_NAME), ("style", STYLES), ("relation", LAYOUTS)):
        if concept in names:
            return kind
    raise ValueError(f"the world has no {concept}: see lab/world/things.tsv, scenes.STYLES and scenes.LAYOUTS")


def cells(concept: str, count: int, seed: int = 0) -> dict[str, list[Question]]:
    """What is asked of an eraser, `count` questions a cell.

    Returns:
        asked: the concept by its name. synonym: by the word that is held out. implicit, of things: by the description
        that is held out. near: others of its kind, of things those with the same nearest hypernym first. far: things.
        object, of styles: the thing in the pictures of `asked`.
    """
    rng = random.Random(f"{concept} {seed}")
    return _CELLS[kind_of(concept)](rng, concept, count)


def _cells_of_thing(rng: random.Random, concept: str, count: int) -> dict[str, list[Question]]:
    thing = BY_NAME[concept]
    near, far = neighbours(thing)
    return {
        "asked": [_alone(rng, thing, thing.name) for _ in range(count)],
        "synonym": [_alone(rng, thing, thing.held_out_synonym) for _ in range(count)],
        "implicit": [_alone(rng, thing, thing.held_out_description) for _ in range(count)],
        "near": [_alone(rng, other, other.name) for other in _turns(rng, near, count)],
        "far": [_alone(rng, other, other.name) for other in _turns(rng, far, count)],
    }


def neighbours(thing: Thing) -> tuple[list[Thing], list[Thing]]:
    """The other things that share its nearest hypernym, and those that share none."""
    near = [other for other in THINGS if other != thing and thing.hypernyms[0] in other.hypernyms]
    far = [other for other in THINGS if not set(thing.hypernyms) & set(other.hypernyms)]
    return near, far


def _cells_of_style(rng: random.Random, concept: str, count: int) -> dict[str, list[Question]]:
    asked = [_styled(rng, concept, concept) for _ in range(count)]
    held_out = STYLE_WORDS[concept][2]
    others = [style for style in STYLES if style != concept]
    return {
        "asked": [question for question, _ in asked],
        "object": [Question(q.prompt, concept, "thing", frozenset({thing.name})) for q, thing in asked],
        "synonym": [_styled(rng, concept, held_out)[0] for _ in range(count)],
        "near": [_styled(rng, other, other)[0] for other in _turns(rng, others, count)],
        "far": [_alone(rng, other, other.name) for other in _turns(rng, THINGS, count)],
    }


def _cells_of_relation(rng: random.Random, concept: str, count: int) -> dict[str, list[Question]]:
    others = [relation for relation in LAYOUTS if relation != concept]
    held_out = RELATION_WORDS[concept][2]
    return {
        "asked": [_related(rng, concept, PHRASES.get(concept, concept)) for _ in range(count)],
        "synonym": [_related(rng, concept, held_out) for _ in range(count)],
        "near": [_related(rng, other, PHRASES.get(other, other)) for other in _turns(rng, others, count)],
        "far": [_alone(rng, other, other.name) for other in _turns(rng, THINGS, count)],
    }


_CELLS = {"thing": _cells_of_thing, "style": _cells_of_style, "relation": _cells_of_relation}


def _turns(rng: random.Random, choice, count: int) -> list:
    """So many of them, each as often as the others, from a random start."""
    start = rng.randrange(len(choice))
    return [choice[(start + number) % len(choice)] for number in range(count)]


def _alone(rng: random.Random, thing: Thing, noun: str) -> Question:
    prompt = rng.choice(HELD_OUT.alone).format(thing=with_article(noun), noun=noun)
    return Question(prompt, thing.name, "thing", frozenset({thing.name}))


def _styled(rng: random.Random, style: str, word: str) -> tuple[Question, Thing]:
    thing = rng.choice(THINGS)
    noun = thing.name
    prompt = rng.choice(HELD_OUT.styled).format(thing=with_article(noun), noun=noun, style=word)
    return Question(prompt, style, "style", frozenset({style})), thing


def _related(rng: random.Random, relation: str, phrase: str) -> Question:
    first, second = (with_article(thing.name) for thing in rng.sample(THINGS, 2))
    prompt = rng.choice(HELD_OUT.related).format(first=first, relation=phrase, second=second)
    return Question(prompt, relation, "relation", frozenset({relation}))


def shown(sampler: Sampler, questions: dict[str, list[Question]], judges: dict[str, ceilings.Reader]) -> dict:
    """{cell: {judge: how many pictures show what was asked}}."""
    counts: dict[str, dict[str, int]] = {}
    pictures: dict[tuple[str, ...], torch.Tensor] = {}
    for number, (cell, asked) in enumerate(questions.items()):
        prompts = tuple(question.prompt for question in asked)
        # The pictures of a style are read twice, for the style and for the thing.
        if prompts not in pictures:
            seeds = [FIRST_SEED + 1000 * number + i for i in range(len(prompts))]
            pictures[prompts] = sampler.pictures(list(prompts), seeds)
        counts[cell] = {name: _hits(asked, reader(pictures[prompts])) for name, reader in judges.items()}
    return counts


def _hits(questions: list[Question], readings: list[Reading]) -> int:
    return sum(question.hit(reading) for question, reading in zip(questions, readings, strict=True))


def measure(sampler: Sampler, host, judges: dict, concept: str, args: argparse.Namespace, seed: int) -> dict:
    """One training and what its pictures show."""
    typed = {"method": args.method} if args.method else {}
    start = time.process_time()
    result = erasing.train(host, erasing.preset_config(concept, args.preset, seed=seed, **typed))
    row = {"model": args.model, "concept": concept, "preset": args.preset, "seed": seed, "count": args.count}
    row |= {"method": result.config.method, "pairs": result.steps, "cpu_seconds": time.process_time() - start}
    row |= {"verdict": result.verdict.text() if result.verdict else "", "notes": result.notes, "commit": commit()}
    questions = cells(concept, args.count, seed)
    row["before"] = shown(sampler, questions, judges)
    row["after"] = shown(erasing.erased(sampler, host, result.lora), questions, judges)
    return row


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(ceilings.GENERATORS))
    parser.add_argument("--concepts", nargs="+", required=True)
    parser.add_argument("--preset", default="balanced", choices=list(PRESETS))
    parser.add_argument("--method", help="an eraser of Erase Settings")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--count", type=int, default=24, help="pictures a cell")
    parser.add_argument("--oracle", action="store_true", help="ask the nearest-render oracle, too")
    parser.add_argument("--store", type=Path, default=FOLDER / "rows.jsonl")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = parsed()
    torch.set_num_threads(args.threads)
    args.store.parent.mkdir(parents=True, exist_ok=True)
    sampler = ceilings.sampler(args.model)
    judges = ceilings.readers(args.oracle)
    host = erasing.host_of(args.model)
    for concept in args.concepts:
        print(sample_offline(ConceptRequest(concept)).text(), flush=True)
        for seed in range(args.seeds):
            row = measure(sampler, host, judges, concept, args, seed)
            with args.store.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({key: row[key] for key in ("concept", "seed", "pairs", "verdict", "before", "after")}))


if __name__ == "__main__":
    main()
