"""The settings of a run."""

from dataclasses import dataclass

import torch

from ..concepts import matching, prompts
from ..lora.adapter import target_names

COUNTS = (
    "steps", "batch_size", "retain_batch_size", "rank", "sentences", "cached_trajectories", "refresh_every", "sampling_steps", "gradient_accumulation_steps",
)  # fmt: skip


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
    retain_prompt_share: float = (
        0.5  # share of retain prompts drawn from `retain`; the others are irrelevant words in templates
    )
    shuffle_rate: float = 0.9
    synonym_rate: float = 0.3  # how often a synonym stands in for the concept as the word to erase
    sentences: int = 64  # how many are drawn and encoded
    # The objective.
    eta: float = 1.0
    tau: float = 0.07
    k_irrelevant: int = 3
    esd_weight: float = 1.0  # weights
    attn_weight: float = 0.1
    retain_weight: float = 1.0
    rsc_weight: float = 0.05
    retain_loss: str = "teacher"  # or "paper": flow matching on images of the concept (Eq. 4)
    paper_sign: bool = False  # of the reverse self-contrastive loss
    guidance: float = 1.0  # one value for teacher, student and trajectories
    # The points x_t.
    width: int = 512  # px
    height: int = 512
    sampling_steps: int = 28
    mu: float | None = None  # sampling shift; None is the model's
    erase_sigma: tuple[float, float] = (0.0, 1.0)
    rsc_sigma: tuple[float, float] = (0.6, 1.0)  # where the reverse self-contrastive loss looks
    attention_blocks: tuple[int, ...] | None = None  # dual blocks whose attention is read; None is all
    cached_trajectories: int = 8  # trajectories kept of each kind
    refresh_every: int = 50  # steps after which they are drawn anew
    cached_retain_trajectories: int = 0  # trajectories of what stays; 0 is as many as `pool`
    rsc_samples: int = 0  # points that the reverse self-contrastive loss has in a pool; 0 is a new one every pair
    on_policy_share: float = 0.0  # share of the trajectories that the student walks, from the second pool on
    cache_gib: float = 4.0  # GiB of memory for the arrays of the pools together; those beyond it lie on disk
    # The optimisation.
    steps: int = 200  # pairs of one lower and one upper step
    batch_size: int = 1
    retain_batch_size: int = 1
    targets: str = "paper"
    rank: int = 8
    lr_low: float = 1e-3
    lr_up: float = 5e-4
    alternate: bool = True  # False: one summed loss and one optimiser at lr_low
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    optimizer: str = "adamw"  # or "adamw8bit" (bitsandbytes), "prodigy" (prodigyopt)
    lr_schedule: str = "constant"  # or "linear", "cosine": down to 0 at the last step
    warmup_steps: int = 0  # steps in which the learning rates rise
    gradient_accumulation_steps: int = 1  # draws whose gradients are averaged in one update
    seed: int = 0
    dtype: str = "auto"  # of the transformer: auto, bf16, fp32; the LoRA's masters are always fp32
    gradient_checkpointing: bool = False  # recompute blocks in backward
    save_every: int = 0  # steps between run states; 0 is never
    monitor_every: int = 0  # steps between two looks from outside, see watch.py; 0 is never
    stop_score: float = 0.0  # concept score at which the run is over; 0 is none
    stop_drift: float = 0.0  # drift above which the run is over; 0 is none
    preview_images: int = 0  # images of the concept to make at the end, before and after

    def torch_dtype(self) -> torch.dtype | None:
        return {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}[self.dtype]

    def retained_rows(self) -> int:
        """Trajectories of what stays in one pool; 0 when nothing looks at them."""
        return (
            (self.cached_retain_trajectories or self.cached_trajectories)
            if self.retain_weight and self.retain_loss == "teacher"
            else 0
        )

    def student_rows(self, rows: int) -> int:
        """How many of a pool's first trajectories the student walks, from the second pool on."""
        return round(self.on_policy_share * rows)

    def epochs(self) -> int:
        """How many pools the run draws."""
        return -(-self.steps // self.refresh_every)


QUICK = {
    "steps": 100,
    "refresh_every": 100,
    "sampling_steps": 12,
    "cached_trajectories": 8,
    "cached_retain_trajectories": 6,
    "rsc_samples": 16,
}
LONGER = {
    "sampling_steps": 12,
    "cached_trajectories": 6,
    "cached_retain_trajectories": 4,
    "rsc_samples": 12,
    "on_policy_share": 0.25,
}
PAPER = {"retain_loss": "paper", "paper_sign": True, "eta": 1.0, "alternate": True, "sampling_steps": 28, "rank": 8}
PAPER |= {"targets": "paper", "on_policy_share": 0.0, "esd_weight": 1.0}
PRESETS = {  # what each sets; everything else stays as it is
    "quick": QUICK,
    "balanced": LONGER | {"steps": 200, "refresh_every": 100},
    "thorough": LONGER | {"steps": 500, "refresh_every": 250},
    # Equations 4 and 5 as printed, and 1,000 steps of which every other one erases.
    "paper": PAPER
    | {"steps": 500, "attn_weight": 1.0, "retain_weight": 1.0, "rsc_weight": 1.0, "lr_low": 1e-3, "lr_up": 5e-4},
    # The published code's weights, learning rate and last-block maps, without its faults.
    "reference": PAPER
    | {"steps": 100, "attn_weight": 0.001, "retain_weight": 0.1, "rsc_weight": 0.1, "lr_low": 1e-3, "lr_up": 1e-3}
    | {"attention_blocks": (-1,), "weight_decay": 1e-5, "synonym_rate": 0.5},
}


def check_settings(config: EraseConfig):
    """Raises ValueError for settings that cannot work, before anything is loaded."""
    target_names(config.targets)
    if config.rsc_weight and not (config.synonyms and config.irrelevant):
        raise ValueError("the rsc loss needs a synonym and irrelevant words: give both, or set its weight to 0")
    for kept in (*config.irrelevant, *config.retain):
        for word in (config.concept, *config.synonyms):
            if matching.occurs(kept, word):
                raise ValueError(f"{kept!r} is to be kept and holds {word!r}, which is to be erased")
    if not config.templates:
        raise ValueError("there is no prompt template: give at least one, with {} for the concept")
    for name in COUNTS:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1")
    if config.retain_loss == "paper" and config.student_rows(config.cached_trajectories) == config.cached_trajectories:
        raise ValueError(
            "the paper's retain loss takes its images from the teacher: lower on_policy_share or raise pool"
        )
    if (config.stop_score or config.stop_drift) and not config.monitor_every:
        raise ValueError("stop_score and stop_drift need monitor_every: nothing is measured without it")
    if config.width % 16 or config.height % 16:
        raise ValueError(f"the resolution must be a multiple of 16, not {config.width}x{config.height}")
