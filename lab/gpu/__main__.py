"""Checks the pack on this machine's card.

    python scripts/dev.py gpu                    all checks
    python scripts/dev.py gpu --only 1 4         some of them
    python scripts/dev.py gpu --device cpu       on the CPU, at small sizes

Writes benchmarks/gpu/<card>.json and .md. Nothing is downloaded, and no weights of FLUX.1 are needed.
"""

import argparse
import json
import sys
from pathlib import Path

from lab.gpu.card import NO_CARD, Card, find_card
from lab.gpu.checks import CHECKS, OWN_PROCESS, outcome_of
from lab.gpu.outcome import Outcome
from lab.gpu.processes import in_own_process
from lab.gpu.report import FOLDER, shown, write
from lab.provenance import command_line


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="dev.py gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=int, nargs="+", choices=CHECKS, metavar="N", help="numbers of checks")
    parser.add_argument("--device", default="", help="as PyTorch names it; the default is the card of ComfyUI")
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder of the report")
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)  # of a process for one check: its outcome
    return parser.parse_args(arguments)


def tell(number: int, outcome: Outcome) -> None:
    """Prints what a check has found."""
    print(f"{number:>2}  {CHECKS[number].title}: {outcome.state}, {outcome.seconds:.0f} s", flush=True)
    lines = [*outcome.problems, *filter(None, [outcome.skipped])]
    if number == 0:
        lines += [f"{name}: {shown(value)}" for name, value in outcome.figures.items()]
    for line in lines:
        print(f"      {line}", flush=True)


def run_all(numbers: list[int], card: Card, command: str, folder: Path) -> tuple[Path, bool]:
    """Runs checks one after another, and writes the report after each of them.

    Returns:
        The report's page, and whether a check has failed.
    """
    facts = card.facts()  # asked once: a card that is lost no longer says them
    failed = lost = False
    for number in numbers:
        run = in_own_process if lost or number in OWN_PROCESS else outcome_of
        outcome = run(number, card)
        lost = lost or not card.answers()
        failed = failed or outcome.state == "failed"
        tell(number, outcome)
        path = write(facts, command, {number: outcome}, folder)
    return path, failed


def main(arguments: list[str]) -> int:
    """Runs the checks and says where the report is; returns 1 where one has failed."""
    args = parse(arguments)
    card = find_card(args.device)
    if card is None:
        print(NO_CARD)
        return 0
    if args.found:
        outcome = outcome_of(args.only[0], card)
        args.found.write_text(json.dumps(vars(outcome)), encoding="utf-8")
        return 0
    path, failed = run_all(args.only or list(CHECKS), card, command_line("gpu", *arguments), args.into)
    print(f"Written: {path} and .json beside it.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
