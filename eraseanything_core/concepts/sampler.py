"""From a word to its ConceptSet, on this machine alone or with a language model's words."""

from dataclasses import dataclass, replace
from pathlib import Path

from . import irrelevant, llm, matching, person_names, templates, wordnet
from .answer import Answer, Question
from .concept_set import ConceptSet
from .credentials import CredentialError, find_key, origin
from .inflections import variants
from .relations import ACTS, PLACES

STYLES = {"artistic_style.n.01", "artistic_movement.n.01", "expressive_style.n.01"}


@dataclass(frozen=True)
class Request:
    """What the user asks for."""

    concept: str
    category: str = "auto"  # or entity, style, relation, person
    part_of_speech: str = "auto"  # or noun, verb, adjective, adverb
    senses: int = 1  # how many senses give synonyms, the most frequent first
    words: int = 4  # irrelevant words in each tier
    synonyms: tuple[str, ...] = ()  # the user's own, before those of WordNet
    seed: int = 0


@dataclass(frozen=True)
class Service:
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


async def sample(request: Request, service: Service, folder: Path) -> ConceptSet:
    """The ConceptSet of a word; a model is asked only where the service says so.

    Args:
        request: the word.
        service: who gives the irrelevant words.
        folder: of the user, has `credentials.json` and keeps answers in `answers`.

    Raises:
        ValueError: the concept is empty, or the credential or address is unusable; see `credentials`.
        llm.ServerError: the model gave no usable answer.
    """
    found = offline(request)
    if service.words_from == "offline":
        return replace(found, source=f"{found.source}. Irrelevant words by WordNet; nothing was sent.")
    server = service.server()
    question = Question(found.concept, found.erased(), request.words, service.prompts)
    if answer := llm.recall(question, server, folder / "answers"):
        return answered(found, answer, f"{server.model}, as it answered before; nothing was sent")
    key = find_key(service.credential, server.base_url, folder)
    if key is None and service.words_from == "auto":
        why = f"as the credential {service.credential!r} has no key; nothing was sent"
        return replace(found, source=f"{found.source}. Irrelevant words by WordNet, {why}.")
    if key is None and service.provider in llm.KEYED:
        raise CredentialError(
            f"the credential {service.credential!r} has no key: set ERASE_LLM_API_KEY, or see the help"
        )
    answer = await llm.ask(question, server, key, folder / "answers")
    return answered(found, answer, f"{server.model} at {origin(server.base_url)}")


def answered(found: ConceptSet, answer: Answer, source: str) -> ConceptSet:
    """The set with a model's words in the place of WordNet's."""
    decided = {"irrelevant": answer.irrelevant, "source": f"{found.source}. Irrelevant words by {source}."}
    if answer.prompts:
        near = kept_prompts(found.concept, found.category, answer.neighbours, found.erased())
        decided |= {"prompts": answer.prompts, "retain": near, "neutral": answer.neutral}
    return replace(found, **decided)


def offline(request: Request) -> ConceptSet:
    """The ConceptSet by WordNet alone; equal requests give equal sets.

    Raises:
        ValueError: the concept is empty or holds a brace.
    """
    concept = " ".join(request.concept.split())
    if not concept:
        raise ValueError("the concept is empty: type the word to erase")
    if set("{}") & set(concept):
        raise ValueError("the concept holds { or }, which stand for its place in a prompt: type it without")
    category = category_of(concept) if request.category == "auto" else request.category
    chosen = wordnet.senses(concept, category, wordnet.POS.get(request.part_of_speech))[: request.senses]
    adjective = bool(chosen) and chosen[0].pos() in "as"
    synonyms = other_words(concept, category, chosen, request.synonyms)
    forms = person_names.spellings(concept) if named(concept, category, chosen) else variants(concept, chosen)
    erased = tuple(dict.fromkeys((concept, *synonyms, *forms)))
    anchors = wordnet.anchors(chosen)
    return ConceptSet(
        concept=concept,
        category=category,
        synonyms=synonyms,
        variants=tuple(form for form in forms if form not in synonyms),
        irrelevant=irrelevant.irrelevant(chosen, category, erased, request.words, f"{request.seed} {concept}"),
        prompts=templates.sentences(concept.lower() if category == "relation" else concept, category, adjective),
        retain=kept_prompts(concept, category, wordnet.neighbours(chosen), erased),
        anchors=anchors,
        neutral=templates.neutral(concept, category, anchors, adjective),
        source=f"WordNet {wordnet.database().get_version()}: {sense_text(concept, category, chosen)}",
    )


def category_of(concept: str) -> str:
    """The category that a concept most likely has."""
    if concept.casefold() in PLACES | ACTS:
        return "relation"
    found = wordnet.lookup(concept)
    if wordnet.senses(concept, "person") or (not found and person_names.is_name(concept)):
        return "person"
    if any(style.name() in STYLES for style in wordnet.chain(wordnet.senses(concept, "style")[:1])):
        return "style"
    return "relation" if found and all(synset.pos() == "v" for synset in found) else "entity"


def named(concept: str, category: str, chosen: list) -> bool:
    """Whether a concept is the name of a person."""
    known = bool(chosen) and bool(chosen[0].instance_hypernyms())
    return category == "person" or known or (category == "style" and not chosen and person_names.is_name(concept))


def other_words(concept: str, category: str, chosen: list, own: tuple[str, ...]) -> tuple[str, ...]:
    """The user's synonyms, then those of the relation and of WordNet.

    Of a person whom WordNet does not know, the surname is none: it may be somebody else's.
    """
    found = [*own]
    if category == "relation":
        found += PLACES.get(concept.casefold(), ()) + ACTS.get(concept.casefold(), ())
    found += wordnet.synonyms(concept, chosen)
    return tuple({word.casefold(): word for word in found if word.casefold() != concept.casefold()}.values())


def kept_prompts(concept: str, category: str, near: tuple[str, ...], erased: tuple[str, ...]) -> tuple[str, ...]:
    """Prompts with the neighbours, and generic ones, that hold nothing of what is erased."""
    frame = templates.TEMPLATES[templates.kind(concept, category)][0]
    others = [place for place in PLACES if templates.kind(concept, category) == "place"]
    prompts = [frame.replace("{}", word) for word in (*near, *others[:6])] + list(templates.GENERIC)
    return tuple(prompt for prompt in prompts if not any(matching.occurs(prompt, word) for word in erased))


def sense_text(concept: str, category: str, chosen: list) -> str:
    """What a concept was taken to mean."""
    if chosen:
        return f"{chosen[0].name()}, {chosen[0].definition()}"
    unknown, words = "it does not know the concept", person_names.core(concept)
    if len(words) == 1 or not named(concept, category, chosen):
        return unknown
    return f"{unknown}; if nobody else is called {words[-1]}, type that as a synonym"
