"""What 100 concepts take on 8 cards, on paper, and the fleet's benchmark as Markdown.

The FLOPs of a training are counted (`python scripts/dev.py bench`). The rate of a card is its published peak times a
share that is assumed, since nobody has measured it. Trainings do not wait for each other, so cards divide them.
"""

import json
import math
from typing import Any

from lab.provenance import BENCHMARKS

CONCEPTS = 100
CARDS = 8
ASSUMED_SHARES = (0.3, 0.5)  # of the peak
# Dense bf16 with float32 sums, in FLOP/s, from NVIDIA's data sheets of H100 SXM, A100 and the Ada whitepaper.
PEAKS = {"H100 SXM": 989e12, "A100": 312e12, "RTX 4090": 165e12}
MINUTE = 60  # seconds


def estimate() -> dict[str, Any]:
    """Minutes for all concepts, by preset, card and assumed share."""
    counted = json.loads((BENCHMARKS / "results.json").read_text(encoding="utf-8"))["pflop_with_looks"]
    rounds = math.ceil(CONCEPTS / CARDS)  # of the card that has most to do
    minutes: dict[str, dict[str, list[float]]] = {}
    for preset, pflop in counted.items():
        for card, peak in PEAKS.items():
            seconds = [rounds * pflop * 1e15 / (peak * share) for share in ASSUMED_SHARES]
            minutes.setdefault(preset, {})[card] = [round(each / MINUTE, 1) for each in seconds]
    return {
        "concepts": CONCEPTS,
        "cards": CARDS,
        "trainings_a_card": rounds,
        "assumed_shares_of_peak": list(ASSUMED_SHARES),
        "counted_pflop": {preset: round(pflop, 1) for preset, pflop in counted.items()},
        "minutes": minutes,
    }


def markdown(report: dict[str, Any]) -> str:
    """The benchmark for people."""
    lines = [
        "# A fleet on TinyFlux",
        "",
        f"`{report['command']}` at {report['commit']}, {report['cpus']} CPU cores.",
        "",
    ]
    lines += [
        f"{report['jobs']} trainings by three workers on two emulated machines. A worker was killed at a random moment "
        f"{report['killed']} times, which made {sum(report['attempts'])} attempts.",
        "",
        "| figure | value |",
        "| --- | ---: |",
        f"| results that landed | {report['done']} of {report['jobs']} |",
        f"| results that were replaced later | {report['replaced']} |",
        f"| LoRA files equal to one worker's and to two workers', bit for bit | {report['equal']} |",
        f"| jobs per CPU second, 1 worker | {report['jobs_per_cpu_second_1']} |",
        f"| jobs per CPU second, 2 workers | {report['jobs_per_cpu_second_2']} |",
        f"| efficiency of 2 workers | {report['efficiency_2']:.1%} |",
        "",
        "Each worker loads the model once, which counts: two workers load it twice for the same jobs. A CPU second "
        "does not tell how long one waits; other programs ran on these cores.",
        "",
        *_paper(report["on_paper"]),
    ]
    return "\n".join(lines) + "\n"


def _paper(paper: dict[str, Any]) -> list[str]:
    shares = " to ".join(f"{share:.0%}" for share in reversed(paper["assumed_shares_of_peak"]))
    lines = [
        f"## {paper['concepts']} concepts on {paper['cards']} cards, on paper",
        "",
        "Not measured. The FLOPs of a training at FLUX.1-dev's size are counted (`python scripts/dev.py bench`), with "
        f"512 px and the whole budget of pairs. A card is taken to reach {shares} of its published bf16 peak. "
        f"The card with most to do trains {paper['trainings_a_card']} of them. Loading is left out.",
        "",
        "| preset | PFLOP a concept | " + " | ".join(f"{card}, minutes" for card in PEAKS) + " |",
        "| --- | ---: |" + " ---: |" * len(PEAKS),
    ]
    for preset, cards in paper["minutes"].items():
        cells = [f"{min(each):.0f} to {max(each):.0f}" for each in cards.values()]
        lines.append(f"| `{preset}` | {paper['counted_pflop'][preset]} | {' | '.join(cells)} |")
    return lines
