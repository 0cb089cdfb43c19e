"""One entry for people and CI: sets up what is missing, then runs a command. `python scripts/dev.py --help` lists them.

Everything is installed into .venv and .cache inside the repository. COMFYUI_PATH names an existing ComfyUI to use
instead, and COMFYUI_PYTHON its interpreter if that is not in or beside it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ((3, 10), (3, 13))

# command -> (module that is run, what it does)
COMMANDS = {
    "demo": ("scripts.demo", "erase a concept from TinyFlux in a real ComfyUI and measure it"),
    "test": ("pytest", "run the tests; --quick takes two minutes, other arguments go to pytest"),
    "lint": ("scripts.lint", "check style, formatting and types"),
    "ui": ("scripts.ui", "start ComfyUI with the pack and TinyFlux for a browser"),
    "board": ("lab.boards.command", "compare erasers on TinyFlux; board A to F"),
    "study": ("lab.study.command", "make the page of a user study; study draw draws its ratings"),
    "search": ("lab.measurements.search", "try the trainer's settings on TinyFlux"),
    "presets": ("lab.measurements.presets", "measure the presets on TinyFlux with the word alone"),
    "methods": ("lab.measurements.methods", "measure the methods of Erase Settings on TinyFlux"),
    "shares": ("lab.measurements.shares", "measure what two losses buy at shares of the gradient"),
    "objects": ("lab.measurements.objects", "see whether a picture keeps its object when its style is erased"),
    "gone": ("lab.measurements.gone", "hold the gone score against a judge on TinyFlux"),
    "unasked": ("lab.measurements.unasked", "remove a look from TinyFlux that no prompt names"),
    "multi": ("lab.measurements.multi", "measure how erasers combine on TinyFlux"),
    "merge": ("lab.measurements.merge", "time the merging of 100 erasers of FLUX.1's size"),
    "strength": ("lab.measurements.strength", "measure the dial of Erase Strength on TinyFlux"),
    "survival": ("lab.measurements.survival", "measure what rounding leaves of an eraser on TinyFlux"),
    "families": ("lab.measurements.families", "run the tests of every family of models and write their table"),
    "probe": ("lab.measurements.probe", "measure how well Attention Probe finds objects, and its cost"),
    "attention_erase": ("lab.measurements.attention_erase", "measure Attention Erase on TinyFlux"),
    "without_training": ("lab.measurements.without_training", "compare erasers that need no training, on TinyFlux"),
    "closed_form": ("lab.bench.closed_form", "time Erase Now at FLUX.1-dev's size"),
    "stream_ablation": ("lab.measurements.stream_ablation", "measure by which blocks a word reaches the picture"),
    "attack_benchmark": ("lab.measurements.attack_benchmark", "attack erasers of TinyFlux with searches"),
    "words": ("lab.measurements.words", "write the words that Concept Sampler finds for the paper's concepts"),
    "fleet": ("lab.fleet.command", "do a plan of many concepts on many workers, with Ray"),
    "fleet_benchmark": ("lab.fleet.benchmark", "kill workers of a fleet on TinyFlux, and measure how it scales"),
    "gpu": ("lab.gpu", "check the pack on this machine's card; one sentence where there is none"),
    "bench": ("lab.bench", "count FLOPs and memory at FLUX.1-dev's size, and TinyFlux's CPU time"),
    "ceilings": ("lab.tinyflux.ceilings", "measure what the un-erased TinyFlux can do"),
    "train": ("lab.tinyflux.train", "train TinyFlux from nothing"),
    "world_train": ("lab.world.train", "go on with the models of the next world; stages, see lab/world/README.md"),
    "world_ceilings": ("lab.world.ceilings", "measure what the models of the next world can do"),
    "world_erasures": ("lab.world.erasures", "measure erasers of a model of the next world, only the word given"),
}
NEEDS_TEST_PACKAGES = ("test", "lint")

# Each process starts a ComfyUI, and a file's tests share what they make. As collected, the quick files come last.
IN_TWO_PROCESSES = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
WHOLE_SUITE = [*IN_TWO_PROCESSES, "--durations", "25"]
SMOKE = [
    "tests/comfy/test_server.py::test_the_pack_is_imported",
    "tests/comfy/test_server.py::test_nodes_keep_their_ids_and_the_order_of_their_inputs",
    "tests/comfy/test_workflows.py::test_every_value_is_one_that_its_node_takes",
    "tests/comfy/test_tinyflux.py::test_plain_forward_equals_comfyui",
]
# Over a second a test, or servers that let a client wait: the whole suite runs them.
SLOWEST = ("tests/unit/test_quality.py", "tests/unit/concepts/test_llm.py", "tests/unit/concepts/test_wordnet.py")
# All other unit tests, and a few that show that the pack loads, its workflows fit, and TinyFlux is what it was.
QUICK = [*IN_TWO_PROCESSES, *SMOKE, "tests/unit", *(f"--ignore={file}" for file in SLOWEST)]


def main() -> int:
    """Sets up the environment and runs the command in it; returns its exit code."""
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        version = sys.version.split()[0]
        print(f"Python 3.10 to 3.13 is needed; this is {version} ({sys.executable}).", file=sys.stderr)
        return 1
    from scripts.environment import prepare
    from scripts.steps import StepFailed

    command, arguments = parse(sys.argv[1:])
    try:
        environment = prepare(tests=command in NEEDS_TEST_PACKAGES)
        module, _ = COMMANDS[command]
        run = [str(environment.python), "-m", module, *arguments]
        return subprocess.run(run, cwd=ROOT, env=environment.variables()).returncode
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parse(arguments: list[str]) -> tuple[str, list[str]]:
    """Splits the command from its own arguments, which are passed on as they are."""
    lines = [f"  {name:<18}{text}" for name, (_, text) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="dev.py",
        usage="python scripts/dev.py COMMAND [ARGUMENT ...]",
        description=__doc__,
        epilog="\n".join(["commands:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the command")
    parsed = parser.parse_args(arguments)
    if parsed.command == "test":
        return "test", pytest_arguments(parsed.arguments)
    return parsed.command, parsed.arguments


def pytest_arguments(arguments: list[str]) -> list[str]:
    """What pytest is given: the whole suite in two processes unless somebody asks for something else."""
    if "--quick" in arguments:
        return [*QUICK, *(argument for argument in arguments if argument != "--quick")]
    return arguments or WHOLE_SUITE


if __name__ == "__main__":
    # Started as a file, Python puts this folder first; the scripts import each other as a package instead.
    sys.path[0] = str(ROOT)
    sys.exit(main())
