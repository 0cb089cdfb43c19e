"""The gone score in a judge's place: the answers of a report where no judge is at hand."""

from collections.abc import Callable

from ..lora.strength import GONE_READER
from ..protocols import ModelHost, Verdict
from ..training.config import EraseConfig
from ..training.gone import THRESHOLD
from ..training.gone_check import Erased, Seen, seen_pictures
from .report import Answers

GONE = "not shown"  # the label of a picture that does not show what it was asked to show


def gone_answers(
    original: ModelHost, erased: Erased, config: EraseConfig, notify: Callable[[str], None]
) -> dict[str, Answers]:
    """Draws held-out sentences with an eraser, and lets the original model read them.

    Args:
        original: lends the model from before erasing.
        erased: the model to look at.
        config: see `check_gone`.
        notify: called with a sentence before each part.

    Returns:
        The cell `acc_e`, and `acc_ir` for the neighbours where they can be read.

    Raises:
        ValueError: the original model does not draw the concept so that it can be read, or see `check_gone`.
    """
    concept, neighbours = seen_pictures(original, erased, config, notify)
    if not any(concept.readable):
        raise ValueError(
            f"in none of {len(concept.prompts)} held-out pictures does the original model draw the concept so that it "
            "can be told from the neutral sentence: link a judge's answers as acc_e"
        )
    answers = {"acc_e": _answers(concept, config, config.concept)}
    if any(neighbours.readable):
        answers["acc_ir"] = _answers(neighbours, config)
    return answers


def _answers(seen: Seen, config: EraseConfig, label: str = "") -> Answers:
    """What can be read; without a label each picture is asked to show its prompt."""
    rows = [i for i, readable in enumerate(seen.readable) if readable]
    prompts = tuple(seen.prompts[i] for i in rows)
    wanted = tuple(label or prompt for prompt in prompts)
    # A picture can be read where the original model draws what is asked, so all of them show it before.
    before = tuple(Verdict(each) for each in wanted)
    after = tuple(Verdict(each if seen.shown[i] else GONE) for i, each in zip(rows, wanted, strict=True))
    # The noise of a picture follows from the run's seed and the picture's place.
    return Answers(wanted, before, after, _identity(config), prompts, (config.seed,) * len(rows))


def _identity(config: EraseConfig) -> dict[str, str | float]:
    return {
        "name": GONE_READER,
        "threshold": THRESHOLD,
        "pictures": config.look_pictures,
        "steps": config.look_steps,
        "guidance": config.guidance,
    }
