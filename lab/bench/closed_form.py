"""Seconds of Erase Now at FLUX.1-dev's size on this processor: `python scripts/dev.py closed_form`.

Only the two linears that the closed form changes are made, at their true shapes, with random states of the true number
and width. Encoding the prompts is counted in operations and not timed: T5-XXL's weights are not at hand.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.erasers.erase_now import METHODS, ClosedFormConfig, Method, erase_now
from lab.provenance import BENCHMARKS, commit, write_report

CONTEXT, POOLED = "context_embedder", "time_text_embed.text_embedder.linear_1"
SHAPES = {CONTEXT: (3072, 4096), POOLED: (3072, 768)}  # rows and columns of FLUX.1-dev's weights
TOKENS = 256  # of ComfyUI's T5-XXL for FLUX.1, at least
T5_PARAMETERS = 4.76e9  # of T5-XXL's encoder, each of which multiplies and adds once a token
OUTLIERS = 1e2  # how much larger T5's largest features are than the others
SEED = 0


class RandomText:
    """FLUX.1-dev's linears with random weights, and a text encoder of random states; see `erase_now.TextReader`."""

    def __init__(self) -> None:
        self.keys = [CONTEXT]
        self.pooled = [POOLED]
        g = torch.Generator().manual_seed(SEED)
        self.weights = {key: torch.randn(shape, generator=g) / shape[1] ** 0.5 for key, shape in SHAPES.items()}
        # A few features of T5 are far larger than the others: what makes the sums ill-conditioned.
        self.scale = {
            key: torch.where(torch.rand(shape[1], generator=g) < 0.01, OUTLIERS, 1.0) for key, shape in SHAPES.items()
        }

    def weight(self, key: str) -> Tensor:
        return self.weights[key]

    def group(self, key: str) -> str:
        return key

    def read(self, prompts: Iterable[str], progress: Callable[[int], None]) -> None:
        pass

    def pieces(self, key: str, prompt: str) -> list[str]:
        words = [f"▁{word}" for word in prompt.split()]
        return words + [""] * (TOKENS - len(words))

    def states(self, key: str, prompt: str) -> Tensor:
        rows = TOKENS if key == CONTEXT else 1
        own = torch.Generator().manual_seed(hash_of(prompt))
        return torch.randn(rows, SHAPES[key][1], generator=own) * self.scale[key]


def hash_of(prompt: str) -> int:
    """The same number for a prompt in every process."""
    return sum((i + 1) * ord(letter) for i, letter in enumerate(prompt)) % 2**31


def measure(method: Method, rank: int) -> dict[str, object]:
    """One erasing of `cat` with the words that the node takes."""
    config = ClosedFormConfig.of(sample_offline(ConceptRequest("cat")), method, rank, SEED)
    begun = time.monotonic()
    processor = time.process_time()
    result = erase_now(config, RandomText(), lambda done: None)
    return {
        "method": method,
        "rank": rank or "exact",
        "seconds": round(time.monotonic() - begun, 1),
        "processor seconds": round(time.process_time() - processor, 1),
        "prompts": result.prompts,
        "ranks": [linear.rank for linear in result.linears.values()],
        "truncation": [round(linear.truncation, 4) for linear in result.linears.values()],
        "encoding, Tflop": round(result.prompts * TOKENS * 2 * T5_PARAMETERS / 1e12),
    }


def main() -> None:
    """Measures every method, exact and at rank 128, and writes benchmarks/closed_form.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for method in METHODS:
        for rank in (0, 128):
            rows.append(measure(method, rank))
            print(rows[-1], flush=True)
    report = {
        "command": f"python scripts/dev.py closed_form --threads {args.threads}",
        "commit": commit(),
        "rows": rows,
        "peak memory, GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    write_report(BENCHMARKS / "closed_form", report, markdown(report))


def markdown(report: dict) -> str:
    """The report as a table."""
    lines = [
        "# Erase Now at FLUX.1-dev's size",
        "",
        f"`{report['command']}` at {report['commit']}: random weights and states of true shapes, on this processor. "
        f"Peak memory {report['peak memory, GiB']} GiB, imports included.",
        "",
        "| method | rank | processor seconds | wall seconds | prompts | ranks of both linears | lost by the rank |",
        "| --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for row in report["rows"]:
        ranks = ", ".join(map(str, row["ranks"]))
        lost = ", ".join(f"{value:.2%}" for value in row["truncation"])
        lines.append(
            f"| {row['method']} | {row['rank']} | {row['processor seconds']} | {row['seconds']} | {row['prompts']} | "
            f"{ranks} | {lost} |"
        )
    cost = report["rows"][0]["encoding, Tflop"]
    lines += [
        "",
        f"Encoding the prompts takes about {cost} Tflop more, wherever the text encoder runs; not timed here.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
