"""The node that sets how strongly an eraser works."""

import dataclasses
import hashlib
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..eraseanything_core.comfy_bridge import combining, patch
from ..eraseanything_core.comfy_bridge.host import ComfyHost
from ..eraseanything_core.comfy_bridge.lora_files import eraser_for
from ..eraseanything_core.comfy_bridge.unbaked import with_whole_lora
from ..eraseanything_core.concepts.prompts import lines_of, words_of
from ..eraseanything_core.lora.dials import DialFolder
from ..eraseanything_core.lora.factors import Eraser
from ..eraseanything_core.lora.files import LoraModel
from ..eraseanything_core.lora.headers import ErasedConcept
from ..eraseanything_core.lora.key_styles import left_out_note
from ..eraseanything_core.lora.strength import (
    EARLIER_READER,
    HEADER_KEY,
    StrengthConfig,
    StrengthCurve,
    needs_curve,
)
from ..eraseanything_core.training import gone_dial
from .shared.folders import user_folder
from .shared.inputs import CATEGORY_LORAS, NOT_LINKED, accepted
from .shared.judges import ChosenJudge
from .shared.loras import LINKED, check_chosen, chosen_lora, eraser_input, file_time
from .shared.progress import progress_bar
from .shared.texts import show_text
from .shared.types import ERASE_JUDGE, LORA_MODEL

ALL_STEPS = (0.0, 1.0)
FORWARDS = gone_dial.dial_forwards(StrengthConfig.images, StrengthConfig.halvings)
JUDGED_FORWARDS = StrengthConfig().forwards


def main_inputs() -> list[io.Input]:
    """An eraser, its strength and its window."""
    strength = (
        "0: unchanged. 0.5: half of the effect. 1: the eraser as trained. Above 1: more of it. "
        "Below 0 the concept is amplified. "
        f"The first value between 0 and 1 takes a measurement of {FORWARDS:,} forwards of the model, or "
        f"{JUDGED_FORWARDS:,} with a judge."
    )
    start = "The eraser works from this part of the sampling on; 0 is the first step."
    end = "The eraser works up to this part of the sampling; 1 is the last step."
    share = {"min": 0.0, "max": 1.0, "step": 0.01}
    return [
        io.Model.Input("model", tooltip="The model; for the first measurement straight from its loader."),
        eraser_input(),
        io.Float.Input("strength", default=1.0, min=-3.0, max=3.0, step=0.05, tooltip=strength),
        io.Float.Input("start_percent", default=0.0, **share, tooltip=start),
        io.Float.Input("end_percent", default=1.0, **share, tooltip=end),
        LORA_MODEL.Input("lora", optional=True, tooltip="An eraser, instead of a file."),
    ]


def measurement_inputs() -> list[io.Input]:
    """What the strength is measured with, once for each eraser."""
    clip = "Needed once, for a strength between 0 and 1 of an eraser that has not been measured."
    images = (
        "Seeds that are measured; more make the strength finer. "
        f"Each takes {FORWARDS // StrengthConfig.images} forwards of the model, "
        f"or {JUDGED_FORWARDS // StrengthConfig.images} with a judge."
    )
    judge = "From Choose Judge: the strength follows its reading. Without one it follows the gone score."
    prompts = "Your prompts for the concept, one per line; the strength is measured on them. Empty: the eraser's own."
    concept = "What the eraser erases, for a LoRA whose header does not say so; measured on plain prompts for it."
    return [
        io.Clip.Input("clip", optional=True, tooltip=clip),
        io.Int.Input("images", default=StrengthConfig.images, min=1, max=256, tooltip=images, advanced=True),
        ERASE_JUDGE.Input("judge", optional=True, tooltip=judge),
        io.Vae.Input("vae", optional=True, tooltip="Makes the pictures that the judge reads."),
        io.String.Input("prompts", default="", multiline=True, optional=True, tooltip=prompts, advanced=True),
        io.String.Input("concept", default="", optional=True, tooltip=concept, advanced=True),
    ]


class EraseStrength(io.ComfyNode):
    """Applies an eraser at a calibrated strength, in a window of the sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_EraseStrength",
            display_name="Erase Strength",
            category=CATEGORY_LORAS,
            description="Applies an eraser at a strength whose middle is half of its effect.",
            search_aliases=[
                "strength",
                "dial",
                "lora strength",
                "lora weight",
                "slider",
                "erase amount",
                "partial erase",
            ],
            inputs=[*main_inputs(), *measurement_inputs()],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the eraser at this strength."),
                LORA_MODEL.Output(display_name="lora", tooltip="The eraser at full strength, with what was measured."),
                io.Float.Output(display_name="scale", tooltip="The LoRA scale that the strength stands for."),
                io.String.Output(display_name="summary", tooltip="The measured curve of the strength."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        file: str | None = None,
        start_percent: float | None = None,
        end_percent: float | None = None,
        lora: Any = NOT_LINKED,
    ) -> bool | str:
        said = accepted(check_chosen, file, lora)
        if said is not True or start_percent is None or end_percent is None:
            return said
        return accepted(check_window, start_percent, end_percent)

    @classmethod
    def fingerprint_inputs(cls, file: str = LINKED, **others: Any) -> int:
        return file_time(file)

    @classmethod
    def execute(
        cls,
        model: Any,
        file: str,
        strength: float,
        start_percent: float,
        end_percent: float,
        images: int,
        lora: dict[str, torch.Tensor] | None = None,
        clip: Any = None,
        judge: ChosenJudge | None = None,
        vae: Any = None,
        prompts: str = "",
        concept: str = "",
    ) -> io.NodeOutput:
        check_numbers(strength, start_percent, end_percent)
        if judge is not None and vae is None:
            raise ValueError("the judge reads pictures: connect the VAE of this model")
        lora_model = chosen_lora(file, lora)
        eraser = eraser_for(model, lora_model, lora_model.header, file)
        patch.check_fits(model, eraser)
        measurement = Measurement(images, judge, vae, lines_of(prompts), words_of(concept), cls.hidden.unique_id)
        curve = known_curve(lora_model, file, measurement)
        notes: list[str] = []
        if curve is None and needs_curve(strength):
            curve = measured_curve(model, clip, lora_model, eraser, file, measurement)
            notes = kept_curve(lora_model, curve, file)
        scale = strength if curve is None else curve.scale_at(strength)
        notes.append(left_out_note(lora_model, file))
        applied, unbaked = apply_eraser(model, eraser, scale, (start_percent, end_percent))
        notes.append(unbaked)
        summary = strength_summary(strength, scale, curve, notes)
        return io.NodeOutput(applied, with_curve(lora_model, curve), scale, summary, ui=ui.PreviewText(summary))


def check_numbers(strength: float, start_percent: float, end_percent: float) -> None:
    """Raises ValueError for a strength that is no number, and for a window without a step in it."""
    if not math.isfinite(strength):
        raise ValueError(f"strength is {strength}: set a number")
    check_window(start_percent, end_percent)


def check_window(start_percent: float, end_percent: float) -> None:
    """Raises ValueError for a window without a step in it."""
    # Written so that NaN fails too.
    if not start_percent < end_percent:
        raise ValueError(f"start_percent {start_percent:g} must be below end_percent {end_percent:g}")


@dataclass(frozen=True)
class Measurement:
    """What a strength curve is measured with.

    Attributes:
        images: how many seeds.
        judge: reads their pictures; None is the gone score.
        vae: makes the pictures that the judge reads.
        prompts: the user's own.
        concept: the names that the user typed.
        node: id of the node that shows how far it is; None where there is no server.
    """

    images: int
    judge: ChosenJudge | None
    vae: Any
    prompts: tuple[str, ...]
    concept: tuple[str, ...]
    node: str | None

    def asked_prompts(self) -> tuple[str, ...]:
        """Typed prompts, or plain ones for a typed concept; empty when neither is typed."""
        if self.prompts or not self.concept:
            return self.prompts
        return tuple(ErasedConcept(self.concept).concept_prompts())

    def digest(self) -> str:
        """Names what the user typed; empty when there is nothing."""
        asked = self.asked_prompts()
        return hashlib.sha256("\n".join(asked).encode()).hexdigest()[:12] if asked else ""

    def is_answered_by(self, curve: StrengthCurve) -> bool:
        """Whether a curve was read by the chosen judge, and on the user's own prompts if there are any."""
        # Without a judge or prompts any curve will do: measuring takes minutes.
        if self.judge is not None and curve.reader != self.judge.name():
            return False
        if curve.reader == EARLIER_READER:
            return False
        return not self.digest() or curve.prompts == self.digest()


def dial_folder() -> DialFolder:
    """Where measured curves are kept."""
    return DialFolder(user_folder() / "dials")


def known_curve(lora: LoraModel, name: str, measurement: Measurement) -> StrengthCurve | None:
    """An eraser's curve that was measured before, by the chosen judge and on the user's prompts; None without one."""
    # The folder first: what was measured last is there, and a header may be older.
    known = [dial_folder().read(lora)]
    if HEADER_KEY in lora.header:
        known.append(StrengthCurve.from_json(lora.header[HEADER_KEY], f"the header of {name}"))
    for curve in known:
        if curve is not None and measurement.is_answered_by(curve):
            return curve
    return None


def measured_curve(
    model: Any, clip: Any, lora: LoraModel, eraser: Eraser, name: str, measurement: Measurement
) -> StrengthCurve:
    """Samples the eraser at many scales, and says on the node what that takes."""
    if clip is None:
        raise ValueError(f"the strength of {name} was not measured so yet: connect the CLIP of this model once")
    host = ComfyHost(model, clip)
    if measurement.judge is None:
        curve = curve_by_the_model(host, lora, eraser, name, measurement)
    else:
        curve = curve_by_a_judge(host, lora, eraser, name, measurement)
    return dataclasses.replace(curve, prompts=measurement.digest())


def curve_by_the_model(
    host: ComfyHost, lora: LoraModel, eraser: Eraser, name: str, measurement: Measurement
) -> StrengthCurve:
    """The curve by the gone score, which needs nothing but the model."""
    images = measurement.images
    typed = measurement.concept[0] if measurement.concept else ""
    config = gone_dial.dial_config(lora.header, typed, bool(measurement.prompts), images, name)
    own = gone_dial.own_sentences(measurement.prompts, images, config.concept, config.neutral)
    strength = StrengthConfig(images=images)
    display = MeasurementDisplay(gone_dial.dial_forwards(images, strength.halvings), measurement.node)
    return gone_dial.gone_curve(host, eraser, config, strength, own, display.progress)


def curve_by_a_judge(
    host: ComfyHost, lora: LoraModel, eraser: Eraser, name: str, measurement: Measurement
) -> StrengthCurve:
    """The curve by a judge, who reads the pictures that the VAE makes."""
    assert measurement.judge is not None, "the caller has one"
    prompts = measurement.asked_prompts()
    if not prompts:
        prompts = tuple(ErasedConcept.from_header(lora.header, name, gone_dial.ADVICE).concept_prompts())
    reader = measurement.judge.reader(host.model, measurement.vae)
    # At the size and guidance of the training, where the eraser is known to work.
    config = StrengthConfig.for_header(lora.header, measurement.images, name)
    display = MeasurementDisplay(config.forwards, measurement.node)
    return combining.calibrate(host.model, host.clip, eraser, prompts, config, reader, display.progress)


def kept_curve(lora: LoraModel, curve: StrengthCurve, name: str) -> list[str]:
    """Keeps a curve in the user folder; the LoRA's own file is never rewritten.

    Returns:
        What the user should know: nothing, or that the folder did not take it.
    """
    dials = dial_folder()
    try:
        dials.write(lora, curve)
    except OSError as error:
        # The folder may be read-only or full. The curve is good anyway.
        note = (
            f"the strength of {name} is not kept in {dials.folder} ({error.strerror}): "
            "save the output lora with Save Erase LoRA, or it is measured again"
        )
        logging.warning("Erase Strength: %s", note)
        return [note]
    return []


class MeasurementDisplay:
    """What a measurement takes, on the node that runs: forwards before it begins, then the time that is left.

    Args:
        forwards: of the whole measurement.
        node: id of the node; None where there is no server.
    """

    def __init__(self, forwards: int, node: str | None) -> None:
        self.forwards = forwards
        self.node = node
        self.advance = progress_bar(forwards)
        self.start: tuple[int, float] | None = None  # the forwards of the first report, and when it came
        notice = f"measures the strength of this eraser once: {forwards:,} forwards of the model"
        logging.info("Erase Strength: %s", notice)
        show_text(notice, node)

    def progress(self, done: int) -> None:
        """After every step of sampling; passes on the user's interrupt."""
        self.advance(done)
        now = time.monotonic()
        if self.start is None:
            # The first forward may load the model, so it says nothing about the others.
            self.start = (done, now)
            return
        first_done, first_time = self.start
        left = (now - first_time) / (done - first_done) * (self.forwards - done)
        text = f"measuring the strength: {done:,} of {self.forwards:,} forwards, about {duration(left)} left"
        show_text(text, self.node)


def duration(seconds: float) -> str:
    """A length of time in the unit that people would say it in."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def with_curve(lora: LoraModel, curve: StrengthCurve | None) -> LoraModel:
    """The LoRA with a curve in its header, so that Save Erase LoRA writes a file that knows its own strength."""
    return lora if curve is None else LoraModel(lora, lora.header | {HEADER_KEY: curve.to_json()})


def apply_eraser(model: Any, eraser: Eraser, scale: float, window: tuple[float, float]) -> tuple[Any, str]:
    """The MODEL with the eraser, in its weights or only in a window of the sampling; and a sentence, see `unbaked`."""
    # In the weights it costs nothing while sampling. A window has to add it to every weight in every step.
    if window == ALL_STEPS:
        return with_whole_lora(model, eraser, scale)
    sampling = model.get_model_object("model_sampling")
    start, end = window
    start_sigma = sampling.percent_to_sigma(start)
    end_sigma = sampling.percent_to_sigma(end)
    return patch.with_lora_between(model, eraser, scale, start_sigma, end_sigma), ""


def strength_summary(strength: float, scale: float, curve: StrengthCurve | None, notes: list[str]) -> str:
    """The summary: the scale, the curve where one is known, and the notes that are not empty."""
    lines = [f"strength {strength:g} is a scale of {scale:.3f}"]
    if curve is None:
        lines.append("nothing was measured: at 0, and from 1 on, the strength is the scale")
    else:
        lines.append(f"scale: share of seeds that have lost the concept, by {curve.reader}")
        for point, effect in zip(curve.scale, curve.effect, strict=True):
            lines.append(f"{point:.2f}: {effect:.2f}")
    return "\n".join([*lines, *filter(None, notes)])


NODES = [EraseStrength]
