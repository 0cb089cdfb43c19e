"""The whole way from a word to its set: who is asked, and what is said about it."""

import asyncio
import time

import pytest

from eraseanything_core.concepts.concept_set import TIERS
from eraseanything_core.concepts.credentials import CredentialError
from eraseanything_core.concepts.llm import ServerError
from eraseanything_core.concepts.sampler import ConceptRequest, WordSource, sample, sample_offline
from eraseanything_core.concepts.vocabulary import ABSTRACT_NOUNS, ABSTRACT_VERBS, PHYSICAL_NOUNS, PHYSICAL_VERBS
from scripts.chat_server import ChatServer, fails, says

GOOD = {
    "no_relation": [["cloud", 0.1], ["carpet", 0.1]],
    "far": [["hot", 0.3], ["wet", 0.3]],
    "mid": [["image", 0.5], ["figure", 0.6]],
}
MORE = {"prompts": ["a nude girl by a lake"], "neighbours": ["swimsuit"], "neutral": "a fully dressed person"}
REQUEST = ConceptRequest("nude", words=2)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("ERASE_LLM_API_KEY", raising=False)


def run(service, folder, request=REQUEST):
    return asyncio.run(sample(request, service, folder))


def test_auto_without_a_key_stays_on_this_machine_and_says_so(tmp_path):
    with ChatServer(fails(500)) as server:
        found = run(WordSource("auto", "other", server.url), tmp_path)
    assert found.irrelevant == sample_offline(REQUEST).irrelevant and not server.requests
    assert found.source.endswith("by WordNet, as the credential 'default' has no key; nothing was sent.")


def test_offline_sends_nothing_though_there_is_a_key(tmp_path, monkeypatch):
    with ChatServer(says(GOOD)) as server:
        monkeypatch.setenv("ERASE_LLM_API_KEY", "key")
        monkeypatch.setenv("ERASE_LLM_BASE_URL", server.url)
        found = run(WordSource("offline", "other", server.url), tmp_path)
        assert not server.requests and found.source.endswith("nothing was sent.")
        found = run(WordSource("auto", "other", server.url), tmp_path)
    assert len(server.requests) == 1 and found.tiers() == (("cloud", "carpet"), ("hot", "wet"), ("image", "figure"))
    assert found.source.endswith(f"by gpt-4o at {server.url[:-3]}.")


def test_a_server_without_keys_is_asked_and_its_answer_lasts(tmp_path):
    with ChatServer(says(GOOD), fails(500)) as server:
        service = WordSource("llm", "Ollama", server.url, model="m")
        first = run(service, tmp_path)
    again = run(service, tmp_path)
    assert len(server.requests) == 1 and again.irrelevant == first.irrelevant
    assert "as it answered before; nothing was sent" in again.source
    with pytest.raises(ServerError):
        run(service, tmp_path, ConceptRequest("dog", words=2))


def test_the_model_writes_the_prompts_where_it_is_asked_to(tmp_path):
    with ChatServer(says(GOOD | MORE)) as server:
        found = run(WordSource("llm", "vLLM", server.url, prompts=True), tmp_path).check()
    assert found.prompts == ("a nude girl by a lake",) and found.neutral == "a fully dressed person"
    assert found.retain[0] == "a photo of a swimsuit"


@pytest.mark.parametrize(
    "service, reason",
    [
        (WordSource("llm"), "'default' has no key: set ERASE_LLM_API_KEY"),
        (WordSource("llm", "Azure"), "Azure has no common address: type base_url"),
        (WordSource("llm", "other", "localhost"), "must be an address such as"),
    ],
)
def test_what_is_missing_is_said(service, reason, tmp_path):
    with pytest.raises(CredentialError, match=reason):
        run(service, tmp_path)


@pytest.mark.parametrize(
    "concept, reason", [("  ", "is empty"), ("\u200b", "is empty"), ("a {} cat", "holds { or }"), ("{", "holds { or }")]
)
def test_a_concept_that_cannot_be_is_refused(concept, reason):
    with pytest.raises(ValueError, match=reason):
        sample_offline(ConceptRequest(concept)).check()


@pytest.mark.parametrize(
    "concept, physical", [("dog", PHYSICAL_NOUNS), ("Zac Efron", PHYSICAL_NOUNS), ("embraced", PHYSICAL_VERBS)]
)
@pytest.mark.parametrize("count", [1, 4, 5])
def test_offline_words_are_physical_and_abstract_in_equal_parts_and_scored_by_tier(concept, physical, count):
    found = sample_offline(ConceptRequest(concept, words=count)).irrelevant
    words = [word for tier in TIERS for word in found[tier]]
    seen = sum(word.word in physical for word in words)
    assert all(len(found[tier]) == count for tier in TIERS) and abs(2 * seen - len(words)) <= 1
    abstract = ABSTRACT_NOUNS if physical is PHYSICAL_NOUNS else ABSTRACT_VERBS
    assert all(word.word in physical or word.word in abstract for word in words)
    assert max(w.score for w in found["no_relation"]) <= 0.25 <= min(w.score for w in found["far"])
    assert max(w.score for w in found["far"]) <= 0.45 <= min(w.score for w in found["mid"])


def test_near_words_are_nearer():
    """Animals are no far words of a dog, and never without relation."""
    animals = {"horse", "cow", "sheep", "rabbit", "goat"}
    tiers = [sample_offline(ConceptRequest("dog", words=6, seed=seed)).irrelevant for seed in range(20)]
    assert not animals & {word.word for found in tiers for tier in ("no_relation", "far") for word in found[tier]}
    assert len(animals & {word.word for found in tiers for word in found["mid"]}) >= 3


ODD = [
    "quickly",
    "a",
    "the",
    "100",
    "C++",
    "don't",
    "\U0001f525",
    "犬",
    "cat's",
    "-",
    "x" * 500,
    "A photo of a cat.",
    "Nike\nAir",
]


@pytest.mark.parametrize("concept", ODD)
@pytest.mark.parametrize("category", ["auto", "entity", "style", "relation", "person"])
def test_odd_concepts_give_sets_that_hold_together(concept, category):
    sample_offline(ConceptRequest(concept, category)).check()


@pytest.mark.parametrize("part_of_speech", ["noun", "verb", "adjective", "adverb"])
def test_every_part_of_speech_can_be_asked_for(part_of_speech):
    for concept in ("fast", "xyzzy"):
        sample_offline(ConceptRequest(concept, part_of_speech=part_of_speech, words=6, senses=5)).check()


CONCEPTS = ["cat", "horse", "nude", "crime", "dance", "Elvis Presley", "in", "kiss", "lamp post", "Snow White", "smoke"]


@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_set_holds_together_at_every_seed(concept):
    for seed in range(5):
        sample_offline(ConceptRequest(concept, words=6, seed=seed)).check()


def test_thousands_of_synonyms_take_no_time():
    """Concept Sampler cannot be stopped while it compares them with the words that it draws."""
    sample_offline(ConceptRequest("cat"))  # loads WordNet
    synonyms = tuple(f"red wolf {number}" for number in range(3000))
    begin = time.process_time()
    concepts = sample_offline(ConceptRequest("cat", synonyms=synonyms))
    assert time.process_time() - begin < 5
    drawn = {word.word for words in concepts.irrelevant.values() for word in words}
    assert len(concepts.synonyms) >= 3000 and not drawn & {"wolf", "red", "cat"}
