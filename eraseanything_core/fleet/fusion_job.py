"""Closed-form fusion as a job: unlike the other ways to merge erasers it reads states of the model."""

from pathlib import Path

from ..lora.files import save_lora
from .job import Job
from .results import Results
from .session import Session
from .training_job import LORA_FILE

STATES = "states"  # in the results: what is read of a model serves all fusions


def run_fusion(session: Session, job: Job, work: Path, results: Results) -> None:
    """Fuses the LoRAs of trainings that are done.

    Raises:
        ValueError: they are of different models, or one does not say what it erases.
    """
    spec = job.spec
    loras = [results.result(training) / LORA_FILE for training in spec["trainings"]]
    one = session.fused(spec["base"]["loaders"], loras, spec["weight"], spec["seed"], results.folder / STATES)
    save_lora(one, work / "result" / LORA_FILE, one.header)
