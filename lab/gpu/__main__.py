"""Checks the pack on this machine's card.

    python scripts/dev.py gpu                    all checks
    python scripts/dev.py gpu --only 1 4         some of them
    python scripts/dev.py gpu --device cpu       on the CPU, at small sizes

Writes benchmarks/gpu/<card>.json and .md. Nothing is downloaded, and no weights of FLUX.1 are needed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from lab.gpu.card import NO_CARD, Card, find_card
from lab.gpu.checks import CHECKS, OWN_PROCESS, outcome_of
from lab.gpu.outcome import Outcome
from lab.gpu.report import FOLDER, write
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


def in_own_process(number: int, card: Card) -> Outcome:
    """The outcome of a check that a process of its own has run."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "outcome.json"
        device = ["--device", str(card.device)]
        command = [sys.executable, "-m", "lab.gpu", "--only", str(number), *device, "--found", str(found)]
        code = subprocess.run(command).returncode
        if not found.exists():
            return Outcome(problems=[f"the check ended its process with code {code}"])
        return Outcome(**json.loads(found.read_text(encoding="utf-8")))


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
    outcomes: dict[int, Outcome] = {}
    for number in args.only or CHECKS:
        run = in_own_process if number in OWN_PROCESS else outcome_of
        outcomes[number] = run(number, card)
        told = outcomes[number]
        print(f"{number:>2}  {CHECKS[number].title}: {told.state}, {told.seconds:.0f} s", flush=True)
        for line in (*told.problems, *filter(None, [told.skipped])):
            print(f"      {line}", flush=True)
    path = write(card, command_line("gpu", *arguments), outcomes, args.into)
    print(f"Written: {path} and .json beside it.")
    return int(any(outcome.state == "failed" for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
