"""A board: erasers as rows, figures with intervals as cells, and a writer that refuses what would mislead."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from eraseanything_core import files
from eraseanything_core.evaluation.metrics import minimum_detectable

REFERENCES = ("un-erased", "no-op", "destroy", "prompt filter", "attention map", "ESD", "reference")
OURS = "EraseAnything"
NEEDED = ("command", "commit", "judge", "hashes", "seeds")
SAME_REJECTS = 0.05  # what a row may reject more than the un-erased model without a mark


@dataclass(frozen=True)
class Figure:
    """A number with its interval and what it was measured on."""

    value: float
    low: float
    high: float
    n: int

    def text(self, scale: float = 100.0) -> str:
        """The number with its interval, by default in percent."""
        return f"{scale * self.value:.1f} ({scale * self.low:.1f} to {scale * self.high:.1f})"


@dataclass(frozen=True)
class Board:
    """What is written.

    Attributes:
        letter: "A" to "F".
        title: one sentence.
        columns: column names, with an arrow for what is better.
        rows: {row: {column: figure}}; "un-erased" is the ceiling.
        ceilings: {concept: share of the un-erased model's pictures of it, measured apart (`ceilings.json`), that show
            it}.
        floor: the lowest ceiling that a concept may have, here and in `drawn`.
        rejects: {row: share of pictures that the judge rejects}.
        lost: sentences, where the pack's own eraser is not measured to beat another row.
        about: at least `NEEDED`.
        drawn: the same shares in this board's own pictures; empty where it does not ask for the concept by its name.
        parts: {row: {column: {concept: rate}}}, of which the rates of `rows` are made; empty where a board has none.
    """

    letter: str
    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Figure]]
    ceilings: Mapping[str, float]
    floor: float
    rejects: Mapping[str, float]
    lost: tuple[str, ...]
    about: Mapping[str, object]
    drawn: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)


def has_interval(figure: Figure | None) -> bool:
    """Whether a figure says how sure it is; only what is all alike, at 0 or 1, may have an interval without width."""
    if figure is None or figure.n < 1 or not figure.low <= figure.value <= figure.high:
        return False
    return figure.low < figure.high or not 0 < abs(figure.value) < 1


def check(board: Board):
    """Raises ValueError for a board that would mislead, with everything that is wrong in one line."""
    wrong = [f"the row {row!r} is missing" for row in (*REFERENCES, OURS) if row not in board.rows]
    for row, figures in board.rows.items():
        lacking = [column for column in board.columns if not has_interval(figures.get(column))]
        wrong += [f"{row!r} has no figure with an interval for {column!r}" for column in lacking]
        wrong += [f"{row!r} has no share of rejected pictures"] * (row not in board.rejects)
    for where, shares in (("", board.ceilings), (" in this board's pictures", board.drawn)):
        low = {c: v for c, v in shares.items() if v < board.floor}
        wrong += [f"the ceiling of {c!r}{where} is {v:.2f}, under {board.floor:.2f}" for c, v in low.items()]
    wrong += [f"{name!r} is missing from `about`" for name in NEEDED if not board.about.get(name)]
    if wrong or not board.ceilings:
        raise ValueError(f"board {board.letter} is not written: {'; '.join(wrong) or 'no ceilings'}")


def table(board: Board) -> str:
    """The rows in Markdown; a row that rejects more than the un-erased model is marked."""
    lines = ["| eraser | " + " | ".join(board.columns) + " | rejected |"]
    lines.append("| --- |" + " ---: |" * (len(board.columns) + 1))
    for row, figures in board.rows.items():
        more = board.rejects[row] > board.rejects["un-erased"] + SAME_REJECTS
        cells = [figures[column].text() for column in board.columns]
        lines.append(f"| {row} | {' | '.join(cells)} | {100 * board.rejects[row]:.1f}{' *' if more else ''} |")
    return "\n".join(lines)


def parts_table(board: Board) -> list[str]:
    """The rates by concept in Markdown, of rows that are not at one rate for all."""
    if not board.parts:
        return []
    lines = ["", "By concept, of rows that are not at one rate for all:", ""]
    lines += ["| eraser | concept | " + " | ".join(board.columns) + " |"]
    lines += ["| --- | --- |" + " ---: |" * len(board.columns)]
    for row, columns in board.parts.items():
        if len({rate for rates in columns.values() for rate in rates.values()}) > 1:
            for concept in board.ceilings:
                shares = [columns[column].get(concept) for column in board.columns]
                cells = ["" if rate is None else f"{100 * rate:.1f}" for rate in shares]
                lines.append(f"| {row} | {concept} | {' | '.join(cells)} |")
    return lines


def markdown(board: Board) -> str:
    """The whole board for people."""
    counts = sorted({figure.n for figures in board.rows.values() for figure in figures.values()})
    ceilings = ", ".join(f"{concept} {100 * value:.0f}" for concept, value in board.ceilings.items())
    lines = [f"# Board {board.letter}: {board.title}", "", "Percent, with 95 % intervals. On TinyFlux; nothing here"]
    lines[-1] += " speaks of Flux.1."
    lines += ["", table(board), "", f"Pictures a figure: {', '.join(map(str, counts))}. Ceilings: {ceilings}."]
    if board.drawn:
        own = ", ".join(f"{concept} {100 * value:.0f}" for concept, value in board.drawn.items())
        lines[-1] += f" In this board's own pictures: {own}."
    half, rare = (100 * minimum_detectable(rate, counts[0]) for rate in (0.5, 0.05))
    lines.append(f"Of {counts[0]} pictures an arm, 80 % power tells {half:.0f} points from 50 %, {rare:.0f} from 5 %.")
    lines.append("* rejects over 5 points more than the un-erased model: garbage is no erasing.")
    lines += ["", "Where EraseAnything is not measured to beat another row (95 % intervals, paired differences):", ""]
    lines += [f"- {sentence}" for sentence in board.lost or ("nowhere on this board.",)]
    lines += parts_table(board)
    lines += ["", *(f"- {name}: {value}" for name, value in board.about.items()), ""]
    return "\n".join(lines)


def write(board: Board, folder: Path, name: str) -> Path:
    """Writes `name`.json and `name`.md.

    Raises:
        ValueError: see `check`.
    """
    check(board)
    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in ((".json", json.dumps(asdict(board), indent=1) + "\n"), (".md", markdown(board))):
        files.write_atomic(folder / f"{name}{ending}", text.encode())
    return folder / f"{name}.json"
