"""Prompt sets as CSV in the format of I2P: a prompt, a seed and a guidance a row, and what it shall show.

Tables come as people save them: with a comma, a semicolon or a tab, from Excel, PowerShell or pandas. A row that cannot
be used costs that row and a note, never the whole file.
"""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from ..concepts.concept_set import ConceptSet
from ..concepts.prompts import fill
from ..quoting import escaped, quoted

# The names that I2P and the sets derived from it use, in the order in which they are looked for.
COLUMNS = {
    "prompt": ("prompt", "adv_prompt"),
    "seed": ("seed", "evaluation_seed", "sd_seed"),
    "guidance": ("guidance", "evaluation_guidance", "sd_guidance_scale"),
    "label": ("label", "concept", "class"),
}
DELIMITERS = (",", ";", "\t", "|")
MISSING = {"", "nan", "none", "null", "na", "n/a", "#n/a", "<na>"}  # what programs write where there is no number
INVISIBLE = "\ufeff\u200b"  # marks that stand before a first name or value
LARGEST_SEED = 2**64 - 1  # of ComfyUI's samplers
LARGEST_GUIDANCE = 1e6
MOST_NOTES = 10  # that are spelt out
ROWS_BETWEEN_CALLS = 256


class Record(NamedTuple):
    """A record of a table as it is written, and what is wrong with it."""

    values: list[str]
    problem: str = ""


@dataclass(frozen=True)
class PromptRow:
    """One picture to make; label is "" where the file says nothing of what it shall show."""

    prompt: str
    seed: int
    guidance: float
    label: str = ""


@dataclass(frozen=True)
class PromptTable:
    """The usable rows of a table, and a sentence for each row that was left out."""

    rows: list[PromptRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """How many rows there are, and why others were left out."""
        lines = [f"{len(self.rows)} prompts", *self.notes[:MOST_NOTES]]
        if len(self.notes) > MOST_NOTES:
            lines.append(f"and {len(self.notes) - MOST_NOTES} more rows were left out")
        return "\n".join(lines)


def read_table(
    text: str,
    guidance: float = 3.5,
    first: int = 0,
    count: int = 0,
    progress: Callable[[], None] | None = None,
) -> PromptTable:
    """The rows of a CSV text with a header.

    Args:
        text: has a column `prompt`; `seed`, `guidance` and `label` may be missing, and the names that I2P and its
            derivates use for them are known. A missing seed is the row's number.
        guidance: where the file gives none.
        first: rows below the header to leave out at the start.
        count: rows to look at from there on; 0 is all.
        progress: called every 256 rows; what it raises ends the reading.

    Raises:
        ValueError: no table, no prompt column, or no row that can be used.
    """
    # One kind of line end: a prompt in quotation marks may hold them, and the csv module refuses a bare \r.
    whole = text.lstrip(f"{INVISIBLE}\r\n").replace("\r\n", "\n").replace("\r", "\n")
    whole, delimiter = _delimiter(whole)
    table = PromptTable()
    records = _records(whole, delimiter)
    header = next(records, Record([])).values
    columns = _columns(header)
    number = -1
    for record in records:
        number += 1
        if progress and number % ROWS_BETWEEN_CALLS == 0:
            progress()
        if number < first or count and number >= first + count:
            continue
        try:
            table.rows.append(_row(record, number, header, columns, delimiter, guidance))
        except ValueError as error:
            table.notes.append(f"row {number + 1} of the prompt set was left out: {error}")
    if not table.rows:
        raise ValueError(_nothing_left(table, number + 1, first))
    return table


def _records(text: str, delimiter: str) -> Iterator[Record]:
    """The records of a table, without those that hold nothing, as Excel leaves them at the end."""
    # At \n only: a prompt may hold what Python takes for other ends of lines.
    lines = io.StringIO(text).readlines()
    # The module csv and not pandas, which ComfyUI does not bring along.
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        begin = reader.line_num
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # the reader goes on with the next line
            yield Record([], escaped(str(error)))
            continue
        if any(value.strip() for value in values):
            yield Record(values, _quoting_problem(values, lines[begin : reader.line_num], delimiter))


def _quoting_problem(values: Sequence[str], lines: Sequence[str], delimiter: str) -> str:
    """What is wrong with the quotation marks of a record: the reader takes all that follows for a part of the prompt.

    Args:
        values: that the reader has made.
        lines: of the record.
        delimiter: of the table.
    """
    try:
        list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        # A blank after the last mark, as in `"a cat" , 1`, changes nothing.
        is_whole = "".join(lines).count('"') % 2 == 0 and '"' not in "".join(values)
        after = f", nor those of the {len(lines) - 1} lines after it" if len(lines) > 1 else ""
        return "" if is_whole else f"its quotation marks do not match{after}: double those inside a prompt"
    return ""


def _nothing_left(table: PromptTable, rows: int, first: int) -> str:
    """Why no row is left."""
    if table.notes:
        return f"the prompt set has no row that can be used: {table.notes[0]}"
    if rows:
        return f"the prompt set has {rows} rows and none from {first} on: lower `first`"
    return "the prompt set has no rows below its header"


def _delimiter(text: str) -> tuple[str, str]:
    """The text without Excel's line `sep=;`, and the delimiter: the one that gives the header a prompt column."""
    header, _, rest = text.partition("\n")
    separator = re.fullmatch(r'"?sep=(.)"?', header, re.IGNORECASE)
    if separator:
        return rest, separator[1]
    for delimiter in DELIMITERS:
        names = next(csv.reader([header], delimiter=delimiter), [])
        if _column(names, COLUMNS["prompt"]) is not None:
            return text, delimiter
    return text, DELIMITERS[0]


def _columns(header: Sequence[str]) -> dict[str, int | None]:
    """Where each of `COLUMNS` stands in the header.

    Raises:
        ValueError: there is no prompt column.
    """
    columns = {name: _column(header, known) for name, known in COLUMNS.items()}
    if columns["prompt"] is None:
        names = escaped(", ".join(header))
        raise ValueError(f"the prompt set has no column `prompt`; its columns are: {names}")
    plain = list(map(_plain, header))
    for position in columns.values():
        if position is not None and plain.count(plain[position]) > 1:
            raise ValueError(f"the prompt set has the column {quoted(plain[position])} twice: rename one of them")
    return columns


def _plain(name: str) -> str:
    """A column's name without what people do not see."""
    return name.strip(f"{INVISIBLE} \t\xa0").lower()


def _column(names: Sequence[str], known: Sequence[str]) -> int | None:
    """The position of the first known name in a header, whatever its casing."""
    plain = list(map(_plain, names))
    return next((plain.index(name) for name in known if name in plain), None)


def _row(
    record: Record,
    number: int,
    header: Sequence[str],
    columns: Mapping[str, int | None],
    delimiter: str,
    guidance: float,
) -> PromptRow:
    """A row of the table.

    Raises:
        ValueError: with what is wrong with it.
    """
    if record.problem:
        raise ValueError(record.problem)
    values = list(record.values)
    if len(header) == 1:
        values = [delimiter.join(values)]  # a plain list of prompts: a comma in one of them is no delimiter
    # Programs leave delimiters at the end of a line.
    while len(values) > len(header) and not values[-1].strip():
        values.pop()
    if len(values) > len(header):
        raise ValueError(
            f"it has {len(values)} values for {len(header)} columns: put a prompt that holds {quoted(delimiter)} "
            "into quotation marks"
        )
    cells = {name: _cell(values, position) for name, position in columns.items()}
    prompt = " ".join(cells["prompt"].split("\n"))
    if not prompt:
        raise ValueError("it has no prompt")
    seed = _seed(cells["seed"], number)
    # A decimal comma is how programs write numbers where the semicolon is the delimiter.
    guidance_text = cells["guidance"] if delimiter == "," else cells["guidance"].replace(",", ".")
    return PromptRow(prompt, seed, _guidance(guidance_text, guidance), cells["label"])


def _cell(values: Sequence[str], position: int | None) -> str:
    """A value of a row; "" where the table has no such column, or the row ends before it."""
    if position is None or position >= len(values):
        return ""
    return values[position].strip()


def _number(text: str, name: str) -> Decimal | None:
    """A number, or None for an empty cell and for what programs write there, such as the `nan` of pandas.

    `Decimal` keeps all digits of a seed, which a float would not.
    """
    if text.lower() in MISSING:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"its {name} {quoted(text)} is no number") from None
    return None if number.is_nan() else number


def _seed(text: str, default: int) -> int:
    number = _number(text, "seed")
    if number is None:
        return default
    # Compared before it is converted: int(Decimal("1e999999999")) would take minutes and gigabytes.
    if not 0 <= number <= LARGEST_SEED or number != number.to_integral_value():
        raise ValueError(f"its seed {quoted(text)} is no whole number from 0 to 2^64 - 1")
    return int(number)


def _guidance(text: str, default: float) -> float:
    number = _number(text, "guidance")
    if number is None:
        return default
    if not 0 <= number <= LARGEST_GUIDANCE:
        raise ValueError(f"its guidance {quoted(text)} is no number from 0 to {LARGEST_GUIDANCE:g}")
    return float(number)


def from_concept_set(concepts: ConceptSet, guidance: float = 3.5, first: int = 0, count: int = 0) -> PromptTable:
    """The prompts of a concept set, labelled with its concept; the seed is the row's number.

    Args:
        concepts: the set.
        guidance: of every row.
        first: rows to leave out at the start.
        count: rows to take; 0 is all.

    Raises:
        ValueError: it has no prompts, or none from `first` on.
    """
    if not concepts.prompts:
        raise ValueError(
            f"the set of {quoted(concepts.concept)} has no prompts: add some, or take them from Concept Sampler"
        )
    table = PromptTable()
    for seed, prompt in enumerate(concepts.prompts):
        table.rows.append(PromptRow(fill(prompt, concepts.concept), seed, guidance, concepts.concept))
    chosen = table.rows[first:][: count or None]
    if not chosen:
        raise ValueError(_nothing_left(table, len(table.rows), first))
    return PromptTable(chosen)


def write_table(rows: Sequence[PromptRow]) -> str:
    """The rows as CSV, readable by `read_table`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["prompt", "seed", "guidance", "label"])
    for row in rows:
        table.writerow([row.prompt, row.seed, row.guidance, row.label])
    return text.getvalue()


def prompts_hash(prompts: Sequence[str], seeds: Sequence[int]) -> str:
    """The hash of prompts and their seeds, for the report."""
    lines = [f"{seed} {prompt}" for prompt, seed in zip(prompts, seeds)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
