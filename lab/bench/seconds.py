"""CPU time of a pair on TinyFlux against the published code's schedule, interleaved in one run.

Both run ComfyUI's Flux through the same seam, at batch 1; a ratio of CPU times says nothing about a GPU.
"""

import statistics
import time

import torch

from eraseanything_core.training import trainer
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.presets import PRESETS
from lab.bench.reference import reference_pair
from lab.tinyflux.erase import trainable
from lab.tinyflux.pipeline import Pipeline, TrainerText, flux
from lab.tinyflux.recipe import erase_config


def cpu_seconds(work) -> float:
    """The CPU time that a call takes, of all threads."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def pair_seconds(rounds: int = 5, concept: str = "star") -> dict:
    """Medians over runs of 100 pairs, pools included; every tenth pair a pair of the reference is run and timed."""
    pipeline = Pipeline(flux())
    ours = []
    theirs = []
    for seed in range(rounds):
        config = erase_config(concept, **PRESETS["quick"], batch_size=1, retain_batch_size=1, seed=seed)
        plan = prepare(config, TrainerText(pipeline))
        inside = []
        with trainable(pipeline) as model, trainable(pipeline) as other:
            lora = other.attach("paper", 8, torch.Generator().manual_seed(seed))
            shapes = ((1, 16, 12, 12), *(t.shape for t in plan.encode(plan.sentences[0].concept.text)))

            def between(done: int, _, inside=inside, other=other, lora=lora, shapes=shapes):
                if done % 10 == 0:
                    inside.append(cpu_seconds(lambda: reference_pair(other, lora, shapes, 28, 3)))

            whole = cpu_seconds(lambda m=model, p=plan, b=between: trainer.train(m, p, b))
        ours.append((whole - sum(inside)) / config.steps)
        theirs += inside
        print(f"run {seed + 1}: {ours[-1]:.4f} s a pair, theirs {statistics.median(inside):.4f} s", flush=True)
    mine = statistics.median(ours)
    other = statistics.median(theirs)
    return {
        "pair_seconds_ratio": other / mine,
        "seconds": {"ours": mine, "reference": other, "runs": rounds, "reference_pairs": len(theirs)},
    }
