"""The table of checks, and one of them run."""

import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

from lab.gpu import (
    attacks,
    attention,
    ballast,
    columns,
    dynamic,
    facts,
    formats,
    gradients,
    interrupts,
    placement,
    previews,
    resume,
    second_card,
    tinyflux,
    true_size,
)
from lab.gpu.card import Card
from lab.gpu.outcome import Outcome, Skipped


class Check(NamedTuple):
    """What is checked, and by which function."""

    title: str
    run: Callable[[Card], Outcome]


CHECKS = {
    0: Check("the card, its products and its attention", facts.check),
    1: Check("the gradient of each loss against float64", gradients.check),
    2: Check("the gradient on weights as they are stored", formats.check),
    3: Check("the gradient wherever the weights lie", placement.check),
    4: Check("attention columns against the dense softmax", columns.check),
    5: Check("the peak of memory against the estimate", true_size.check_memory),
    6: Check("the seconds of a pair against its products", true_size.check_speed),
    7: Check("how often a pair waits for the card", true_size.check_waiting),
    8: Check("little free memory with `memory: auto`", ballast.check),
    9: Check("DynamicVRAM: what sessions leave", dynamic.check_sessions),
    10: Check("DynamicVRAM: a LoRA in a window", dynamic.check_window),
    11: Check("a run that is stopped and goes on", resume.check),
    12: Check("an interrupt and a SIGTERM in mid pair", interrupts.check),
    13: Check("previews while the VAE is idle", previews.check),
    14: Check("TinyFlux erased by the default preset", tinyflux.check),
    15: Check("Attention Probe, Attention Erase and gates", attention.check),
    16: Check("attacks with latents on the card", attacks.check),
    17: Check("a second card", second_card.check),
}
# DynamicVRAM is chosen once in a process, and changes how every model is loaded.
OWN_PROCESS = (9, 10)


def outcome_of(number: int, card: Card) -> Outcome:
    """Runs a check. One that raises has failed, and the others still run."""
    begun = time.monotonic()
    try:
        outcome = CHECKS[number].run(card)
    except Skipped as reason:
        outcome = Outcome(skipped=str(reason))
    except Exception as error:
        traceback.print_exc()
        # The graph of what failed would take the card's memory from all checks that follow.
        traceback.clear_frames(error.__traceback__)
        outcome = Outcome(problems=[f"{type(error).__name__}: {error}"])
    outcome.seconds = time.monotonic() - begun
    if card.answers():
        card.collect()
    return outcome
