"""WordNet as the pack ships it: where it is found, what it takes for synonyms, and the noise that it leaves out."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from eraseanything_core.concepts import inflections, person_names, wordnet
from eraseanything_core.concepts.readings import category_of
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline

ROOT = Path(__file__).resolve().parents[3]
MEGABYTE = 1_000_000


def synonyms(concept, category="auto", **more):
    return sample_offline(ConceptRequest(concept, category, **more)).synonyms


def test_the_bundled_data_is_small_and_has_its_licence():
    assert wordnet.BUNDLED.stat().st_size <= 5.5 * MEGABYTE
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in (wordnet.BUNDLED.parents[1] / "LICENSE").read_text()
    assert wordnet.database().get_version() == "3.0"
    assert len(wordnet.database().synsets("dog")) == 8


def run(code, **environment):
    """Runs code in a process of its own, without a home."""
    known = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "PYTHONPATH", "TMPDIR") if name in os.environ}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=known | environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_opens_no_socket_and_not_even_nltk_and_a_group_may_write_to_the_checkout(tmp_path):
    """As git makes the file with umask 002, which NLTK refuses to read."""
    copy = tmp_path / "wordnet.zip"
    shutil.copyfile(wordnet.BUNDLED, copy)
    copy.chmod(0o664)
    code = (
        "import pathlib, socket, sys\n"
        "def refuse(*args, **more): raise AssertionError('a socket')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from eraseanything_core.concepts import sampler, wordnet\n"
        "assert not {'nltk', 'openai', 'comfy'} & set(sys.modules)\n"
        f"wordnet.BUNDLED = pathlib.Path({str(copy)!r})\n"
        "print(sampler.sample_offline(sampler.ConceptRequest('car')).synonyms)"
    )
    assert run(code, HOME="/nonexistent").strip() == "('auto', 'automobile', 'motorcar')"


def test_equal_requests_give_equal_sets_in_every_process():
    code = (
        "from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline\n"
        "concepts = ('dog', 'Kiss', 'nude', 'Elvis Presley', 'fruit')\n"
        "print([sample_offline(ConceptRequest(concept, seed=5)).to_json() for concept in concepts])"
    )
    concepts = ("dog", "Kiss", "nude", "Elvis Presley", "fruit")
    sets = [sample_offline(ConceptRequest(concept, seed=5)) for concept in concepts]
    assert ast.literal_eval(run(code)) == [each.to_json() for each in sets]
    assert sample_offline(ConceptRequest("dog", seed=6)).irrelevant != sets[0].irrelevant


def test_plain_nltk_reads_the_bundled_data():
    code = "from nltk.corpus import wordnet; print(wordnet.synsets('red')[2].name(), wordnet.get_version())"
    assert run(code, NLTK_DATA=str(wordnet.BUNDLED.parents[1])) == "bolshevik.n.01 3.0\n"


def other_version(folder):
    """The bundled data with another version number stands for a copy of the user's."""
    with zipfile.ZipFile(wordnet.BUNDLED) as bundled, zipfile.ZipFile(folder / "wordnet.zip", "w") as own:
        for name in bundled.namelist():
            data = bundled.read(name)
            own.writestr(name, data.replace(b"WordNet 3.0 Copyright", b"WordNet 9.9 Copyright"))


def cut_short(folder):
    (folder / "wordnet.zip").write_bytes(wordnet.BUNDLED.read_bytes()[:100_000])


def saved_by_a_browser(folder):
    (folder / "wordnet.zip").write_text("<html>not found</html>")


def empty(folder):
    (folder / "wordnet").mkdir()


def test_the_bundled_data_is_read_whatever_the_user_has(tmp_path):
    folders = []
    for fill in (cut_short, saved_by_a_browser, empty, other_version):
        folders.append(str(tmp_path / fill.__name__))
        corpora = tmp_path / fill.__name__ / "corpora"
        corpora.mkdir(mode=0o700, parents=True)
        fill(corpora)
    code = "from eraseanything_core.concepts import wordnet; print(wordnet.database().get_version())"
    assert run(code, NLTK_DATA=os.pathsep.join(folders)).strip() == "3.0"


NOISE = {
    ("red", "auto"): {"Bolshevik", "Marxist", "loss", "Red River"},
    ("car", "auto"): {"machine", "gondola", "railcar"},
    ("cat", "auto"): {"guy", "kat", "cat-o'-nine-tails", "puke"},
    ("dog", "auto"): {"frump", "cad", "frank", "andiron"},
    ("Ball", "entity"): {"testis", "nut", "egg", "Lucille Ball", "musket ball"},
    ("Building", "entity"): {"construction", "build"},
    ("Hold", "relation"): {"keep", "maintain", "have", "deem"},
    ("In", "relation"): {"inch", "indium", "Indiana"},
    ("On", "relation"): {"along"},
    ("Jump", "relation"): {"spring", "bound", "startle"},
    ("Drake", "person"): {"Francis Drake", "Sir Francis Drake"},
    ("Batman", "person"): {"batman"},
    ("Superman", "person"): {"demigod", "Ubermensch", "acid"},
    ("Madonna", "person"): {"Mary", "Virgin Mary"},
    ("Muhammad Ali", "person"): {"Mehemet Ali", "Mohammed Ali", "Ali"},
    ("Tiger Woods", "person"): {"Woods", "forest"},
    ("Michael Jackson", "person"): {"Jackson"},
    ("Nikola Tesla", "person"): {"Tesla"},
    ("Neil Armstrong", "person"): {"Armstrong"},
    ("Explosions", "style"): {"blowup"},
    ("eye", "entity"): {"optic"},
    ("food", "entity"): {"eats"},
    ("money", "entity"): {"lettuce", "clams"},
    ("Leonardo da Vinci", "style"): {"Leonardo"},
    ("Saddam Hussein", "person"): {"Saddam"},
    ("Gracie Allen", "person"): {"Gracie"},
    ("Kim Kardashian", "person"): {"Kardashian"},
    ("Christiano Ronaldo", "person"): {"Ronaldo"},
}


@pytest.mark.parametrize("concept, category", NOISE)
def test_known_noise_is_left_out(concept, category):
    found = set(synonyms(concept, category, senses=5 if concept == "red" else 1))
    assert not found & NOISE[concept, category]


@pytest.mark.parametrize(
    "concept, category, expected",
    [
        ("nude", "auto", ("bare", "au naturel", "naked")),
        ("nudity", "auto", ("nakedness", "nudeness", "birthday suit")),
        ("soccer", "auto", ("association football",)),
        ("Airplane", "entity", ("aeroplane", "plane")),
        ("Kiss", "relation", ("snog", "smooch")),
        ("Amidst", "relation", ("amid", "among", "in the middle of")),
        ("Vincent Van Gogh", "style", ("van Gogh", "Gogh")),
        ("Elvis Presley", "person", ("Presley", "Elvis Aron Presley")),
        ("Leonardo da Vinci", "style", ("da Vinci",)),
        ("Michelangelo Buonarroti", "style", ("Michelangelo",)),
        ("Galileo Galilei", "person", ("Galileo",)),
        ("Explosions", "style", ("detonation",)),
        ("harbor", "entity", ("seaport", "harbour")),
        ("horse", "entity", ("Equus caballus",)),
        ("Zac Efron", "person", ()),
        ("Adele", "person", ()),
    ],
)
def test_synonyms(concept, category, expected):
    assert synonyms(concept, category) == expected


def test_a_surname_that_wordnet_does_not_know_is_left_to_the_user():
    found = sample_offline(ConceptRequest("Zac Efron"))
    assert "if nobody else is called Efron, type that as a synonym" in found.source
    assert sample_offline(ConceptRequest("Zac Efron", synonyms=("Efron",))).synonyms == ("Efron",)
    assert sample_offline(ConceptRequest("Adele", "person")).source == "WordNet 3.0: it does not know the concept"


def test_a_part_of_a_name_of_the_paper_counts_only_where_wordnet_lists_it():
    from lab.measurements import words

    alone = {}
    for entry in words.read("table.json")["concepts"]:
        (listed,) = [s.lemma_names() for s in wordnet.senses(entry["concept"], entry["category"])[:1]] or [[]]
        for word in entry["synonyms"]:
            if word.casefold() in entry["concept"].casefold().split():
                alone[word] = word in listed
    assert all(alone.values()) and {"Picasso", "Camus", "Newton", "Shakespeare", "Presley", "Putin"} <= set(alone)


def test_part_of_speech_and_senses_are_the_users():
    assert sample_offline(ConceptRequest("smile")).source.startswith("WordNet 3.0: smile.n.01")
    assert sample_offline(ConceptRequest("smile", part_of_speech="verb")).source.startswith("WordNet 3.0: smile.v.01")
    one, three = synonyms("car"), synonyms("car", senses=3)
    assert three[: len(one)] == one and {"railcar"} <= set(three) - set(one)


def test_the_users_synonyms_come_first():
    assert synonyms("car", synonyms=("motor", "AUTO", "car")) == ("motor", "auto", "automobile", "motorcar")


def test_inflections():
    plurals = {"cat": "cats", "box": "boxes", "city": "cities", "child": "children", "toy": "toys", "woman": "women"}
    assert {noun: inflections.plural(noun) for noun in plurals} == plurals
    assert inflections.verb_forms("hug") == ["hugs", "hugging", "hugged"]
    assert inflections.verb_forms("hold") == ["holds", "holding", "held"]
    assert inflections.verb_forms("carry") == ["carries", "carrying", "carried"]
    assert inflections.verb_forms("dance") == ["dances", "dancing", "danced"]
    forms = {"nude": ("nudity", "nudeness"), "Shoes": ("shoe",), "mice": ("mouse",), "soccer": ()}
    assert {concept: sample_offline(ConceptRequest(concept)).variants for concept in forms} == forms


def test_names():
    assert person_names.spellings("Beyoncé") == ("Beyonce",) and person_names.spellings("Jay-Z") == ("Jay Z",)
    assert person_names.spellings("Robert Downey Jr.") == ("Robert Downey Jr", "Robert Downey")
    assert person_names.spellings("The Hulk") == ("Hulk",) and person_names.spellings("Brad Pitt") == ()


def test_categories():
    expected = {
        "cat": "entity", "Elvis Presley": "person", "Zac Efron": "person", "cubism": "style", "in": "relation",
        "embraced": "relation", "back to back": "relation", "nude": "entity", "xyzzy": "entity",
        "Van Gogh": "style", "swimming": "relation", "painting": "entity", "burning house": "entity",
        "drinking beer": "relation", "Golden Gate Bridge": "entity",
    }  # fmt: skip
    assert {concept: category_of(concept) for concept in expected} == expected


def test_anchors_neighbours_and_neutral():
    dog = sample_offline(ConceptRequest("dog"))
    assert dog.anchors[0] == "animal" and dog.neutral == "{animal}" and "an image of a horse" in dog.retain
    assert sample_offline(ConceptRequest("nudity")).neutral == "a fully dressed person"
    assert sample_offline(ConceptRequest("Brad Pitt")).neutral == "{a person}"
    inside = sample_offline(ConceptRequest("in"))
    assert inside.neutral == "{and}" and "a ball above a box" in inside.retain


def test_the_committed_table_is_what_the_node_finds_and_was_reviewed():
    from lab.measurements import words

    table, wrong = words.read("table.json"), words.read("reviewed.json")["wrong"]
    listed = [(category, concept) for category, found in words.read("paper.json").items() for concept in found]
    assert [(entry["category"], entry["concept"]) for entry in table["concepts"]] == listed and len(listed) == 130
    assert table["wrong"] == wrong and len(wrong) <= 0.05 * table["rows_with_synonyms"]
    for entry in table["concepts"]:  # the table was made with the whole WordNet, the trimmed one gives the same
        assert entry == words.shown(words.row(entry["concept"], entry["category"])), entry["concept"]
    assert (words.FOLDER / "table.md").read_text(encoding="utf-8") == words.markdown(table)
    assert json.loads(json.dumps(table)) == table


BLOCKED = """
import importlib.abc, sys


class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nltk", "openai"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())
"""


def test_a_missing_package_is_named_where_it_is_needed(tmp_path):
    code = BLOCKED + (
        "import asyncio, pathlib\n"
        "from eraseanything_core.concepts import answer, llm, sampler\n"
        "try: sampler.sample_offline(sampler.ConceptRequest('cat'))\n"
        "except ModuleNotFoundError as error: print(error)\n"
        "question = answer.Question('cat', ('cat',), 1)\n"
        f"asking = llm.ask(question, llm.Server('http://127.0.0.1:9/v1', 'm'), None, pathlib.Path({str(tmp_path)!r}))\n"
        "try: asyncio.run(asking)\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    first, second = run(code).splitlines()
    assert first.startswith("Concept Sampler needs the package nltk: run `pip install nltk` in ComfyUI's Python")
    assert second.startswith("Concept Sampler needs the package openai: run `pip install openai` in ComfyUI's Python")


def test_matching_and_training_need_neither_package():
    code = BLOCKED + (
        "from eraseanything_core.concepts import concept_set, matching\n"
        "from eraseanything_core.training.config import EraseConfig, check_settings\n"
        "check_settings(EraseConfig('wolf', rsc_weight=0, retain=('a dog',)))\n"
        "concept_set.ConceptSet('wolf', prompts=('two wolves',)).check()\n"
        "print(matching.replace('two wolves', 'wolf', '{}'))"
    )
    assert run(code) == "two {}\n"
