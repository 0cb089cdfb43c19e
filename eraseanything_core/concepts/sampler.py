"""From a word to its ConceptSet, on this machine alone or with a language model's words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..quoting import quoted
from . import irrelevant, llm, matching, person_names, templates, wordnet
from .answer import Answer, Question
from .concept_set import ConceptSet
from .credentials import CredentialError, find_key, origin
from .inflections import variants
from .relations import ACTS, PLACES

STYLES = {"artistic_style.n.01", "artistic_movement.n.01", "expressive_style.n.01"}
MAX_OTHER_PLACES = 6  # retained prompts with another preposition


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
    retain = retain_prompts(concepts.concept, concepts.category, answer.neighbours, concepts.erased())
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
    category = category_of(concept) if request.category == "auto" else request.category
    chosen = wordnet.senses(concept, category, wordnet.POS.get(request.part_of_speech))[: request.senses]
    is_adjective = bool(chosen) and wordnet.pos_of(chosen[0]) == "a"
    synonyms = other_words(concept, category, chosen, request.synonyms)
    # The plural of a name is nobody's, but it has spellings.
    is_name = is_name_of_person(concept, category, chosen)
    forms = person_names.spellings(concept) if is_name else variants(concept, chosen)
    erased = tuple(dict.fromkeys((concept, *synonyms, *forms)))
    anchors = wordnet.anchors(chosen)
    return ConceptSet(
        concept=concept,
        category=category,
        synonyms=synonyms,
        variants=tuple(form for form in forms if form not in synonyms),
        # The concept is part of the seed: sets of several concepts do not all have the same words.
        irrelevant=irrelevant.irrelevant(chosen, category, erased, request.words, f"{request.seed} {concept}"),
        prompts=templates.sentences(concept.lower() if category == "relation" else concept, category, is_adjective),
        retain=retain_prompts(concept, category, wordnet.neighbours(chosen), erased),
        anchors=anchors,
        neutral=templates.choose_neutral(concept, category, anchors, is_adjective),
        source=f"WordNet {wordnet.database().get_version()}: {describe_sense(concept, category, chosen)}",
    )


def category_of(concept: str) -> str:
    """The category that a concept most likely has."""
    if concept.casefold() in PLACES | ACTS:
        return "relation"
    synsets = wordnet.lookup(concept)
    if wordnet.senses(concept, "person") or (not synsets and person_names.is_name(concept)):
        return "person"
    wider = wordnet.hypernym_path(wordnet.senses(concept, "style")[:1])
    if any(synset.name() in STYLES for synset in wider):
        return "style"
    return "relation" if synsets and all(synset.pos() == "v" for synset in synsets) else "entity"


def is_name_of_person(concept: str, category: str, chosen: list[Any]) -> bool:
    """Whether a concept is the name of a person."""
    if category == "person" or (chosen and wordnet.is_instance(chosen[0])):
        return True
    return category == "style" and not chosen and person_names.is_name(concept)


def other_words(concept: str, category: str, chosen: list[Any], own: Sequence[str]) -> tuple[str, ...]:
    """The user's synonyms, then those of the relation and of WordNet.

    Of a person whom WordNet does not know, the surname is none: it may be somebody else's.
    """
    words = [*own]
    if category == "relation":
        words += PLACES.get(concept.casefold(), ()) + ACTS.get(concept.casefold(), ())
    words += wordnet.synonyms(concept, chosen)
    others = {word.casefold(): word for word in words if word.casefold() != concept.casefold()}
    return tuple(others.values())


def retain_prompts(concept: str, category: str, near: Sequence[str], erased: Sequence[str]) -> tuple[str, ...]:
    """Prompts with the neighbours, and generic ones, that hold nothing of what is erased."""
    kind = templates.kind(concept, category)
    frame = templates.TEMPLATES_BY_KIND[kind][0]
    other_places = list(PLACES)[:MAX_OTHER_PLACES] if kind == "place" else []
    prompts = [frame.replace("{}", word) for word in (*near, *other_places)]
    prompts += templates.GENERIC_PROMPTS
    return tuple(prompt for prompt in prompts if matching.first_occurring(prompt, erased) is None)


def describe_sense(concept: str, category: str, chosen: list[Any]) -> str:
    """What a concept was taken to mean."""
    if chosen:
        return f"{chosen[0].name()}, {chosen[0].definition()}"
    unknown = "it does not know the concept"
    words = person_names.core(concept)
    if len(words) == 1 or not is_name_of_person(concept, category, chosen):
        return unknown
    return f"{unknown}; if nobody else is called {words[-1]}, type that as a synonym"
