"""One entry for people and CI: sets up what is missing, then runs the demo or the tests.

    python scripts/dev.py demo              erase a concept from TinyFlux in a real ComfyUI and measure it
    python scripts/dev.py test [ARG ...]    run the tests; arguments go to pytest
    python scripts/dev.py train             train TinyFlux again
    python scripts/dev.py ceilings          measure what the un-erased TinyFlux can do
    python scripts/dev.py board A           compare erasers on TinyFlux; A to F
    python scripts/dev.py study page FILE    make the page of a user study; study draw draws its ratings
    python scripts/dev.py multi             measure how erasers combine on TinyFlux
    python scripts/dev.py strength          measure the dial of EraseStrength on TinyFlux
    python scripts/dev.py merge             time the merging of 100 erasers of Flux.1's size
    python scripts/dev.py bench             count FLOPs and memory at Flux.1-dev's size; TinyFlux's CPU time as a ratio
    python scripts/dev.py attack_benchmark [CONCEPT]  attack erasers of TinyFlux with what searches
    python scripts/dev.py words             write the words that Concept Sampler finds for the paper's concepts
    python scripts/dev.py probe             measure how well AttentionProbe finds objects of TinyFlux, and its cost
    python scripts/dev.py attention_erase   measure AttentionErase on TinyFlux
    python scripts/dev.py stream_ablation   measure by which blocks a concept's word reaches the picture
    python scripts/dev.py search            try the trainer's settings on TinyFlux

Everything is installed into .venv and .cache inside the repository. COMFYUI_PATH names an existing ComfyUI
to use instead, and COMFYUI_PYTHON its interpreter if that is not in or beside it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PYTHONS = ((3, 10), (3, 13))
MODULES = {
    "demo": "scripts.demo",
    "test": "pytest",
    "train": "lab.tinyflux.train",
    "ceilings": "lab.tinyflux.ceilings",
    "probe": "lab.measurements.probe",
    "attention_erase": "lab.measurements.attention_erase",
    "stream_ablation": "lab.measurements.stream_ablation",
    "search": "lab.measurements.search",
    "multi": "lab.measurements.multi",
    "strength": "lab.measurements.strength",
    "merge": "lab.measurements.merge",
    "attack_benchmark": "lab.measurements.attack_benchmark",
    "board": "lab.boards.command",
    "study": "lab.study.command",
    "bench": "lab.bench",
    "words": "lab.measurements.words",
}
# Each process starts a ComfyUI, and a file's tests share what they make. As collected, the quick files come last.
WHOLE_SUITE = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--durations", "25"]


def main() -> int:
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        version = sys.version.split()[0]
        print(f"Python 3.10 to 3.13 is needed; this is {version} ({sys.executable}).", file=sys.stderr)
        return 1
    from scripts.environment import prepare
    from scripts.steps import StepFailed

    command, rest = parse(sys.argv[1:])
    try:
        environment = prepare(tests=command == "test")
        arguments = [str(environment.python), "-m", MODULES[command], *rest]
        return subprocess.run(arguments, cwd=ROOT, env=environment.variables()).returncode
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parse(arguments: list[str]) -> tuple[str, list[str]]:
    """Splits the command from its own arguments, which are passed on as they are."""
    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=list(MODULES))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the command")
    parsed = parser.parse_args(arguments)
    return parsed.command, parsed.arguments or (WHOLE_SUITE if parsed.command == "test" else [])


if __name__ == "__main__":
    # Started as a file, Python puts this folder first; the scripts import each other as a package instead.
    sys.path[0] = str(ROOT)
    sys.exit(main())
