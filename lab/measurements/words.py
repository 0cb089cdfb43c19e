"""Writes the words that Concept Sampler finds offline for the paper's 30 concepts and 100 names, with the review.

    python scripts/dev.py words

Reads benchmarks/concepts/paper.json (Tables 6 and 7) and reviewed.json: the synonyms that a person who read every row
calls wrong. Writes table.json and table.md beside them.
"""

import json

from eraseanything_core.concepts.concept_set import TIERS, ConceptSet
from eraseanything_core.concepts.sampler import Request, offline
from scripts.demo import ROOT, commit

SHOWN = ("concept", "category", "synonyms", "variants", "irrelevant", "anchors", "neutral", "source")
FOLDER = ROOT / "benchmarks" / "concepts"


def read(name: str) -> dict:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def row(concept: str, category: str) -> ConceptSet:
    """The set of one concept, with the node's defaults."""
    return offline(Request(concept, category)).check()


def shown(entry: ConceptSet) -> dict:
    """What the table holds of a row."""
    found = json.loads(entry.to_json())
    return {name: found[name] for name in SHOWN}


def report(rows: list[ConceptSet], wrong: dict[str, list[str]]) -> dict:
    """The rows, and how many have a synonym that the review calls wrong."""
    for concept, words in wrong.items():
        missing = set(words) - {word for found in rows if found.concept == concept for word in found.synonyms}
        if missing:
            raise ValueError(f"reviewed.json: {concept} has no synonym {min(missing)}: review it again")
    found = [entry for entry in rows if entry.synonyms]
    return {
        "command": "python scripts/dev.py words",
        "commit": commit(),
        "rows": len(rows),
        "rows_with_synonyms": len(found),
        "rows_with_variants_only": sum(bool(entry.variants) and not entry.synonyms for entry in rows),
        "synonyms": sum(len(entry.synonyms) for entry in rows),
        "rows_with_a_wrong_synonym": sum(entry.concept in wrong for entry in rows),
        "wrong": wrong,
        "concepts": [shown(entry) for entry in rows],
    }


def markdown(made: dict) -> str:
    """The report as a table."""
    bad, n, found = made["rows_with_a_wrong_synonym"], made["rows"], made["rows_with_synonyms"]
    lines = [
        "# Words by WordNet for the concepts of the paper",
        "",
        f"`{made['command']}` at {made['commit']}. {found} of {n} rows have synonyms "
        f"({made['synonyms']} in all), {made['rows_with_variants_only']} only other forms of the word. Read by eye, "
        f"{bad} rows have a synonym that is wrong, struck through: {100 * bad / n:.1f} % of all rows, "
        f"{100 * bad / found:.1f} % of those with synonyms. Irrelevant words: seed 0.",
        "",
        "| concept | category | synonyms | other forms | no relation | far | mid |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in made["concepts"]:
        wrong = made["wrong"].get(entry["concept"], [])
        synonyms = ", ".join(f"~~{word}~~" if word in wrong else word for word in entry["synonyms"])
        tiers = [", ".join(word for word, _ in entry["irrelevant"][tier]) for tier in TIERS]
        cells = [entry["concept"], entry["category"], synonyms, ", ".join(entry["variants"]), *tiers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    rows = [row(concept, category) for category, concepts in read("paper.json").items() for concept in concepts]
    made = report(rows, read("reviewed.json")["wrong"])
    (FOLDER / "table.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (FOLDER / "table.md").write_text(markdown(made), encoding="utf-8")
    bad, found = made["rows_with_a_wrong_synonym"], made["rows_with_synonyms"]
    print(f"{made['rows']} rows, {found} with synonyms, {bad} of these with a wrong one")


if __name__ == "__main__":
    main()
