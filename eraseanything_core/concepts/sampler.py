"""From a word to its ConceptSet, on this machine alone or with a language model's words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..quoting import quoted
from . import acts, articles, irrelevant, llm, matching, neutrals, noun_phrases, person_names, templates, wordnet
from .answer import Answer, Question
from .concept_set import ConceptSet, held_out_prompts
from .credentials import CredentialError, find_key, origin
from .inflections import variants, verb_forms
from .number_forms import number_forms
from .prompts import fill
from .readings import Reading, is_name_of_person, read
from .relations import ACTS, OTHER_ACTS, OTHER_PLACES, PLACES


@dataclass(frozen=True)
class ConceptRequest:
    """What the user asks for.

    Attributes:
        concept: the word or words to erase.
        category: auto, entity, style, relation or person.
        part_of_speech: auto, noun, verb, adjective or adverb.
        senses: how many senses give synonyms, the most frequent first.
        words: irrelevant words in each tier.
        synonyms: the user's own, before those of WordNet.
        seed: equal seeds draw equal words.
    """

    concept: str
    category: str = "auto"
    part_of_speech: str = "auto"
    senses: int = 1
    words: int = 4
    synonyms: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class WordSource:
    """Who gives the irrelevant words.

    Attributes:
        words_from: offline; llm; or auto, which is llm where the credential has a key.
        provider: a name of `llm.PROVIDERS`.
        base_url: of the server; "" is the provider's.
        model: its name there.
        credential: the name under which the key is stored.
        prompts: whether the model writes the prompts too.
        timeout: seconds.
    """

    words_from: str = "auto"
    provider: str = "OpenAI"
    base_url: str = ""
    model: str = "gpt-4o"
    credential: str = "default"
    prompts: bool = False
    timeout: float = 60

    def server(self) -> llm.Server:
        """Raises CredentialError when no address is given or it is malformed."""
        base_url = self.base_url.strip() or llm.PROVIDERS[self.provider]
        if not base_url:
            raise CredentialError(f"{self.provider} has no common address: type base_url, up to and with /v1")
        origin(base_url)
        return llm.Server(base_url, self.model, self.timeout)


async def sample(request: ConceptRequest, source: WordSource, folder: Path) -> ConceptSet:
    """The ConceptSet of a word; a model is asked only where the source says so.

    Args:
        request: the word.
        source: who gives the irrelevant words.
        folder: of the user, has `credentials.json`; answers are saved in its folder `answers`.

    Raises:
        ValueError: the concept is empty, or the credential or address is unusable; see `credentials`.
        llm.ServerError: the model gave no usable answer.
        MissingPackageError: nltk is not installed, or openai where a model is asked.
    """
    concepts = sample_offline(request)
    if source.words_from == "offline":
        return replace(concepts, source=f"{concepts.source}. Irrelevant words by WordNet; nothing was sent.")
    server = source.server()
    question = Question(concepts.concept, concepts.erased(), request.words, source.prompts)
    # `auto` never fails for want of a key: a shared workflow runs on a machine that has none.
    # A saved answer comes before the key: a graph that once ran does so again without one.
    answer = llm.load_answer(question, server, folder / "answers")
    if answer:
        return with_answer(concepts, answer, f"{server.model}, as it answered before; nothing was sent")
    key = find_key(source.credential, server.base_url, folder)
    if key is None and source.words_from == "auto":
        why = f"as the credential {quoted(source.credential)} has no key; nothing was sent"
        return replace(concepts, source=f"{concepts.source}. Irrelevant words by WordNet, {why}.")
    if key is None and source.provider in llm.NEED_A_KEY:
        raise CredentialError(
            f"the credential {quoted(source.credential)} has no key: set ERASE_LLM_API_KEY, or see the help page"
        )
    answer = await llm.ask(question, server, key, folder / "answers")
    return with_answer(concepts, answer, f"{server.model} at {origin(server.base_url)}")


def with_answer(concepts: ConceptSet, answer: Answer, source: str) -> ConceptSet:
    """The set with a model's words in the place of WordNet's."""
    changed = replace(
        concepts, irrelevant=answer.irrelevant, source=f"{concepts.source}. Irrelevant words by {source}."
    )
    if not answer.prompts:
        return changed
    reading = read(concepts.concept, concepts.category)
    retain = retain_prompts(reading, answer.neighbours, concepts.erased())
    return replace(changed, prompts=answer.prompts, retain=retain, neutral=answer.neutral)


def sample_offline(request: ConceptRequest) -> ConceptSet:
    """The ConceptSet by WordNet alone; equal requests give equal sets.

    Raises:
        ValueError: the concept is empty or holds a brace.
        MissingPackageError: nltk is not installed.
    """
    concept = " ".join(request.concept.split())
    if not concept:
        raise ValueError(matching.EMPTY)
    if set("{}") & set(concept):
        raise ValueError("the concept holds { or }, which stand for its place in a prompt: type it without")
    reading = read(concept, request.category, request.part_of_speech)
    words = known_side(reading, request)
    drawn = irrelevant.irrelevant(
        reading.kin(),
        words.category,
        words.erased(),
        request.words,
        # The concept is part of the seed: sets of several concepts do not all have the same words.
        f"{request.seed} {words.concept}",
    )
    return replace(words, irrelevant=drawn)


def known_side(reading: Reading, request: ConceptRequest) -> ConceptSet:
    """The ConceptSet without irrelevant words, which take most of the time."""
    chosen = reading.senses[: request.senses]
    synonyms = other_words(reading, chosen, request.synonyms)
    forms = other_forms(reading, chosen)
    erased = tuple(dict.fromkeys((reading.concept, *synonyms, *forms)))
    near = nearest_words(reading)
    return ConceptSet(
        concept=reading.concept,
        category=reading.category,
        synonyms=synonyms,
        variants=tuple(form for form in forms if form not in synonyms),
        prompts=templates.sentences(lowered(reading), reading.kind, reading.named()),
        retain=retain_prompts(reading, near, erased),
        anchors=wider_words(reading, chosen),
        neutral=choose_neutral(reading),
        source=f"WordNet {wordnet.database().get_version()}: {describe_sense(reading)}",
    )


def lowered(reading: Reading) -> str:
    """The concept as it stands inside a sentence: verbs and prepositions are no names."""
    return reading.concept.lower() if reading.category == "relation" else reading.concept


def choose_neutral(reading: Reading) -> str:
    """What shall be painted instead; the table of known words comes first."""
    if reading.known and reading.known.neutral:
        return reading.known.neutral
    return neutrals.choose(reading.concept, reading.kind, reading.number, reading.senses, reading.noun())


def wider_words(reading: Reading, chosen: list[Any]) -> tuple[str, ...]:
    """Words that could stand in the concept's place: wider ones, or the noun that a phrase is about."""
    noun = reading.noun()
    return (noun,) if noun else wordnet.anchors(chosen)


def nearest_words(reading: Reading) -> tuple[str, ...]:
    """The neighbours of a concept: those of WordNet, or common ones where it has none that serve."""
    # The neighbours of `hair` are parts of the body that everybody has.
    if reading.kind == "part" and not reading.senses:
        return ()
    if reading.kind == "relation":
        return OTHER_ACTS
    near = wordnet.neighbours(reading.kin())
    if reading.kind in ("act", "act of two"):
        # A verb that ends in a preposition lacks what it is done to: `cling to`.
        near = tuple(word for word in near if word.split()[-1] not in articles.PREPOSITIONS)
    if reading.category == "style" and (reading.known or not near):
        return templates.OTHER_STYLES
    return near


def other_forms(reading: Reading, chosen: list[Any]) -> tuple[str, ...]:
    """Inflections and spellings of a concept."""
    if reading.known and reading.known.variants is not None:
        return reading.known.variants
    # The plural of a name is nobody's, but it has spellings.
    if is_name_of_person(reading):
        return person_names.spellings(reading.concept)
    if reading.kind in ("act", "act of two", "posture"):
        return acts.other_forms(reading.concept)
    if chosen:
        return variants(reading.concept, chosen)
    ends_in_noun = articles.head(reading.concept) == reading.concept.split()[-1]
    is_counted = reading.number == "many" or (reading.number == "one" and ends_in_noun)
    return number_forms(reading.concept) if is_counted and reading.concept.islower() else ()


def other_words(reading: Reading, chosen: list[Any], own: Sequence[str]) -> tuple[str, ...]:
    """The user's synonyms, then those of the table, of the relation and of WordNet.

    Of a person whom WordNet does not know, the surname is none: it may be somebody else's.
    """
    concept = reading.concept
    words = [*own]
    if reading.known and reading.known.synonyms is not None:
        words += reading.known.synonyms
    else:
        if reading.category == "relation":
            words += PLACES.get(concept.casefold(), ()) + ACTS.get(concept.casefold(), ())
        found = wordnet.synonyms(concept, chosen)
        words += acts.gerunds(found) if reading.kind in ("act", "act of two") else found
    others = {word.casefold(): word for word in words if word.casefold() != concept.casefold()}
    return tuple(others.values())


def retain_prompts(reading: Reading, near: Sequence[str], erased: Sequence[str]) -> tuple[str, ...]:
    """Prompts with the neighbours, and generic ones, that hold nothing of what is erased."""
    # Each stands in two sentences: a relation is easily taken for another one between the same two things.
    other_places = 2 * OTHER_PLACES if reading.kind in ("place", "posture") else ()
    prompts = [with_neighbour(reading, word, number) for number, word in enumerate((*near, *other_places))]
    prompts += templates.GENERIC_PROMPTS
    return tuple(prompt for prompt in prompts if matching.first_occurring(prompt, erased) is None)


def with_neighbour(reading: Reading, word: str, number: int = 0) -> str:
    """A sentence of the concept's kind, with a neighbour in its place; `number` takes turns with the sentences."""
    # What is beside an adjective may be a thing: a swimsuit for `nude`.
    kind = "entity" if reading.kind.startswith("adjective") else reading.kind
    frames = templates.TEMPLATES_BY_KIND[kind]
    # The last ones are those that nothing is trained on.
    frame = frames[number % (len(frames) - held_out_prompts(len(frames)))]
    if reading.kind in ("act", "act of two"):
        return frame.replace("{}", verb_forms(word)[1])
    named = noun_phrases.named(word, noun_phrases.number_of(word, []))
    return fill(frame.replace("{a}", named), word)


def describe_sense(reading: Reading) -> str:
    """What a concept was taken to mean."""
    if reading.senses:
        return f"{reading.senses[0].name()}, {reading.senses[0].definition()}"
    if reading.known and not is_name_of_person(reading):
        return "it does not know the concept as it is meant here; its words are the pack's own"
    unknown = "it does not know the concept"
    words = person_names.core(reading.concept)
    if len(words) == 1 or not is_name_of_person(reading):
        return unknown
    return f"{unknown}; if nobody else is called {words[-1]}, type that as a synonym"
