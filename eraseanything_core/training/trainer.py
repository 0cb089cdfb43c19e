"""The training loop: Algorithm 1 of the paper.

The trainer sees a model only as `protocols.ErasableModel`. All chance comes from the seed and the pair's number, so a
run that is resumed repeats the one that was never stopped.
"""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..protocols import ErasableModel, TrainableLora
from ..quoting import quoted
from . import loss_scale
from .config import EraseConfig
from .gone import Verdict
from .gradient_shares import shared_weights
from .method import Method, Pair
from .monitor import Monitor, look_eta, look_factor, rate_notes, stop_reason
from .neutral_choice import choose_neutral
from .objective import Losses
from .optimizers import lora_optimizer, set_rate
from .placed import placed
from .plan import DEFER_LOSSES, Plan, conds, generator
from .run_state import READ_EVERY, RunState
from .trajectories import latent_shape, run_sigmas
from .trajectory_cache import Epoch, Report, TrajectoryCache

Progress = Callable[[int, dict[str, float]], None]  # (pairs done, the losses that were read last)
Show = Callable[[Tensor | None, RunState], None]  # (latents [3, c, h, w] of new previews or None, the run)
NOT_MEASURED = "whether the concept is gone was not measured"
SUMMARY_TAIL = 10  # pairs over which the summary averages a run's last losses


@dataclass
class EraseResult:
    """What a run leaves.

    Attributes:
        lora: tensors under their file keys, float32, on the CPU.
        losses: one list a loss, and `loss` for the weighted sum; one entry a pair.
        steps: pairs that are in the LoRA.
        interrupted: whether the user stopped it.
        seconds: wall time of the loop.
        config: the configuration, prompts turned into templates.
        samples: latents [preview_images, c, h, w] of the concept before and after, when they were configured.
        scores: the monitor's measurements, `pair` and one list a score.
        verdict: of the last look; None when nothing was measured.
        notes: what the user should know about the run, one line each.
    """

    lora: dict[str, Tensor]
    losses: dict[str, list[float]]
    steps: int
    interrupted: bool
    seconds: float
    config: EraseConfig
    samples: tuple[Tensor, Tensor] | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)
    verdict: Verdict | None = None
    notes: list[str] = field(default_factory=list)

    def summary(self, saved_as: str) -> str:
        """A few lines for the user; `saved_as` is the name of the LoRA file."""
        state = "stopped at" if self.interrupted else "trained"
        if self.config.method != EraseConfig.method:
            state = f"{self.config.method}, {state}"
        changes = []
        for name, values in self.losses.items():
            if values:
                tail = values[-SUMMARY_TAIL:]
                changes.append(f"{name} {values[0]:.4f} -> {sum(tail) / len(tail):.4f}")
        lines = [
            f"{quoted(self.config.concept)}: {state} {self.steps} of {self.config.steps} steps in {self.seconds:.0f} s",
            self.verdict.text() + advice(self.verdict) if self.verdict else NOT_MEASURED,
            f"{len(self.lora)} tensors ({self.config.targets}, rank {self.config.rank}) in {saved_as}",
            "first loss -> mean of the last ten: " + ", ".join(changes),
            *self.notes,
        ]
        return "\n".join(lines)


def advice(verdict: Verdict) -> str:
    """What helps a run whose pictures still show the concept; empty where none does."""
    if not verdict.shown:
        return ""
    return ": take the preset thorough or more steps, or give more sentences in a concept set"


def train(
    model: ErasableModel,
    plan: Plan,
    progress: Progress | None = None,
    stops: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    run_dir: Path | None = None,
    show: Show | None = None,
    report: Report | None = None,
    method: Method | None = None,
) -> EraseResult:
    """Trains a LoRA on the model.

    Args:
        model: student and teacher; the LoRA is attached here.
        plan: from `plan.prepare`.
        progress: called after every pair.
        stops: exceptions with which a user interrupts. From the first whole pair on, the result then holds what was
            trained; before it, the exception is passed on.
        run_dir: the folder of the run's state. It is written every `save_every` pairs and at the end, and a state
            that lies there is resumed.
        show: called with previews every `monitor_every` pairs, and without them whenever the losses were read.
        report: called while the original model is asked what the next pairs need; see `TrajectoryCache`.
        method: that of the settings; None is EraseAnything.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
        OSError: the state cannot be written, or the disk has no room for the trajectories.
        ValueError: the state in `run_dir` is damaged or of another run.
    """
    config = plan.config
    method = method or Method()
    assert method.name == config.method, f"the settings are for {config.method}: give registry.method_of(config)"
    plan = placed(plan, model.device)
    run = begun(model, plan, run_dir)
    start = time.monotonic()
    try:
        # It follows from the frozen model alone, so a resumed run chooses what the one before it chose.
        plan, neutral_note = choose_neutral(model, plan, report)
        method.begin(model, plan, run.lora)
        interrupted, verdict = train_pairs(model, plan, run, method, progress, stops, show, report)
        run.save(finished=not interrupted)
    except BaseException:
        # A user's interrupt ends here as well. A new folder without a state would only be left behind.
        run.discard_if_new()
        raise
    seconds = time.monotonic() - start
    samples = None
    # Who interrupts wants the end now, and these pictures take two whole samplings.
    if config.preview_images and not interrupted:
        samples = before_and_after(model, plan)
    return EraseResult(
        lora=method.tensors(run.lora),
        losses=run.losses,
        steps=run.steps_done,
        interrupted=interrupted,
        seconds=seconds,
        config=with_weights(plan, run).config,
        samples=samples,
        scores=run.scores,
        verdict=verdict,
        notes=notes_of(run, config, neutral_note),
    )


def begun(model: ErasableModel, plan: Plan, run_dir: Path | None) -> RunState:
    """A run before its first pair, or where the one in `run_dir` was stopped; for the arguments see `train`."""
    config = plan.config
    lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(config.seed))
    # Two optimizers: each level has its own learning rate, and its moments are of its own gradients alone.
    lower = lora_optimizer(lora, config.lr_low, config)
    upper = lora_optimizer(lora, config.lr_up, config)
    # Fetching a loss waits for the device, so a run fetches those of several pairs at once.
    read_every = READ_EVERY if DEFER_LOSSES in plan.shortcuts else 1
    run = RunState(config, lora, [lower, upper], run_dir, read_every, plan.base)
    loss_scale.start(run.optimizers, model.dtype)
    return run


def notes_of(run: RunState, config: EraseConfig, neutral_note: str) -> list[str]:
    """What the user should know about a run that has ended, one line each."""
    stopped = stop_reason(config, run.scores) if run.steps_done < config.steps else ""
    lines = (stopped, neutral_note, loss_scale.skipped_note(run.optimizers))
    return [*filter(None, lines), *rate_notes(config, run.scores)]


def train_pairs(
    model: ErasableModel,
    plan: Plan,
    run: RunState,
    method: Method,
    progress: Progress | None,
    stops: tuple[type[BaseException], ...],
    show: Show | None,
    report: Report | None,
) -> tuple[bool, Verdict | None]:
    """The loop over the pairs that are left; for the arguments see `train`.

    Returns:
        Whether the user interrupted it, and the verdict on the LoRA, if it was measured. After an interrupt the LoRA
        is that of the last whole pair, on which there is none.
    """
    config = plan.config
    first = run.steps_done
    epoch: Epoch | None = None
    try:
        cache = TrajectoryCache(model, plan, report)
        # The teacher's pictures are drawn here, once. Every look draws the student's alone.
        monitor = Monitor(model, plan, report) if config.monitor_every else None
        for step in range(first, config.steps):
            # Before the pair and not after it: a resumed run that has met its bound already ends at once.
            if stop_reason(config, run.scores):
                break
            if epoch is None or step % config.refresh_every == 0:
                epoch = None  # the old trajectories go before the new ones take their memory
                epoch = run.epoch(cache, step // config.refresh_every)
            if step == 0:
                run.weights.update(shared_weights(model, plan, epoch, run.lora))

            one_pair(model, plan, epoch, step, run, method)
            after_pair(run, monitor, show, progress)
        if finish_once(model, plan, run, method) and monitor:
            monitor.verdict = None  # it was on other factors
        return False, last_verdict(monitor, run)
    except stops:
        # Without one whole pair there is nothing to hand on.
        if not run.steps_done:
            raise
        run.restore_pair()
        return True, None
    except FloatingPointError:
        raise  # not saved: the factors are spoiled, and the last saved state is what one can go on from
    except Exception as error:
        # Out of memory, or the disk is full: the last whole pair is worth keeping. The frames of the pair that failed
        # hold its graph, and what follows needs the memory.
        traceback.clear_frames(error.__traceback__)
        run.restore_pair()
        run.save()
        raise


def one_pair(model: ErasableModel, plan: Plan, epoch: Epoch, step: int, run: RunState, method: Method) -> None:
    """Trains a pair of a run with what the looks before it have found, and counts it."""
    config = plan.config
    # A user's interrupt waits until both steps of a pair are done and counted.
    with model.uninterrupted():
        factor = look_factor(config, run.scores)
        weighed = with_weights(plan, run, eta=look_eta(config, run.scores))
        losses = train_pair(model, weighed, epoch, step, run.lora, run.optimizers, factor, method)
        run.add_pair(step, losses)


def after_pair(run: RunState, monitor: Monitor | None, show: Show | None, progress: Progress | None) -> None:
    """Looks, shows, tells and saves after a pair, each where it is due; for the arguments see `train`."""
    config = run.config
    looked = monitor is not None and run.steps_done % config.monitor_every == 0
    if monitor and looked:
        run.add_scores(monitor.look())
    if show and (looked or not run.pending):
        show(monitor.previews if monitor and looked else None, run)
    if progress:
        progress(run.steps_done, run.last_losses())
    if config.save_every and run.steps_done % config.save_every == 0:
        run.save()


def finish_once(model: ErasableModel, plan: Plan, run: RunState, method: Method) -> bool:
    """Lets a method do what it does after its last pair; whether anything was done.

    A run that was resumed at its end has it done already, which is remembered beside what its method remembers.
    """
    remembered = run.optimizers[0].param_groups[0]
    if remembered.get("method finished") == run.steps_done or not method.finish(model, plan, run.lora):
        return False
    remembered["method finished"] = run.steps_done
    run.copy_pair()
    return True


def last_verdict(monitor: Monitor | None, run: RunState) -> Verdict | None:
    """The verdict on the LoRA as it is at the end; a run that ends between two looks gets one more."""
    if monitor is None:
        return None
    if monitor.verdict is None or run.scores["pair"][-1] != run.steps_done:
        scores = monitor.look()
        # A run that was resumed at its end has this look in its curves already.
        if run.scores.get("pair", [0])[-1] != run.steps_done:
            run.add_scores(scores)
    return monitor.verdict


def with_weights(plan: Plan, run: RunState, **found: Any) -> Plan:
    """The plan with the weights of losses that the run has found, and other settings that it has."""
    return replace(plan, config=replace(plan.config, **run.weights, **found))


def train_pair(
    model: ErasableModel,
    plan: Plan,
    epoch: Epoch,
    step: int,
    lora: TrainableLora,
    optimizers: list[torch.optim.Optimizer],
    factor: float = 1.0,
    method: Method | None = None,
) -> Losses:
    """One lower and one upper step, or whatever a method does in their place.

    Args:
        model: student and teacher.
        plan: the run's.
        epoch: the trajectories and draws of this pair.
        step: the pair's number.
        lora: what is trained.
        optimizers: of the lower and the upper level.
        factor: what the learning rates are multiplied by; see `monitor.look_factors`.
        method: None is EraseAnything.

    Returns:
        The losses, detached, on the device.
    """
    config = plan.config
    lower, upper = optimizers
    # From the pair's number alone, so no scheduler has a state that would have to be saved.
    set_rate(lower, factor * config.lr_low, step, config)
    set_rate(upper, factor * config.lr_up, step, config)
    rng = generator(config.seed, step + 2**40)  # the offset keeps it apart from the generators of all draws
    return (method or Method()).step(Pair(model, plan, epoch, step, lora, optimizers, rng))


def before_and_after(model: ErasableModel, plan: Plan) -> tuple[Tensor, Tensor]:
    """Latents [preview_images, c, h, w] of a sentence with the concept, by teacher and by student, from one noise."""
    config = plan.config
    sigmas = run_sigmas(model, config)
    shape = (config.preview_images, *latent_shape(model, config))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(config.seed))
    # One prompt, and for both models the same noise: the pictures differ by the LoRA alone.
    cond = conds(model, plan, [plan.sentences[0].concept] * config.preview_images)
    latents = []
    for adapters in (False, True):
        walk = list(model.trajectory(cond, noise, sigmas, adapters))
        x_0, _ = walk[-1]
        latents.append(x_0.cpu())
    before, after = latents
    return before, after
