"""Every attack that searches, with latents where ComfyUI keeps them: on the card with --gpu-only."""

import math

import torch

from eraseanything_core.evaluation.attack_runs import run_genetic_attack, run_inversion, run_relearning
from eraseanything_core.evaluation.genetic_attack import GeneticConfig
from eraseanything_core.evaluation.weight_attacks import REFLUX, ConceptExamples, InversionConfig, RelearnConfig
from lab.gpu.attention import random_lora
from lab.gpu.card import Card
from lab.gpu.hosts import LabHost, tinyflux_host
from lab.gpu.outcome import Outcome

WORD = "heart"
PROMPT = "a photo of a red heart"
STEPS = 2


class Vocabulary(LabHost):
    """TinyFlux's host with the words that a search may take."""

    def vocabulary(self) -> tuple[str, ...]:
        """A few pieces of T5."""
        return tuple(f"▁{word}" for word in ("red", "green", "shape", "love", "paper", "round", "card", "symbol"))


def check(card: Card) -> Outcome:
    """Check 16: two steps of each; every loss is finite."""
    outcome = Outcome()
    host = tinyflux_host(dtype=torch.float32 if card.tiny else torch.bfloat16)
    host = Vocabulary(host.model, host.text)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 16, 12, 12, generator=generator).to(card.device)
    examples = ConceptExamples(latents, PROMPT, WORD)
    relearn = RelearnConfig(steps=STEPS, batch_size=2, **REFLUX)
    # Its factors lie on the CPU, as those of a file do.
    eraser = random_lora(host)
    *_, inverted = run_inversion(host, eraser, examples, InversionConfig(steps=STEPS, batch_size=2))
    _, relearned = run_relearning(host, eraser, examples, relearn)
    config = GeneticConfig(generations=STEPS, population=4)
    _, fitness = run_genetic_attack(host, WORD, [PROMPT.replace(WORD, "{}")], [], config)
    for name, values in (("inversion", inverted), ("relearning", relearned), ("genetic search", fitness)):
        outcome.must(f"{name}: finite", len(values) > 0 and all(math.isfinite(value) for value in values))
    return outcome
