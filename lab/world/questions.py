"""Prompts of measurements with what their pictures have to show: held-out templates, one kind of prompt at a time."""

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from lab.world.captions import DISTORTIONS, HELD_OUT, distort, with_article
from lab.world.judge import Reading
from lab.world.scenes import LAYOUTS, STYLES
from lab.world.things import THINGS, Thing
from lab.world.words import PHRASES


@dataclass(frozen=True)
class Question:
    """A prompt and the answers that are right.

    Attributes:
        concept: what is measured: a thing, a style, a relation or a hypernym.
        head: of the judges that answers: "thing", "style" or "relation".
        right: answers that count.
    """

    prompt: str
    concept: str
    head: str
    right: frozenset[str]

    def hit(self, reading: Reading) -> bool:
        """Whether a reading is right; of things, the most probable one counts."""
        answer = reading.things[0] if self.head == "thing" else getattr(reading, self.head)
        return answer in self.right


def _alone(rng: random.Random, noun: str) -> str:
    return rng.choice(HELD_OUT.alone).format(thing=with_article(noun), noun=noun)


def _of_thing(rng: random.Random, thing: Thing, noun: str) -> Question:
    return Question(_alone(rng, noun), thing.name, "thing", frozenset({thing.name}))


def things(rng: random.Random, number: int) -> Question:
    """A thing by its name."""
    thing = THINGS[number % len(THINGS)]
    return _of_thing(rng, thing, thing.name)


def synonyms(rng: random.Random, number: int) -> Question:
    """A thing by one of its three other words."""
    thing = THINGS[number % len(THINGS)]
    return _of_thing(rng, thing, rng.choice((*thing.synonyms, thing.held_out_synonym)))


def implicit(rng: random.Random, number: int) -> Question:
    """A thing by a description that does not name it."""
    thing = THINGS[number % len(THINGS)]
    return _of_thing(rng, thing, rng.choice((*thing.descriptions, thing.held_out_description)))


def distorted(rng: random.Random, number: int) -> Question:
    """A thing by its name, misspelt, with affixes, repeated or with all words shuffled."""
    question = things(rng, number)
    kinds = (*DISTORTIONS, "shuffled")
    prompt = distort(rng, question.prompt, kinds[rng.randrange(len(kinds))])
    return Question(prompt, question.concept, question.head, question.right)


def _members() -> dict[str, frozenset[str]]:
    members = defaultdict(set)
    for thing in THINGS:
        for hypernym in thing.hypernyms:
            members[hypernym].add(thing.name)
    return {hypernym: frozenset(names) for hypernym, names in members.items()}


MEMBERS = _members()  # things by what they are a kind of
ASKED = tuple(hypernym for hypernym, names in MEMBERS.items() if len(names) >= 3)


def hypernyms(rng: random.Random, number: int) -> Question:
    """Any thing of a kind."""
    hypernym = ASKED[number % len(ASKED)]
    return Question(_alone(rng, hypernym), hypernym, "thing", MEMBERS[hypernym])


def styles(rng: random.Random, number: int) -> Question:
    """A thing in a style, which is what counts."""
    style = STYLES[number % len(STYLES)]
    noun = rng.choice(THINGS).name
    prompt = rng.choice(HELD_OUT.styled).format(thing=with_article(noun), noun=noun, style=style)
    return Question(prompt, style, "style", frozenset({style}))


def relations(rng: random.Random, number: int) -> Question:
    """Two things in a relation, which is what counts."""
    relation = list(LAYOUTS)[number % len(LAYOUTS)]
    first, second = (with_article(thing.name) for thing in rng.sample(THINGS, 2))
    phrase = PHRASES.get(relation, relation)
    prompt = rng.choice(HELD_OUT.related).format(first=first, relation=phrase, second=second)
    return Question(prompt, relation, "relation", frozenset({relation}))


CELLS: dict[str, Callable[[random.Random, int], Question]] = {
    "things": things,
    "styles": styles,
    "relations": relations,
    "synonyms": synonyms,
    "hypernyms": hypernyms,
    "implicit": implicit,
    "distorted": distorted,
}


def ask(cell: str, count: int, seed: int) -> list[Question]:
    """So many questions of a cell; concepts take turns."""
    rng = random.Random(f"{cell} {seed}")
    # From another concept with each seed, so that a short measurement is not always of the first ones.
    start = rng.randrange(1000)
    return [CELLS[cell](rng, start + number) for number in range(count)]
