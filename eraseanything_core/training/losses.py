"""The objective, one function an equation. `sg` is stop-gradient: whatever is named a teacher carries no gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor


def esd_loss(student: Tensor, teacher_concept: Tensor, teacher_neutral: Tensor, eta: float) -> Tensor:
    """L_esd = mean( v_student - sg[ v_n - eta (v_c - v_n) ] )^2: the concept's velocity is turned away from it.

    Args:
        student: v of the adapted model for the concept's prompt, [b, c, h, w].
        teacher_concept: v_c of the frozen model for the same prompt at the same x_t and t.
        teacher_neutral: v_n of the frozen model for the neutral prompt there.
        eta: strength; 0 leads to the neutral prompt itself.
    """
    target = teacher_neutral - eta * (teacher_concept - teacher_neutral)
    return F.mse_loss(student, target.detach())


def attention_loss(feature: Tensor) -> Tensor:
    """L_attn = mean over image queries, heads and blocks of the weight on the concept's tokens.

    Args:
        feature: [b, queries], sum over the span of W[q, k], mean over heads and blocks.
    """
    return feature.mean()


def retain_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """L_retain = mean( v_student(p) - sg v_teacher(p) )^2 on prompts p without the concept."""
    return F.mse_loss(student, teacher.detach())


def flow_matching_loss(student: Tensor, x_0: Tensor, noise: Tensor) -> Tensor:
    """The paper's Eq. 4: mean( v_student(x_t, c) - (n - x_0) )^2 on images x_0 that the teacher made from c.

    Those images show the concept, so this term teaches it back; it is here to reproduce the paper.
    """
    return F.mse_loss(student, (noise - x_0).detach())


def rsc_loss(un: Tensor, syn: Tensor, irrelevant: Tensor, tau: float, paper_sign: bool = False) -> Tensor:
    """Reverse self-contrastive loss, bounded: -log( sum_i e^{s_i/tau} / (sum_i e^{s_i/tau} + e^{s_syn/tau}) ).

    s is the cosine with F_un. Minimised, it moves F_un towards the irrelevant words and away from the synonym.

    Args:
        un: attention feature of the concept, [b, queries]; the only one that carries a gradient.
        syn: the teacher's feature of the synonym at the same x_t, [b, queries].
        irrelevant: the teacher's features of K irrelevant words there, [b, K, queries].
        tau: temperature.
        paper_sign: the paper's Eq. 5 as printed, log( sum_i e^{s_i/tau} / e^{s_syn/tau} ), which pulls F_un
            towards the synonym.
    """
    near = F.cosine_similarity(un, syn.detach(), dim=-1) / tau  # b
    far = torch.logsumexp(F.cosine_similarity(un[:, None], irrelevant.detach(), dim=-1) / tau, dim=-1)  # b
    if paper_sign:
        return (far - near).mean()
    return F.softplus(near - far).mean()
