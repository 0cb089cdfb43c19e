"""Erasing a concept: Algorithm 1 of the paper, with its losses as they are meant.

The trainer sees the model only as the seam that `flux.FluxModel` implements: a velocity, its attention columns, a
trajectory, and trainable slices that can be on (the student) or off (the teacher). All chance comes from the seed
and the step number, so a run that is resumed repeats the one that was never stopped.
"""

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import checkpoint, losses, prompts, sampling, tokens
from .attention import image_feature
from .lora import target_names


@dataclass(frozen=True)
class EraseConfig:
    """Everything that decides a run; two runs with equal configurations give equal bits on one machine."""

    # What is erased, and from which sentences.
    concept: str
    synonyms: tuple[str, ...] = ()
    irrelevant: tuple[str, ...] = ()
    tiers: tuple[tuple[str, ...], ...] = ()  # the same words by kinship: each sentence takes one of each, not k
    templates: tuple[str, ...] = prompts.TEMPLATES
    neutral: str = ""  # see prompts.neutral
    retain: tuple[str, ...] = ()  # whole prompts that must stay: neighbours and generic ones
    retain_own: float = 0.5  # share of retain prompts drawn from `retain`; the others are irrelevant words in templates
    shuffle_rate: float = 0.9
    synonym_rate: float = 0.3  # how often a synonym stands in for the concept as the word to erase
    sentences: int = 64  # how many are drawn and encoded
    # The objective.
    eta: float = 1.0
    tau: float = 0.07
    k_irrelevant: int = 3
    esd: float = 1.0  # weights
    attn: float = 0.1
    retain_weight: float = 1.0
    rsc: float = 0.05
    preserve: str = "teacher"  # or "paper": flow matching on images of the concept (Eq. 4)
    paper_sign: bool = False  # of the reverse self-contrastive loss
    guidance: float = 1.0  # one value for teacher, student and trajectories
    # The points x_t.
    width: int = 512  # px
    height: int = 512
    sampling_steps: int = 28
    mu: float | None = None  # sampling shift; None is the model's
    erase_sigma: tuple[float, float] = (0.0, 1.0)
    map_sigma: tuple[float, float] = (0.6, 1.0)  # where the reverse self-contrastive loss looks
    map_blocks: tuple[int, ...] | None = None  # dual blocks whose attention is read; None is all
    pool: int = 8  # trajectories kept of each kind
    refresh: int = 50  # steps after which they are drawn anew
    # The optimisation.
    steps: int = 200  # pairs of one lower and one upper step
    batch: int = 1
    retain_batch: int = 1
    targets: str = "paper"
    rank: int = 8
    lr_low: float = 1e-3
    lr_up: float = 5e-4
    alternate: bool = True  # False: one summed loss and one optimiser at lr_low
    clip: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0
    dtype: str = "auto"  # of the transformer: auto, bf16, fp32; the LoRA's masters are always fp32
    checkpoint: bool = False  # recompute blocks in backward
    save_every: int = 0  # steps between run states; 0 is never
    samples: int = 0  # images of the concept to make at the end, before and after

    def torch_dtype(self) -> torch.dtype | None:
        return {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}[self.dtype]


@dataclass(frozen=True)
class Plan:
    """A configuration that was checked, with its sentences drawn and encoded."""

    config: EraseConfig
    sentences: list[prompts.Sentence]
    retained: list[prompts.Prompt]
    contexts: dict[str, tuple[Tensor, Tensor]]  # prompt: context [1, tokens, features], pooled [1, features]
    select: dict[prompts.Prompt, Tensor]  # [tokens, 1], one at the word's tokens


@dataclass
class EraseResult:
    """What a run leaves.

    Attributes:
        lora: tensors under their file keys, float32, on the CPU.
        losses: one list a loss, and `loss` for the weighted sum; one entry a step.
        steps: how many steps are in the LoRA.
        interrupted: whether the user stopped it.
        seconds: wall time of the loop.
        config: the configuration, prompts turned into templates.
        samples: latents [samples, c, h, w] of the concept before and after, when they were asked for.
    """

    lora: dict[str, Tensor]
    losses: dict[str, list[float]]
    steps: int
    interrupted: bool
    seconds: float
    config: EraseConfig
    samples: tuple[Tensor, Tensor] | None = None

    def summary(self, saved_as: str) -> str:
        """A few lines for people."""
        state = "interrupted after" if self.interrupted else "trained"
        ends = [f"{name} {v[0]:.4f} -> {sum(v[-10:]) / len(v[-10:]):.4f}" for name, v in self.losses.items() if v]
        return "\n".join(
            [
                f"{self.config.concept!r} erased: {state} {self.steps} of {self.config.steps} steps "
                f"in {self.seconds:.0f} s",
                f"{len(self.lora)} tensors ({self.config.targets}, rank {self.config.rank}) in {saved_as}",
                "first loss -> mean of the last ten: " + ", ".join(ends),
            ]
        )


def prepare(config: EraseConfig, text) -> Plan:
    """Checks the configuration, draws the sentences and encodes every prompt that the run will need.

    Args:
        config: as the user set it; prompts without `{}` become templates here.
        text: has `encode(prompt)` and `pieces(prompt)`; see `flux.TextEncoder`.

    Raises:
        ValueError: a concept that is empty, has no token or is not in the prompt, or settings that cannot work.
    """
    concept = tokens.check_concept(config.concept, text.pieces)
    synonyms = tuple(tokens.check_concept(word, text.pieces) for word in config.synonyms)
    irrelevant = tuple(tokens.check_concept(word, text.pieces) for word in config.irrelevant)
    templates = tuple(prompts.as_template(t, concept) for t in config.templates)
    config = dataclasses.replace(config, concept=concept, synonyms=synonyms, irrelevant=irrelevant, templates=templates)
    check_settings(config)
    rng = random.Random(config.seed)
    sentences = [prompts.sentence(config, rng) for _ in range(config.sentences)]
    retained = [prompts.retained(config, rng) for _ in range(config.sentences)]
    every = {p for s in sentences for p in s.prompts()} | set(retained)
    contexts = {p.text: text.encode(p.text) for p in sorted(every, key=lambda p: p.text)}
    if len({context.shape for context, _ in contexts.values()}) > 1:
        raise ValueError("the prompts differ in encoded length: shorten the longest one")
    select = {p: _select(text.pieces(p.text), p.word) for p in every if p.word}
    return Plan(config, sentences, retained, contexts, select)


def check_settings(config: EraseConfig):
    """Raises ValueError for settings that cannot work, before anything is loaded."""
    target_names(config.targets)
    if config.rsc and not (config.synonyms and config.irrelevant):
        raise ValueError("the rsc loss needs a synonym and irrelevant words: give both, or set its weight to 0")
    for kept in (*config.irrelevant, *config.retain):
        for word in (config.concept, *config.synonyms):
            if tokens.occurs(kept, word):
                raise ValueError(f"{kept!r} is to be kept and holds {word!r}, which is to be erased")
    if not config.templates:
        raise ValueError("there is no prompt template: give at least one, with {} for the concept")
    for name in ("steps", "batch", "retain_batch", "rank", "sentences", "pool", "refresh", "sampling_steps"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1")
    if config.width % 16 or config.height % 16:
        raise ValueError(f"the resolution must be a multiple of 16, not {config.width}x{config.height}")


def _select(pieces: list[str], word: str) -> Tensor:
    select = torch.zeros(len(pieces), 1)
    select[tokens.positions(pieces, word)] = 1
    return select


def train(
    model,
    plan: Plan,
    progress: Callable[[int, dict[str, float]], None] | None = None,
    stops: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    run_dir: Path | None = None,
) -> EraseResult:
    """Trains the slices of `model`; Algorithm 1, one lower and one upper step a pair.

    Args:
        model: the seam, see `flux.FluxModel`.
        plan: from `prepare`.
        progress: called as progress(step, losses) after every pair.
        stops: exceptions with which a user interrupts; from the first full pair on, the result then holds what
            was trained.
        run_dir: where the run's state is kept every `save_every` pairs and resumed from.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    config = plan.config
    lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(config.seed))
    lower, upper = optimizer(lora, config.lr_low, config), optimizer(lora, config.lr_up, config)
    history = checkpoint.resume(run_dir, lora, [lower, upper], config) if run_dir else {}
    first = done = len(history.get("loss", []))
    start, interrupted = time.monotonic(), False
    try:
        for step in range(first, config.steps):
            rng = generator(config.seed, step)
            if step == first or step % config.refresh == 0:
                concept_pool, retain_pool = pools(model, plan, step // config.refresh)

            erase = erase_losses(model, plan, concept_pool, rng)  # lower level
            if config.alternate:
                update(lower, lora, weighted(erase, config), config)
                preserve = preserve_losses(model, plan, concept_pool, retain_pool, rng)  # upper level
                update(upper, lora, weighted(preserve, config), config)
            else:
                preserve = preserve_losses(model, plan, concept_pool, retain_pool, rng)
                update(lower, lora, weighted(erase | preserve, config), config)

            done = step + 1
            record(history, erase | preserve, weighted(erase | preserve, config), step)
            if progress:
                progress(done, {name: values[-1] for name, values in history.items()})
            if run_dir and config.save_every and done % config.save_every == 0:
                checkpoint.save(run_dir, lora, [lower, upper], config, history)
    except stops:
        if not done:
            raise
        interrupted = True
    seconds = time.monotonic() - start
    samples = compare(model, plan) if config.samples and not interrupted else None
    return EraseResult(lora.tensors(torch.float32), history, done, interrupted, seconds, config, samples)


def compare(model, plan: Plan) -> tuple[Tensor, Tensor]:
    """Latents of the plain concept by the teacher and by the student, from the same noise."""
    config = plan.config
    sigmas, shape = schedule(model, config), (config.samples, *latent_shape(model, config))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(config.seed))
    cond = conds(model, plan, [plan.sentences[0].concept] * config.samples)
    before, after = (list(model.trajectory(cond, noise, sigmas, adapters))[-1][0] for adapters in (False, True))
    return before.cpu(), after.cpu()


def schedule(model, config: EraseConfig) -> Tensor:
    return sampling.shifted_sigmas(config.sampling_steps, model.mu if config.mu is None else config.mu)


def latent_shape(model, config: EraseConfig) -> tuple[int, int, int]:
    return model.channels, config.height // model.downscale, config.width // model.downscale


def pools(model, plan: Plan, epoch: int) -> tuple[sampling.Pool, sampling.Pool]:
    """Trajectories of the frozen model for sentences that hold the concept, and for prompts that must stay."""
    config, sigmas = plan.config, schedule(model, plan.config)
    rng = generator(config.seed, -1 - epoch)
    made = []
    for sources in (plan.sentences, plan.retained):
        chosen = torch.randint(len(sources), (config.pool,), generator=rng).tolist()
        made.append(fill_pool(model, plan, [sources[i] for i in chosen], sigmas, rng))
    return made[0], made[1]


def fill_pool(model, plan: Plan, sources: list, sigmas: Tensor, rng: torch.Generator) -> sampling.Pool:
    """One trajectory a source, a few at a time."""
    noise = torch.randn(len(sources), *latent_shape(model, plan.config), generator=rng)
    texts = [s.concept if isinstance(s, prompts.Sentence) else s for s in sources]
    together = 4 * plan.config.batch
    parts = [
        sampling.collect(model.trajectory(conds(model, plan, texts[i : i + together]), noise[i : i + together], sigmas))
        for i in range(0, len(sources), together)
    ]
    x, v = (torch.cat(found) for found in zip(*parts, strict=True))
    return sampling.Pool(sources, x, v, sigmas)


def erase_losses(model, plan: Plan, pool: sampling.Pool, rng: torch.Generator) -> dict[str, Tensor]:
    """The lower level: L_esd and L_attn from one forward of the student, on the teacher's trajectory."""
    config = plan.config
    row, step = pool.draw(config.batch, config.erase_sigma, rng)
    x_t, sigma, teacher = pool.at(row, step, model.device)
    sentences = [pool.sources[i] for i in row]
    concept = [s.concept for s in sentences]
    capture = model.capture(selected(model, plan, concept), config.map_blocks) if config.attn else None
    student = model.velocity(x_t, sigma, conds(model, plan, concept), adapters=True, capture=capture)
    neutral = model.velocity(x_t, sigma, conds(model, plan, [s.neutral for s in sentences]), adapters=False)
    found = {"esd": losses.esd_loss(student, teacher, neutral, config.eta)}
    if capture:
        found["attn"] = losses.attention_loss(image_feature(capture.maps))
    return found


def preserve_losses(
    model, plan: Plan, concept_pool: sampling.Pool, retain_pool: sampling.Pool, rng: torch.Generator
) -> dict[str, Tensor]:
    """The upper level: stay at the teacher where the concept is absent, and bend the concept's attention."""
    config, found = plan.config, {}
    if config.retain_weight and config.preserve == "teacher":
        row, step = retain_pool.draw(config.retain_batch, (0.0, 1.0), rng)
        x_t, sigma, teacher = retain_pool.at(row, step, model.device)
        kept = [retain_pool.sources[i] for i in row]
        student = model.velocity(x_t, sigma, conds(model, plan, kept), adapters=True)
        found["retain"] = losses.retain_loss(student, teacher)
    if config.retain_weight and config.preserve == "paper":
        found["retain"] = paper_retain(model, plan, concept_pool, rng)
    if config.rsc:
        row, step = concept_pool.draw(config.batch, config.map_sigma, rng)
        x_t, sigma, _ = concept_pool.at(row, step, model.device)
        found["rsc"] = rsc(model, plan, [concept_pool.sources[i] for i in row], x_t, sigma)
    return found


def paper_retain(model, plan: Plan, pool: sampling.Pool, rng: torch.Generator) -> Tensor:
    """The paper's Eq. 4 on the ends of the concept's trajectories."""
    row = torch.randint(len(pool.sources), (plan.config.retain_batch,), generator=rng)
    x_0 = pool.x[row, -1].to(model.device)
    noise = torch.randn(x_0.shape, generator=rng).to(model.device)
    sigma = torch.rand(len(row), generator=rng).to(model.device)
    t = sigma[:, None, None, None]
    concept = conds(model, plan, [pool.sources[i].concept for i in row])
    student = model.velocity((1 - t) * x_0 + t * noise, sigma, concept, adapters=True)
    return losses.flow_matching_loss(student, x_0, noise)


def rsc(model, plan: Plan, sentences: list[prompts.Sentence], x_t: Tensor, sigma: Tensor) -> Tensor:
    """L_rsc with every prompt's own span, all at the same x_t; only the concept's feature carries a gradient."""
    config = plan.config

    def feature(chosen: list[prompts.Prompt], repeats: int, adapters: bool) -> Tensor:
        capture = model.capture(selected(model, plan, chosen), config.map_blocks)
        where = x_t.repeat_interleave(repeats, 0), sigma.repeat_interleave(repeats, 0)
        return image_feature(model.columns(*where, conds(model, plan, chosen), adapters, capture))

    un = feature([s.concept for s in sentences], 1, adapters=True)
    others = [p for s in sentences for p in (s.synonym, *s.irrelevant)]
    known = feature(others, len(others) // len(sentences), adapters=False)
    known = known.unflatten(0, (len(sentences), -1))  # b 1+K queries
    return losses.rsc_loss(un, known[:, 0], known[:, 1:], config.tau, config.paper_sign)


def conds(model, plan: Plan, chosen: Iterable[prompts.Prompt]):
    """A batch of conditions, all at the run's guidance."""
    contexts, pooled = zip(*(plan.contexts[p.text] for p in chosen), strict=True)
    return model.cond(torch.cat(contexts), torch.cat(pooled), plan.config.guidance)


def selected(model, plan: Plan, chosen: Iterable[prompts.Prompt]) -> Tensor:
    """[b, tokens, 1], one at the tokens of each prompt's own word."""
    return torch.stack([plan.select[p] for p in chosen]).to(model.device)


def generator(seed: int, step: int) -> torch.Generator:
    """The chance of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def optimizer(lora, lr: float, config: EraseConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(lora.parameters(), lr=lr, weight_decay=config.weight_decay)


def weighted(found: dict[str, Tensor], config: EraseConfig) -> Tensor:
    """The weighted sum of the losses that were computed."""
    weights = {"esd": config.esd, "attn": config.attn, "retain": config.retain_weight, "rsc": config.rsc}
    return sum(weights[name] * loss for name, loss in found.items())


def update(optimizer: torch.optim.Optimizer, lora, loss: Tensor, config: EraseConfig):
    """One clipped step."""
    if not torch.is_tensor(loss):  # every weight of this level is 0
        return
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(lora.parameters(), config.clip)
    optimizer.step()


def record(history: dict[str, list[float]], found: dict[str, Tensor], total: Tensor, step: int):
    """Appends a pair's losses.

    Raises:
        FloatingPointError: one is NaN or infinite.
    """
    for name, loss in {**found, "loss": total}.items():
        value = float(torch.as_tensor(loss).detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {name} loss became {value} at step {step + 1}: lower the learning rates or take fp32"
            )
        history.setdefault(name, []).append(value)
