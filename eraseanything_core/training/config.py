"""The settings of a run, and the check that they can work together."""

from dataclasses import dataclass

import torch

from ..concepts import matching, prompts
from ..lora.keys import check_targets
from ..quoting import quoted
from . import divergences

# Settings that count something: none of them may be below 1.
COUNTS = (
    "steps",
    "batch_size",
    "retain_batch_size",
    "rank",
    "sentences",
    "cached_trajectories",
    "refresh_every",
    "sampling_steps",
    "look_pictures",
    "look_steps",
    "gradient_accumulation_steps",
)


@dataclass(frozen=True)
class EraseConfig:
    """Everything that decides a run.

    Two runs with equal configurations give equal bits on one machine's CPU. On a GPU `deterministic` asks
    PyTorch for the same; nobody has measured it there.

    A pair is one lower (erasing) step and one upper (preserving) step of Algorithm 1. `steps` counts pairs.
    """

    # What is erased, and in which sentences.
    concept: str
    synonyms: tuple[str, ...] = ()
    irrelevant: tuple[str, ...] = ()
    tiers: tuple[tuple[str, ...], ...] = ()  # the irrelevant words by kinship; a sentence takes one word of each tier
    templates: tuple[str, ...] = prompts.DEFAULT_TEMPLATES
    neutral: str = ""  # see prompts.neutral_prompt
    other_neutrals: tuple[str, ...] = ()  # `{word}` each; see neutral_choice.choose_neutral
    unasked: str = ""  # instead of a concept: a look that no prompt names, with {} for the prompt
    wanted: str = ""  # the look that is painted in its place
    retain: tuple[str, ...] = ()  # whole prompts to preserve: neighbours of the concept and generic ones
    watched: tuple[str, ...] = ()  # whole prompts to preserve that are measured and never trained on
    retain_prompt_share: float = 0.5  # share drawn from `retain`; the others are irrelevant words in templates
    shuffle_rate: float = 0.9
    synonym_rate: float = 0.3  # how often a synonym is erased in the concept's place
    sentences: int = 64  # how many sentences are drawn
    # The objective.
    eta: float = 1.0
    tau: float = 0.07
    k_irrelevant: int = 3
    esd_weight: float = 1.0
    attn_weight: float = 0.1
    attn_share: float = 0.0  # of the first gradients; above 0 it sets attn_weight, see gradient_shares
    attention_reduction: str = "mean"  # or "sum", "l2"; see losses.attention_loss
    retain_weight: float = 1.0
    rsc_weight: float = 0.05
    rsc_share: float = 0.0  # likewise for rsc_weight
    retain_loss: str = "teacher"  # or "paper": flow matching on images of the concept (Eq. 4)
    paper_sign: bool = False  # Eq. 5 as printed, whose sign is the opposite of its text
    method: str = "eraseanything"  # a name of erasers.registry.METHODS
    method_settings: tuple[tuple[str, float | str], ...] = ()  # fields of the method's own settings, with their values
    anchor_pictures: str = ""  # a hash of the user's pictures of what is painted instead; empty is none
    meta_weight: float = 0.0  # of the meta step on top of any method; see erasers.meta_unlearning
    divergence: str = "squared"  # of the erasing loss, or "hellinger", "alpha"; see divergences
    alpha: float = 0.5  # of the divergence "alpha"
    divergence_width: float = 1.0  # s^2 of the divergences, in units of the untrained model's mean square
    guidance: float = 1.0  # one value for teacher, student and trajectories
    # The points x_t.
    width: int = 512  # pixels
    height: int = 512
    sampling_steps: int = 28
    mu: float | None = None  # sampling shift; None is the model's
    erase_time: float = 0.0  # lowest time of the erasing losses' points
    rsc_time: float = 0.6  # likewise of the reverse self-contrastive loss
    attention_blocks: tuple[int, ...] | None = None  # dual blocks whose attention is read; None is all
    cached_trajectories: int = 8  # trajectories of the concept in memory
    refresh_every: int = 50  # pairs after which all trajectories are replaced
    cached_retain_trajectories: int = 0  # trajectories of retained prompts; 0 is as many as cached_trajectories
    shared_points: bool = False  # ask retained prompts at the concept's points, without trajectories of their own
    own_times: bool = False  # each trajectory at noise levels of its own, between those of the sampler
    importance_sampling: bool = False  # draw the points that say most about the concept more often; see importance
    rsc_samples: int = 0  # points that the rsc loss has between two refreshes; 0 is new ones in every pair
    walk: str = "concept"  # whose trajectories the points lie on, or "neutral"
    walk_noise: float = 0.0  # of a stochastic sampler on them; 0 is Euler's; see sampling.noisy_step
    on_policy_share: float = 0.0  # share of the trajectories that the student walks, from the second epoch on
    cache_gib: float = 4.0  # memory for all cached arrays together; those beyond it lie on disk
    # The optimisation.
    steps: int = 200
    batch_size: int = 1
    retain_batch_size: int = 1
    targets: str = "paper"
    rank: int = 8
    lr_low: float = 1e-3  # learning rate of the erasing steps
    lr_up: float = 5e-4  # learning rate of the preserving steps
    alternate: bool = True  # False: one summed loss and one optimizer at lr_low
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    optimizer: str = "adamw"  # or "adamw8bit" (bitsandbytes), "prodigy" (prodigyopt)
    lr_schedule: str = "constant"  # or "linear", "cosine", "wsd"; see optimizers.rate_factor
    warmup_steps: int = 0  # pairs over which the learning rates rise
    gradient_accumulation_steps: int = 1  # draws whose gradients are averaged in one update
    seed: int = 0
    dtype: str = "auto"  # of the transformer: auto, bf16, fp32; the LoRA's factors are always float32
    gradient_checkpointing: bool = False  # recompute blocks in backward
    deterministic: bool = False  # only kernels that repeat their bits; see determinism.deterministic_algorithms
    save_every: int = 0  # pairs between two saved states; 0 is never
    monitor_every: int = 0  # pairs between two measurements on held-out prompts; 0 is never
    held_out: tuple[str, ...] = prompts.MONITOR_TEMPLATES  # sentences that are measured and never trained on
    look_pictures: int = 8  # pictures of the concept in one measurement; of its neighbours half as many
    look_steps: int = 8  # sampler steps of these pictures
    stop_when_gone: bool = False  # end the run once none of these pictures shows the concept
    adapt_rate: bool = False  # change the learning rates where a look finds that they do too little or too much
    stop_drift: float = 0.0  # drift above which the run ends; 0 is none
    preview_images: int = 0  # images of the concept to make at the end, before and after

    def torch_dtype(self) -> torch.dtype | None:
        """The transformer's precision; None leaves it to the host."""
        return {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}[self.dtype]

    def retained_rows(self) -> int:
        """Trajectories of retained prompts in one epoch; 0 when no loss uses them."""
        if not self.retain_weight or self.retain_loss != "teacher":
            return 0
        return self.cached_retain_trajectories or self.cached_trajectories

    def student_rows(self, rows: int) -> int:
        """How many of an epoch's first `rows` trajectories the student walks, from the second epoch on."""
        return round(self.on_policy_share * rows)

    def epochs(self) -> int:
        """How many sets of trajectories the run draws."""
        return -(-self.steps // self.refresh_every)  # rounded up


def check_settings(config: EraseConfig) -> None:
    """Checks a configuration before anything is loaded.

    Raises:
        ValueError: settings that cannot work. The message says which, and what to set.
    """
    check_targets(config.targets)
    if config.rsc_weight and not (config.synonyms and config.irrelevant):
        raise ValueError("the rsc loss needs a synonym and irrelevant words: give both, or set its weight to 0")
    matching.check_kept((*config.irrelevant, *config.retain, *config.watched), (config.concept, *config.synonyms))
    if config.unasked and (config.attn_weight or config.rsc_weight or config.retain_loss == "paper"):
        raise ValueError("a look that no prompt names has no word: set attn_weight and rsc_weight to 0")
    if min(config.attn_share, config.rsc_share) < 0 or config.attn_share + config.rsc_share >= 1:
        raise ValueError("attn_share and rsc_share must be at least 0, and below 1 together")
    if config.divergence not in divergences.NAMES:
        raise ValueError(
            f"there is no divergence {quoted(config.divergence)}; there are {', '.join(divergences.NAMES)}"
        )
    if config.divergence == "alpha" and config.alpha in (0, 1):
        raise ValueError("alpha must be neither 0 nor 1: 1 would be the divergence squared")
    if config.walk == "neutral" and config.importance_sampling:
        raise ValueError(
            "importance_sampling needs trajectories of the concept, and this method walks the neutral "
            "text's: turn it off"
        )
    if config.walk_noise and config.own_times:
        raise ValueError("walk_noise needs the same noise levels on all trajectories: turn own_times off")
    if not config.templates:
        raise ValueError("there is no prompt template: give at least one, with {} for the concept")
    for name in COUNTS:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1")
    all_walked = config.student_rows(config.cached_trajectories) == config.cached_trajectories
    if config.retain_loss == "paper" and all_walked:
        raise ValueError(
            "the paper's retain loss takes its images from the teacher: lower on_policy_share or raise "
            "cached_trajectories"
        )
    if (config.stop_when_gone or config.stop_drift or config.adapt_rate) and not config.monitor_every:
        raise ValueError("stop_when_gone, stop_drift and adapt_rate need monitor_every: nothing is measured without it")
    # Flux packs 2 x 2 latent cells of 8 pixels each into one token.
    if config.width % 16 or config.height % 16:
        raise ValueError(f"the resolution must be a multiple of 16, not {config.width}x{config.height}")
