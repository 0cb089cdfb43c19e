"""The node classes of the pack."""

from importlib.util import find_spec

from . import (
    attack,
    attention,
    batch,
    concepts,
    erase_at_sampling,
    erase_now,
    evaluate,
    export,
    gone,
    judges,
    lora,
    prompt_sets,
    recogniser,
    reports,
    settings,
    strength,
    train,
)
from .shared.texts import with_checked_texts

NODES = [
    *train.NODES,
    *batch.NODES,
    *settings.NODES,
    *concepts.NODES,
    *lora.NODES,
    *strength.NODES,
    *export.NODES,
    *erase_now.NODES,
    *erase_at_sampling.NODES,
    *gone.NODES,
    *attention.NODES,
    *prompt_sets.NODES,
    *evaluate.NODES,
    *reports.NODES,
    *judges.NODES,
    *recogniser.NODES,
    *attack.NODES,
]

# The registry's package is shipped without the small models of the laboratory.
if find_spec(f"{__name__}.tinyflux"):
    from . import tinyflux

    NODES += tinyflux.NODES

NODES = [with_checked_texts(node) for node in NODES]
