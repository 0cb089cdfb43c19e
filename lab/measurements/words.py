"""Writes the words that Concept Sampler finds offline for the paper's 30 concepts and 100 names, with the review.

    python scripts/dev.py words

Reads benchmarks/concepts/paper.json (Tables 6 and 7) and reviewed.json: the synonyms that a person who read every row
calls wrong. Writes table.json and table.md beside them. Does the same for typed.txt, a list of what people type, with
the sentences that it becomes: typed.md.
"""

import json
from typing import Any

from eraseanything_core.concepts import readings
from eraseanything_core.concepts.concept_set import TIERS, ConceptSet
from eraseanything_core.concepts.sampler import ConceptRequest, known_side, sample_offline
from lab.provenance import ROOT, commit

SHOWN = ("concept", "category", "synonyms", "variants", "irrelevant", "anchors", "neutral", "source")
FOLDER = ROOT / "benchmarks" / "concepts"


def read(name: str) -> dict[str, Any]:
    """A file beside the table."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def row(concept: str, category: str) -> ConceptSet:
    """The set of one concept, with the node's defaults."""
    return sample_offline(ConceptRequest(concept, category)).check()


def shown(concepts: ConceptSet) -> dict[str, Any]:
    """What the table holds of a row."""
    entries = json.loads(concepts.to_json())
    return {name: entries[name] for name in SHOWN}


def check_review(rows: list[ConceptSet], wrong: dict[str, list[str]]) -> None:
    """Raises ValueError when the review names a synonym that is not in the table any more."""
    for concept, words in wrong.items():
        synonyms: set[str] = set()
        for entry in rows:
            if entry.concept == concept:
                synonyms.update(entry.synonyms)
        missing = set(words) - synonyms
        if missing:
            raise ValueError(f"reviewed.json: {concept} has no synonym {min(missing)}: review it again")


def report(rows: list[ConceptSet], wrong: dict[str, list[str]]) -> dict[str, Any]:
    """The rows, and how many have a synonym that the review calls wrong."""
    check_review(rows, wrong)
    return {
        "command": "python scripts/dev.py words",
        "commit": commit(),
        "rows": len(rows),
        "rows_with_synonyms": sum(bool(entry.synonyms) for entry in rows),
        "rows_with_variants_only": sum(bool(entry.variants) and not entry.synonyms for entry in rows),
        "synonyms": sum(len(entry.synonyms) for entry in rows),
        "rows_with_a_wrong_synonym": sum(entry.concept in wrong for entry in rows),
        "wrong": wrong,
        "concepts": [shown(entry) for entry in rows],
    }


def markdown(table: dict[str, Any]) -> str:
    """The report as a table."""
    bad = table["rows_with_a_wrong_synonym"]
    rows = table["rows"]
    with_synonyms = table["rows_with_synonyms"]
    lines = [
        "# Words by WordNet for the concepts of the paper",
        "",
        f"`{table['command']}` at {table['commit']}. {with_synonyms} of {rows} rows have synonyms "
        f"({table['synonyms']} in all), {table['rows_with_variants_only']} only other forms of the word. Read by eye, "
        f"{bad} rows have a synonym that is wrong, struck through: {100 * bad / rows:.1f} % of all rows, "
        f"{100 * bad / with_synonyms:.1f} % of those with synonyms. Irrelevant words: seed 0.",
        "",
        "| concept | category | synonyms | other forms | no relation | far | mid |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in table["concepts"]:
        wrong = table["wrong"].get(entry["concept"], [])
        synonyms = ", ".join(f"~~{word}~~" if word in wrong else word for word in entry["synonyms"])
        cells = [entry["concept"], entry["category"], synonyms, ", ".join(entry["variants"])]
        for tier in TIERS:
            cells.append(", ".join(word for word, _ in entry["irrelevant"][tier]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def typed() -> list[str]:
    """What people type, one input a line."""
    return (FOLDER / "typed.txt").read_text(encoding="utf-8").splitlines()


def typed_markdown(inputs: list[str]) -> str:
    """What the sampler makes of each input, as a table."""
    lines = [
        "# What people type, and what Concept Sampler makes of it",
        "",
        "`python scripts/dev.py words` writes this table from typed.txt. Offline, with the node's defaults.",
        "",
        "| typed | concept | category | synonyms | other forms | neutral | first prompt | last prompt | first kept |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for text in inputs:
        concepts = known_side(readings.read(text), ConceptRequest(text)).check()
        cells = [text, concepts.concept, concepts.category, ", ".join(concepts.synonyms), ", ".join(concepts.variants)]
        cells += [f"`{concepts.neutral}`", concepts.prompts[0], concepts.prompts[-1], concepts.retain[0]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    rows = []
    for category, concepts in read("paper.json").items():
        rows += [row(concept, category) for concept in concepts]
    table = report(rows, read("reviewed.json")["wrong"])
    (FOLDER / "table.json").write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (FOLDER / "table.md").write_text(markdown(table), encoding="utf-8")
    (FOLDER / "typed.md").write_text(typed_markdown(typed()), encoding="utf-8")
    bad = table["rows_with_a_wrong_synonym"]
    print(f"{len(rows)} rows, {table['rows_with_synonyms']} with synonyms, {bad} of these with a wrong one")


if __name__ == "__main__":
    main()
