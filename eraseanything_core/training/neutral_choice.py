"""Whether the model draws the concept for its neutral text as well, and what is painted in that case.

Erasing leads from the concept's pictures to those of the neutral text. A model that draws a heart for `a circle` too
would be led from hearts to hearts. Whether it does can be read as `gone` reads any picture: between the picture of the
concept and one of something else, the reference.
"""

import dataclasses

from torch import Tensor

from ..concepts import prompts
from ..protocols import ErasableModel
from ..quoting import quoted
from .gone import PictureReader, look_forwards
from .monitor import CONCEPTS, Tally, held_out
from .plan import Plan
from .trajectory_cache import Report

PICTURES = 4  # for each text that is tried
ALLOWED = 1  # of them may show the concept: a reading is wrong now and then


def choose_neutral(model: ErasableModel, plan: Plan, report: Report | None = None) -> tuple[Plan, str]:
    """The plan with a neutral text for which the model does not draw the concept.

    The configured text is tried first, then `other_neutrals` in their order. The last of these is the reference, and
    is taken where all before it fail.

    Args:
        model: only its frozen weights are used.
        plan: the run's, with monitoring on; without `other_neutrals` it is returned as it is.
        report: called with the forwards that are done, and how many there are at most.

    Returns:
        The plan with the pictures that were drawn, and a sentence for the user; "" where the text was not changed.
    """
    others = plan.config.other_neutrals
    sentences = plan.monitor_sentences
    if not others or not sentences:
        return plan, ""
    pictures = min(PICTURES, len(sentences))
    teacher, student = look_forwards(pictures, plan.config.look_steps)
    tally = Tally(report, teacher + len(others) * student)
    reference = _with_neutral(sentences, len(others) - 1)
    reader = PictureReader(model, held_out(model, plan, reference, CONCEPTS, tally.add).first(pictures))
    plan = _with_drawn(plan, [sentence.teacher_concept() for sentence in sentences], reader.x_c)
    plan = _with_drawn(plan, _neutrals(reference), reader.x_n)
    plan, shown = _shown(model, plan, sentences, reader)
    # Where the concept cannot be told from the reference, nothing is known against the configured text.
    if not reader.readable.all() or shown <= ALLOWED:
        tally.finish()
        return plan, ""
    number = 0
    while number < len(others) - 1:
        plan, of_other = _shown(model, plan, _with_neutral(sentences, number), reader)
        if of_other <= ALLOWED:
            break
        number += 1
    tally.finish()
    note = (
        f"{shown} of {pictures} pictures of the neutral text {quoted(plan.config.neutral)} show the concept as "
        f"well: {quoted(others[number])} is painted in its place"
    )
    return with_neutral(plan, number), note


def with_neutral(plan: Plan, number: int) -> Plan:
    """The plan with one of its other neutral texts."""
    return dataclasses.replace(
        plan,
        config=dataclasses.replace(plan.config, neutral=plan.config.other_neutrals[number]),
        sentences=_with_neutral(plan.sentences, number),
        monitor_sentences=_with_neutral(plan.monitor_sentences, number),
    )


def _with_neutral(sentences: list[prompts.Sentence], number: int) -> list[prompts.Sentence]:
    return [dataclasses.replace(sentence, neutral=sentence.other_neutrals[number]) for sentence in sentences]


def _neutrals(sentences: list[prompts.Sentence]) -> list[prompts.Prompt]:
    return [sentence.neutral for sentence in sentences]


def _with_drawn(plan: Plan, asked: list[prompts.Prompt], x_0: Tensor) -> Plan:
    """The plan with pictures of the first prompts, which the looks need not draw again."""
    drawn = {(prompt.text, i): picture for i, (prompt, picture) in enumerate(zip(asked, x_0, strict=False))}
    return dataclasses.replace(plan, drawn=plan.drawn | drawn)


def _shown(
    model: ErasableModel, plan: Plan, sentences: list[prompts.Sentence], reader: PictureReader
) -> tuple[Plan, int]:
    """The plan with pictures of the sentences' neutral texts, and how many of them show the concept."""
    pictures = len(reader.x_c)
    looked_at = held_out(model, plan, sentences, CONCEPTS, reader.held_out.count).first(pictures)
    x_n = looked_at.pictures(model, looked_at.neutral, adapters=False)
    return _with_drawn(plan, _neutrals(sentences), x_n), int(reader.read(x_n).shows().sum())
