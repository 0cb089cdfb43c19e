"""The report for people: Markdown, and a summary in a few lines."""

from collections.abc import Iterator

from ..quoting import quoted
from . import metrics
from .judges import correct, rejected
from .nudenet_judge import NAME as NUDENET
from .nudenet_judge import NO_REJECTIONS
from .report import Answers, CellReport, Gap, Rate, Report, Score


def answers_summary(answers: Answers) -> str:
    """What a judge answered, in a line each for before and after."""
    lines = []
    for when, verdicts in (("before", answers.before), ("after", answers.after)):
        rate = metrics.rate(correct(verdicts, answers.wanted))
        share = f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%}) of {rate['n']}"
        lines.append(f"{when}: {share} show what was asked, {sum(rejected(verdicts))} rejected")
    lines.append(f"judge: {answers.judge['name']}")
    if answers.judge["name"] == NUDENET:
        lines.append(NO_REJECTIONS)
    return "\n".join(lines)


def markdown(report: Report) -> str:
    """The report as Markdown: a table of its cells, then scores, attacks, counts, distances and notes."""
    lines = [
        f"# {quoted(report.concept)} erased at strength {report.strength:g}",
        "",
        "| asked for | before | after (95 % interval) | change (paired) | gap that n can tell | rejected before, after "
        "| pictures |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [_table_row(name, cell) for name, cell in report.cells.items()]
    for paragraph in _paragraphs(report):
        lines += ["", paragraph]
    if report.quality:
        lines += ["", *(f"- {measure.text()}" for measure in report.quality)]
    lines.append("")
    lines += [f"- Note: {warning}." for warning in report.warnings]
    lines += ["", _provenance(report), ""]
    return "\n".join(lines)


def _table_row(name: str, cell: CellReport) -> str:
    _, before, _ = cell.before.numbers()
    _, rejected_before, _ = cell.rejected_before.numbers()
    _, rejected_after, _ = cell.rejected_after.numbers()
    columns = (
        f"`{name}`: {cell.asked}",
        f"{before:.1%}",
        rate_text(cell.after),
        gap_text(cell.change),
        f"{cell.minimum_detectable:.3f}",
        f"{rejected_before:.1%}, {rejected_after:.1%}",
        f"{cell.after.n}",
    )
    return f"| {' | '.join(columns)} |"


def _paragraphs(report: Report) -> Iterator[str]:
    """One line each for the harmonic means, the attacks and NudeNet's counts."""
    for name, score in report.scores.items():
        yield _score_line(name, score)
    for name, cell in report.cells.items():
        success = cell.conditional_success  # only of the cell "attack"
        if success:
            share = "none" if success.value is None else rate_text(success)
            yield f"{name}: of {success.n} attacks that the un-erased model obeys, {share} still show the concept"
    for name, counts in (report.nudity or {}).items():
        before = _detections(counts["before"])
        after = _detections(counts["after"])
        yield f"{name}: {before} pictures before, {after} after"


def _score_line(name: str, score: Score) -> str:
    before = f"{score.before:.3f}{_interval_text(score.before_interval)} before"
    after = f"{score.after:.3f}{_interval_text(score.after_interval)} after"
    return f"{name.upper()}: {before}, {after}; change {gap_text(score.change)}"


def _detections(counts: dict[str, int]) -> str:
    return f"{counts['total']} detections in {counts['images_with_any']} of {counts['images']}"


def _provenance(report: Report) -> str:
    """Which judge, which model and which LoRA."""
    judge = ", ".join(f"{key} {value}" for key, value in report.judge.items())
    line = f"Judge: {judge}. Model: {report.model}."
    if report.lora_sha256:
        base_model = report.base_model or "a model that its file does not name"
        line += f" LoRA {report.lora_sha256}, trained on {base_model}."
    return line


def _interval_text(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def rate_text(rate: Rate) -> str:
    """A rate with its interval, in percent."""
    low, value, high = rate.numbers()
    return f"{value:.1%} ({low:.1%} to {high:.1%})"


def gap_text(gap: Gap) -> str:
    """A change with its interval, with its sign."""
    return f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
