"""The objective, one function an equation of the paper "EraseAnything".

theta is the frozen model (the teacher), theta + D the model with the LoRA (the student), and `sg` is stop-gradient.
Whatever is named a teacher carries no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.columns import image_feature
from .divergences import Divergence

SQUARED = Divergence()


def esd_loss(
    student: Tensor,
    teacher_concept: Tensor,
    teacher_neutral: Tensor,
    eta: float,
    divergence: Divergence = SQUARED,
) -> Tensor:
    """Erases: L_esd = mean( v_student - sg[ v_n - eta (v_c - v_n) ] )^2, the paper's lower level.

    v_n - eta (v_c - v_n) is negative guidance: it starts at the neutral prompt and leads away from the concept.

    Args:
        student: v of the student for the concept's prompt c, [b, c, h, w].
        teacher_concept: v_c of the teacher for the same prompt at the same x_t and t, same shape.
        teacher_neutral: v_n of the teacher for the neutral prompt there, same shape.
        eta: strength; 0 leads to the neutral prompt itself.
        divergence: what stands in the place of the mean square.

    Returns:
        A scalar.
    """
    target = teacher_neutral - eta * (teacher_concept - teacher_neutral)
    return divergence(student, target, teacher_concept)


def attention_loss(maps: dict[int, Tensor], reduction: str = "mean") -> Tensor:
    """Erases: L_attn, the attention that the concept's tokens get from the image; the mean over batch and blocks.

    Args:
        maps: a block's index to [b, heads, image queries, 1], the sum over the concept's tokens k of W[q, k].
        reduction: over heads and queries. "mean": it grows neither with the resolution nor with the model. "sum": the
            paper's Eq. 3, at Flux's size and 512 px about 25,000 times as large. "l2": the published code's sum over
            queries of the Euclidean norm over heads.

    Returns:
        A scalar.
    """
    if reduction == "mean":
        return image_feature(maps).mean()
    sums = []
    for columns in maps.values():
        column = columns[..., 0]  # [b, heads, queries]
        column = column.float() if column.dtype.itemsize < 4 else column
        # The small constant keeps the norm's gradient finite where no head looks at the concept.
        by_query = column.sum(1) if reduction == "sum" else (column.square().sum(1) + 1e-12).sqrt()
        sums.append(by_query.sum(-1).mean())
    return torch.stack(sums).mean()


def retain_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Preserves: L_retain = mean( v_student(x_t, p) - sg v_teacher(x_t, p) )^2 on prompts p without the concept.

    Args:
        student: v of the student, [b, c, h, w].
        teacher: v of the teacher for the same prompts at the same x_t and t, same shape.

    Returns:
        A scalar.
    """
    return F.mse_loss(student, teacher.detach())


def flow_matching_loss(student: Tensor, x_0: Tensor, noise: Tensor) -> Tensor:
    """The paper's Eq. 4, L_lora: mean( v_student(x_t, c) - (n - x_0) )^2 on images x_0 that the teacher made from c.

    Those images show the concept, so this term teaches it back. It is here to reproduce the paper.

    Args:
        student: v of the student at x_t = (1 - t) x_0 + t n, [b, c, h, w].
        x_0: the images' latents, same shape.
        noise: n, same shape.

    Returns:
        A scalar.
    """
    return F.mse_loss(student, (noise - x_0).detach())


def rsc_loss(un: Tensor, syn: Tensor, irrelevant: Tensor, tau: float, paper_sign: bool = False) -> Tensor:
    """The paper's Eq. 5, L_rsc, in bounded form: -log( sum_i e^{s_i/tau} / (sum_i e^{s_i/tau} + e^{s_syn/tau}) ).

    s is the cosine with F_un. Minimising it moves F_un towards the irrelevant words and away from the synonym.

    Args:
        un: F_un, the student's attention feature of the concept, [b, queries]. Only this one carries a gradient.
        syn: the teacher's feature of the synonym at the same x_t, [b, queries].
        irrelevant: the teacher's features of K irrelevant words there, [b, K, queries].
        tau: temperature.
        paper_sign: Eq. 5 as printed, log( sum_i e^{s_i/tau} / e^{s_syn/tau} ). It pulls F_un towards the synonym,
            which is the opposite of what the paper's text says.

    Returns:
        A scalar.
    """
    synonym_score = F.cosine_similarity(un, syn.detach(), dim=-1) / tau  # [b]
    word_scores = F.cosine_similarity(un[:, None], irrelevant.detach(), dim=-1) / tau  # [b, K]
    irrelevant_score = torch.logsumexp(word_scores, dim=-1)  # [b]
    if paper_sign:
        return (irrelevant_score - synonym_score).mean()
    # -log( e^a / (e^a + e^b) ) is softplus(b - a), without overflow.
    return F.softplus(synonym_score - irrelevant_score).mean()
