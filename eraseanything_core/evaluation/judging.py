"""Pictures before and after, read by one judge."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..concepts.concept_set import ConceptSet
from ..protocols import Judge, Verdict
from .judges import JUDGE_BATCH_SIZE
from .report import Answers


def channels_first(images: Sequence[Tensor]) -> Tensor:
    """Batches [n, h, w, channels] as one [n, 3, h, w] in float32 on the CPU; a fourth channel is left out.

    Raises:
        ValueError: their sizes differ, or they hold NaN, in which no judge sees anything.
    """
    if len({tuple(image.shape[1:]) for image in images}) > 1:
        raise ValueError("the pictures differ in size: judge those of one size at a time")
    if not all(image.isfinite().all() for image in images):
        raise ValueError("the pictures hold NaN or infinite numbers: the model that drew them is broken")
    # A loader of files may add an alpha channel, which no judge reads.
    return torch.cat(list(images))[..., :3].permute(0, 3, 1, 2).float().cpu()


def labels_of(concepts: ConceptSet, wanted: Sequence[str], labels: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The labels of a judge, with what a concept set says of them.

    Args:
        concepts: the set.
        wanted: of each picture. An empty one, or one of the concept's own words, stands for the concept.
        labels: to choose between; where there are none they are the set's.
    """
    return [concepts.label(word) for word in wanted], tuple(labels) or concepts.labels()


def judge_pictures(
    judge: Judge,
    wanted: Sequence[str],
    before: Tensor,
    after: Tensor,
    prompts: Sequence[str] = (),
    seeds: Sequence[int] = (),
    check_interrupt: Callable[[], None] | None = None,
) -> Answers:
    """What a judge says of pictures of the same prompts and seeds before and after erasing.

    Args:
        judge: reads them.
        wanted: the label of each picture.
        before, after: [n, 3, h, w] in [0, 1].
        prompts, seeds: of each picture; empty where they are not known.
        check_interrupt: called before every batch; what it raises ends the reading.

    Raises:
        ValueError: not one label, picture, prompt and seed each.
    """
    verdicts_before = _read_all(judge, before, check_interrupt)
    verdicts_after = _read_all(judge, after, check_interrupt)
    return Answers(tuple(wanted), verdicts_before, verdicts_after, judge.identity, tuple(prompts), tuple(seeds))


def _read_all(judge: Judge, pictures: Tensor, check_interrupt: Callable[[], None] | None) -> tuple[Verdict, ...]:
    """The verdicts on pictures, read in the batches in which the networks of judges read them anyway."""
    verdicts: list[Verdict] = []
    for batch in pictures.split(JUDGE_BATCH_SIZE):
        if check_interrupt:
            check_interrupt()
        verdicts += judge.read(batch)
    return tuple(verdicts)
