"""FLUX.1 at its true size with random weights: memory, speed, and how often a pair waits for the card."""

import dataclasses
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import comfy.model_management as management
import comfy.sd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from eraseanything_core.comfy_bridge.architecture import new_flux
from eraseanything_core.comfy_bridge.memory import MemoryPlan
from eraseanything_core.protocols import GIB
from eraseanything_core.training import loss_scale, trainer
from eraseanything_core.training.optimizers import lora_optimizer, trained_bytes
from eraseanything_core.training.placed import placed
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.recipe import estimate_memory
from eraseanything_core.training.run_state import RunState
from eraseanything_core.training.trajectory_cache import TrajectoryCache
from lab.bench.true_size import DEV, true_config
from lab.gpu.card import Card, Peak
from lab.gpu.facts import BACKENDS, attention_seconds, only_attention, product_rate
from lab.gpu.free_memory import PLENTY, told_free
from lab.gpu.hosts import UNWATCHED, LabHost, RandomText
from lab.gpu.outcome import Outcome, Skipped
from lab.gpu.small_model import SHAPE

FP8 = torch.float8_e4m3fn
BF16 = torch.bfloat16
COMPUTE = torch.bfloat16
BLOCK = 2**20  # random weights that are repeated to fill a tensor
SPREAD = 0.02  # standard deviation of the weights
WARM_UP = 5  # pairs before those that are timed
PAIRS = 20  # that are timed
ESTIMATE = (0.85, 1.0)  # peak over estimate
FRAGMENTS = 1.0  # GiB that PyTorch may hold beyond the live tensors
SLOWER = {1: 5.0, 4: 2.0}  # seconds of a pair over those of its products, by batch
WAITS = 2  # of a pair for the card


@dataclass(frozen=True)
class Case:
    """Weights, size of the pictures, tokens of the text, and whether blocks are recomputed."""

    weights: torch.dtype
    pixels: int
    text: int
    recompute: bool

    def __str__(self) -> str:
        kind = "fp8" if self.weights == FP8 else "bf16"
        return f"{kind}, {self.pixels} px, {'recomputed' if self.recompute else 'kept'}"


CASES = (
    Case(FP8, 512, 256, False), Case(FP8, 512, 256, True), Case(FP8, 1024, 512, True), Case(FP8, 1024, 512, False),
    Case(BF16, 512, 256, False), Case(BF16, 512, 256, True),
)  # fmt: skip
TINY_CASES = (Case(FP8, 128, 64, False), Case(BF16, 128, 64, True))


def shape_of(card: Card) -> dict[str, Any]:
    """FLUX.1-dev's, or that of a small model."""
    return SHAPE if card.tiny else DEV


@lru_cache(maxsize=1)  # those of FLUX.1 fill main memory
def random_state(card: Card, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random weights of every tensor, on the CPU."""
    return filled_state(shape_of(card), dtype)


def filled_state(shape: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Random weights of every tensor of a model of that shape, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    block = SPREAD * torch.randn(BLOCK, generator=generator)
    state = {}
    for name, tensor in new_flux(shape, torch.bfloat16, device="meta").state_dict().items():
        values = block.to(dtype)
        repeats = -(-tensor.numel() // BLOCK)
        # Bytes are repeated: not every operation exists for fp8.
        filled = values.view(torch.uint8).repeat(repeats)[: tensor.numel() * dtype.itemsize]
        state[name] = filled.view(dtype).view(tensor.shape)
    return state


def host_of(card: Card, case: Case) -> LabHost:
    """The model as a loader gives it, with random encodings."""
    shape = shape_of(card)
    text = RandomText(case.text, (shape["context_in_dim"], shape["vec_in_dim"]))
    with torch.inference_mode():
        # Not copied: these are up to 24 GB, and no training changes them.
        state = dict(random_state(card, case.weights))
        patcher = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": case.weights})
    return LabHost(patcher, text)


def config_of(case: Case, batch: int = 1, steps: int = WARM_UP + PAIRS):
    """The quick preset with few trajectories: what a pair does is the same."""
    few = {"cached_trajectories": 2, "cached_retain_trajectories": 4, "sampling_steps": 4, "other_neutrals": ()}
    sizes = {"steps": steps, "refresh_every": steps, "batch_size": batch, "retain_batch_size": batch}
    return dataclasses.replace(true_config("quick", case.pixels), **few, **sizes, **UNWATCHED)


class Pairs:
    """A run of which single pairs are asked for.

    Args:
        model: the seam.
        host: its host, for the text.
        config: of the run.
    """

    def __init__(self, model: Any, host: LabHost, config: Any) -> None:
        self.host = host
        self.model = model
        self.plan = placed(prepare(config, host.text_encoder()), model.device)
        self.lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(0))
        self.optimizers = [lora_optimizer(self.lora, rate, config) for rate in (config.lr_low, config.lr_up)]
        self.run = RunState(config, self.lora, self.optimizers, None)
        loss_scale.start(self.optimizers, model.dtype)
        self.epoch = TrajectoryCache(model, self.plan).epoch(0)
        self.number = 0
        self.next()  # the optimisers have their states from the first step on
        self.run.copy_pair()

    def next(self) -> None:
        """One pair."""
        trainer.train_pair(self.model, self.plan, self.epoch, self.number, self.lora, self.optimizers)
        self.number += 1


@contextmanager
def pairs_of(card: Card, case: Case, batch: int = 1) -> Iterator[Pairs]:
    """A run at its second pair; afterwards the card is free again."""
    host = host_of(card, case)
    pairs = None
    try:
        with host.session(COMPUTE, case.recompute) as model:
            pairs = Pairs(model, host, config_of(case, batch))
            yield pairs
    finally:
        if pairs is not None:
            vars(pairs).clear()  # the caller may hold it until the next one
        host = model = None
        card.collect()


def estimate(case: Case, pairs: Pairs) -> MemoryPlan:
    """What a training would say it takes."""
    # A training recomputes blocks where memory is short. A case says it itself.
    with told_free(0 if case.recompute else PLENTY):
        fit = estimate_memory(pairs.host, pairs.plan)
    assert isinstance(fit, MemoryPlan), "as ComfyUI's host gives it"
    assert fit.gradient_checkpointing == case.recompute, "what is free has decided it"
    return fit


def weights_of(card: Card, case: Case) -> int:
    """Bytes of the model's weights."""
    return sum(tensor.nbytes for tensor in random_state(card, case.weights).values())


def kept_by_run(pairs: Pairs) -> int:
    """Bytes of the LoRA, its gradients, its optimisers and the copy of the last whole pair."""
    return trained_bytes(pairs.plan.config, sum(p.numel() for p in pairs.lora.parameters()))


def judge_memory(outcome: Outcome, name: str, ratio: float) -> None:
    """Notes the peak over the estimate."""
    outcome.at_least(f"{name}: peak over estimate", ratio, ESTIMATE[0])
    outcome.at_most(f"{name}: peak over estimate", ratio, ESTIMATE[1])


def measure_memory(outcome: Outcome, card: Card, case: Case, name: str) -> None:
    """Notes the peak of a pair, over what the pack would have said, and what PyTorch holds beyond it."""
    try:
        peak, told = peak_and_estimate(card, case)
    except management.OOM_EXCEPTION as error:
        # The frames hold the graph, and the cases that follow need the memory.
        traceback.clear_frames(error.__traceback__)
        outcome.problems.append(f"{name}: out of memory")
        card.collect()
        return
    outcome.figures[f"{name}: peak GiB"] = peak.live / GIB
    # What `attention_memory.FACTORS` is filled from.
    outcome.figures[f"{name}: activations over estimate"] = (peak.live - told.weights) / told.activations
    ratio = peak.live / (told.activations + told.weights)
    if card.tiny:
        # The estimate is for the size of FLUX.1, whose blocks are all that counts.
        outcome.figures[f"{name}: peak over estimate"] = ratio
    else:
        judge_memory(outcome, name, ratio)
    fragments = None if peak.held is None else peak.held / GIB
    outcome.at_most(f"{name}: GiB held beyond live tensors", fragments, FRAGMENTS)


def peak_and_estimate(card: Card, case: Case) -> tuple[Peak, MemoryPlan]:
    """The memory of a pair with the weights, and what the pack would have said."""
    with pairs_of(card, case) as pairs:
        card.collect()  # what the first pairs have left to PyTorch would count as held
        peak = card.peak(pairs.next)
        if not card.counts:
            # There only what the pair makes is seen.
            peak = peak._replace(live=peak.live + weights_of(card, case) + kept_by_run(pairs))
        return peak, estimate(case, pairs)


def backends_of(card: Card) -> list[str]:
    """The attentions that this card has a backward of."""
    return [name for name in BACKENDS if attention_seconds(card, name) is not None]


def check_memory(card: Card) -> Outcome:
    """Check 5: the peak of a pair over what the pack would have said, by case and by attention."""
    outcome = Outcome()
    cases = TINY_CASES if card.tiny else CASES
    for case in cases:
        measure_memory(outcome, card, case, str(case))
    # Recomputed, so that an attention which keeps its matrices fits, too.
    for name in backends_of(card):
        with only_attention(name):
            measure_memory(outcome, card, cases[1], f"attention by {name}, {cases[1]}")
    return outcome


def judge_speed(outcome: Outcome, batch: int, seconds: float, flop: int, rate: float) -> None:
    """Notes the seconds of a pair against those that its products alone would take."""
    outcome.figures[f"batch {batch}: seconds a pair"] = seconds
    outcome.figures[f"batch {batch}: model FLOP utilisation"] = flop / rate / seconds
    outcome.at_most(f"batch {batch}: times slower than its products", seconds / (flop / rate), SLOWER[batch])


def pair_seconds(card: Card, pairs: Pairs) -> float:
    """Of one of 20 pairs, after five."""
    while not card.tiny and pairs.number < WARM_UP:
        pairs.next()
    timed = 2 if card.tiny else PAIRS
    card.synchronize()
    begun = time.perf_counter()
    for _ in range(timed):
        pairs.next()
    card.synchronize()
    return (time.perf_counter() - begun) / timed


def check_speed(card: Card) -> Outcome:
    """Check 6: 20 pairs after 5, fp8 at 512 px, batch 1 and 4."""
    outcome = Outcome()
    case = (TINY_CASES if card.tiny else CASES)[0]
    rate = product_rate(card)
    for batch in SLOWER:
        with pairs_of(card, case, batch) as pairs:
            with FlopCounterMode(display=False) as counter:
                pairs.next()
            taken = pair_seconds(card, pairs)
        flop = counter.get_total_flops()
        if card.tiny:
            # There the products take no time beside everything else.
            outcome.figures[f"batch {batch}: times slower than its products"] = taken / (flop / rate)
        else:
            judge_speed(outcome, batch, taken, flop, rate)
    return outcome


def check_waiting(card: Card) -> Outcome:
    """Check 7: how often one pair waits for the card.

    Raises:
        Skipped: PyTorch tells that for CUDA only.
    """
    if card.device.type != "cuda":
        raise Skipped("PyTorch tells only on CUDA how often a program waits for the card.")
    outcome = Outcome()
    with pairs_of(card, CASES[0]) as pairs, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            pairs.next()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in told if "synchroniz" in str(warning.message)]
    outcome.at_most("waits in a pair", len(waits), WAITS)
    return outcome
