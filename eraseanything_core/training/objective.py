"""The two levels of Algorithm 1 as graphs: each level yields its losses one forward at a time.

The caller backpropagates a graph before it asks for the next one, so that only one is in memory.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..concepts import prompts
from ..protocols import ErasableModel
from ..transfers import on_device
from . import losses
from .config import EraseConfig
from .divergences import Divergence
from .draws import Draw
from .features import word_feature, word_maps
from .plan import SHARE_FORWARD, Plan, conds, select_words
from .trajectories import Points, Trajectories
from .trajectory_cache import Epoch

Losses = dict[str, Tensor]
WEIGHED = {"prior": 1.0, "meta": 1.0}  # losses that have their weight inside


def erase_graphs(model: ErasableModel, plan: Plan, epoch: Epoch, draw: Draw) -> Iterator[Losses]:
    """The lower level, which erases: L_esd and L_attn, from one forward of the student.

    Args:
        model: student and teacher.
        plan: the run's.
        epoch: trajectories and the teacher's answers.
        draw: the pair's points.

    Yields:
        `esd` and `attn` together; without the shortcut `SHARE_FORWARD` one after the other.
    """
    config = plan.config
    walks = epoch.concept
    row, _ = draw.erase
    x_t, sigma, teacher, neutral = erasing_points(model, epoch, draw)
    concept = [walks.sources[i].concept for i in row]
    capture = None
    # Reading columns on the way costs little. A forward of its own for L_attn would be a fourth graph in every pair.
    if config.attn_weight and SHARE_FORWARD in plan.shortcuts:
        capture = model.capture(select_words(model, plan, concept), config.attention_blocks)
    student = model.velocity(x_t, sigma, conds(model, plan, concept), adapters=True, capture=capture)
    graph = {"esd": losses.esd_loss(student, teacher, neutral, config.eta, divergence_of(config))}
    if capture is not None:
        graph["attn"] = losses.attention_loss(capture.maps, config.attention_reduction)
    yield graph
    # The same loss by a forward of its own. Tests hold the shared forward against this one.
    if config.attn_weight and capture is None:
        maps = word_maps(model, plan, concept, x_t, sigma, adapters=True)
        yield {"attn": losses.attention_loss(maps, config.attention_reduction)}


def erasing_points(model: ErasableModel, epoch: Epoch, draw: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_t [b, c, h, w] and t [b] of the erasing points, and v_c and v_n [b, c, h, w] of the teacher there."""
    walks = epoch.concept
    row, step = draw.erase
    x_t, sigma, concept = walks.at(row, step, model.device)
    # v_n and v_c have to come from the student's own x_t and t, so they were computed at these very points.
    assert walks.neutral is not None, "an epoch has the neutral velocities of all its erasing points"
    return x_t, sigma, concept, on_device(walks.neutral[row, step], model.device)


def preserve_graphs(
    model: ErasableModel, plan: Plan, epoch: Epoch, draw: Draw, rng: torch.Generator | None = None
) -> Iterator[Losses]:
    """The upper level, which preserves: L_retain or the paper's L_lora, then L_rsc.

    Args:
        model: student and teacher.
        plan: the run's.
        epoch: trajectories and the teacher's answers.
        draw: the pair's points.
        rng: draws images, noise and times of the paper's loss; only that one needs it.

    Yields:
        `retain` and `rsc`, each if it is on.
    """
    config = plan.config
    # The default in place of the paper's Eq. 4, whose images show the concept and teach it back.
    if draw.retain is not None and epoch.retain is not None:
        yield {"retain": retain(model, plan, epoch.retain, draw.retain)}
    elif config.retain_weight:
        # Eq. 4 draws its own points: it needs images and noise, not points of a trajectory.
        yield {"retain": paper_retain(model, plan, epoch.concept, rng)}
    if draw.rsc is not None:
        row, step = draw.rsc
        x_t, sigma, _ = epoch.concept.at(row, step, model.device)
        sentences = [epoch.concept.sources[i] for i in row]
        assert epoch.concept.word_features is not None, "an epoch has the features of all its rsc points"
        features = on_device(epoch.concept.word_features[row, step], model.device)
        yield {"rsc": rsc(model, plan, sentences, x_t, sigma, features)}


def retain(model: ErasableModel, plan: Plan, walks: Trajectories, points: Points) -> Tensor:
    """L_retain at points on the trajectories of retained prompts."""
    row, step = points
    x_t, sigma, teacher = walks.at(row, step, model.device)
    cond = conds(model, plan, [walks.sources[i] for i in row])
    return losses.retain_loss(model.velocity(x_t, sigma, cond, adapters=True), teacher)


def paper_retain(model: ErasableModel, plan: Plan, walks: Trajectories, rng: torch.Generator | None) -> Tensor:
    """The paper's Eq. 4 on images of the concept, which are the ends of the teacher's trajectories."""
    # The student walks the first trajectories of an epoch, and its images are not the teacher's.
    first = plan.config.student_rows(len(walks.sources))
    row = torch.randint(first, len(walks.sources), (plan.config.retain_batch_size,), generator=rng)
    x_0 = on_device(walks.x[row, -1], model.device)
    # Drawn on the CPU: equal seeds then give equal draws on every device.
    noise = on_device(model.noise_scale * torch.randn(x_0.shape, generator=rng), model.device)
    sigma = on_device(model.last_time * torch.rand(len(row), generator=rng), model.device)
    t = sigma[:, None, None, None]  # [b, 1, 1, 1], to be multiplied with latents
    x_t = (1 - t) * x_0 + t * noise
    cond = conds(model, plan, [walks.sources[i].concept for i in row])
    student = model.velocity(x_t, sigma, cond, adapters=True)
    return losses.flow_matching_loss(student, x_0, noise)


def rsc(
    model: ErasableModel,
    plan: Plan,
    sentences: Sequence[prompts.Sentence],
    x_t: Tensor,
    sigma: Tensor,
    teacher_features: Tensor,
) -> Tensor:
    """L_rsc; only the concept's feature carries a gradient.

    Args:
        model: the student.
        plan: the run's.
        sentences: b sentences.
        x_t: [b, c, h, w].
        sigma: [b].
        teacher_features: [b, 1 + K, queries] of the teacher at the same x_t, the synonym first.
    """
    concept = [sentence.concept for sentence in sentences]
    # No velocity is needed here, so this forward may end at the last block that is read.
    un = word_feature(model, plan, concept, x_t, sigma, adapters=True)
    synonym = teacher_features[:, 0]
    irrelevant = teacher_features[:, 1:]
    return losses.rsc_loss(un, synonym, irrelevant, plan.config.tau, plan.config.paper_sign)


def divergence_of(config: EraseConfig) -> Divergence:
    """What the erasing loss measures with."""
    return Divergence(config.divergence, config.alpha, config.divergence_width)


def weighted_sum(graph: Losses, config: EraseConfig) -> Tensor:
    """The weighted sum of one or more losses."""
    weights = {"attn": config.attn_weight, "retain": config.retain_weight, "rsc": config.rsc_weight} | WEIGHED
    # Whatever else a method calls its loss, it is the one that erases.
    terms = [weights.get(name, config.esd_weight) * loss for name, loss in graph.items()]
    # Not `sum`: it starts at the number 0, whose addition is one more node in every graph.
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def record_losses(history: dict[str, list[float]], graph: Losses, total: Tensor, step: int) -> None:
    """Appends a step's losses to the lists of a run; this waits for the device.

    Args:
        history: one list a loss, and `loss` for the total.
        graph: the losses by name.
        total: their weighted sum.
        step: its number, from 0.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    for name, loss in {**graph, "loss": total}.items():
        value = float(loss.detach())
        # Adam's moments never lose a NaN again, so going on could save nothing.
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {name} loss became {value} at step {step + 1}: lower the learning rates or take fp32"
            )
        history.setdefault(name, []).append(value)
