"""What an eraser says about itself in the header of its file, and what is read from there."""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..concepts import matching, prompts
from ..quoting import quoted
from ..version import VERSION

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FIELD = "eraseanything."  # what our names in a header begin with; `modelspec.` is the convention of Stability AI
# What is believed of a header, lowest and highest: anyone can write one, and its size is what will be sampled.
HEADER_NUMBERS = {"width": (16, 4096), "height": (16, 4096), "guidance": (0, 100)}
JSON_KINDS: dict[type, str] = {list: "list", dict: "table"}


def model_spec(concept: str) -> dict[str, str]:
    """The part of a header that other programs show (https://github.com/Stability-AI/ModelSpec).

    Args:
        concept: what the LoRA erases, as it is to be read; may be empty.
    """
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        "modelspec.title": f"eraser of {concept}" if concept else "eraser",  # whether it erases, `measured` says
        f"{FIELD}version": VERSION,
    }


def family_spec(family: str) -> dict[str, str]:
    """What goes over `model_spec` for a model of another family than FLUX.1, which is the empty one."""
    if not family:
        return {}
    return {
        f"{FIELD}family": family,
        "modelspec.architecture": f"{family}/lora",
        "modelspec.implementation": "https://github.com/Comfy-Org/ComfyUI",
    }


def training_header(
    config: "DataclassInstance", base_model: str, method: str = "eraseanything", measured: str = "", family: str = ""
) -> dict[str, Any]:
    """The header of a trained eraser: what was erased, how, from which model and by which version.

    Args:
        config: the settings of the run, of which `concept` is one; every field is written.
        base_model: a fingerprint of the model that was trained on.
        method: name of the eraser.
        measured: what the training has seen of the concept at its end; empty when nothing was measured.
        family: of the model, as ComfyUI calls it; empty for FLUX.1.
    """
    settings = dataclasses.asdict(config)
    header = {
        **model_spec(settings["concept"]),
        f"{FIELD}method": method,
        f"{FIELD}base_model": base_model,
    }
    if measured:
        header[f"{FIELD}measured"] = measured
    header |= family_spec(family)
    # Every setting, so that the file alone says how to train it again.
    for name, value in settings.items():
        header[f"{FIELD}{name}"] = value
    return header


def named_header(typed: str) -> dict[str, str]:
    """The header of a LoRA of which a user says what it erases.

    Args:
        typed: the concept first, then its synonyms, with commas.
    """
    concept, *synonyms = prompts.words_of(typed) or (typed.strip(),)
    return {
        **model_spec(typed.strip()),
        f"{FIELD}concept": concept,
        f"{FIELD}synonyms": json.dumps(synonyms),
    }


def joint_header(
    headers: Sequence[Mapping[str, str]], names: Sequence[str], weights: Sequence[float], mode: str
) -> dict[str, str]:
    """The header of a LoRA that was combined from several, each of which may have been combined before.

    Args:
        headers: of those LoRAs.
        names: what to call a LoRA whose header names no concept.
        weights: of each.
        mode: how they were combined.
    """
    concepts: list[str] = []
    for header, name in zip(headers, names, strict=True):
        concepts += header_concepts(header, name) or [name]
    # `concepts`, not `concept`: readers of the latter take it for the one concept of the file.
    # They are of one model, so the first that names its family speaks for all.
    families = [header[f"{FIELD}family"] for header in headers if f"{FIELD}family" in header]
    return {
        **model_spec(", ".join(concepts)),
        **family_spec(families[0] if families else ""),
        f"{FIELD}method": f"combined by {mode}",
        f"{FIELD}concepts": json.dumps(concepts),
        f"{FIELD}weights": json.dumps(list(weights)),
    }


def header_concepts(header: Mapping[str, str], name: str) -> list[str]:
    """What a LoRA erases, by its header: one concept, those of a combined LoRA, or none.

    Args:
        header: of a LoRA file.
        name: of the LoRA, for the error.

    Raises:
        ValueError: the header holds nonsense.
    """
    concept = header.get(f"{FIELD}concept", "").strip()
    combined = header_value(header, f"{FIELD}concepts", [], name)
    return [concept] if concept else [str(each) for each in combined]


def checkpoint_header(
    concepts: Sequence[str], base_model: str, strength: float, lora: str, family: str = ""
) -> dict[str, str]:
    """The header of a whole model that has an eraser in its weights.

    Args:
        concepts: what is erased; may be empty.
        base_model: the fingerprint of the model before.
        strength: of the LoRA.
        lora: a digest of its tensors.
        family: of the model, as ComfyUI calls it; empty for FLUX.1.
    """
    return {
        **model_spec(""),
        **family_spec(family),
        "modelspec.architecture": family or "flux-1-dev",
        "modelspec.title": f"model with the eraser of {', '.join(concepts)}" if concepts else "model with an eraser",
        f"{FIELD}method": "an eraser in the weights",
        f"{FIELD}base_model": base_model,
        f"{FIELD}concepts": json.dumps(list(concepts)),
        f"{FIELD}strength": json.dumps(strength),
        f"{FIELD}lora_sha256": lora,
    }


def header_value(header: Mapping[str, str], key: str, default: Any, name: str) -> Any:
    """A JSON value of a header, of the same kind as its default.

    Args:
        header: of a LoRA file; it holds strings only.
        key: of the value.
        default: the value of a header without the key; a list or a dictionary.
        name: of the LoRA, for the error.

    Raises:
        ValueError: the header holds something else, which the message names.
    """
    if key not in header:
        return default
    problem = f"the header of {name} holds {quoted(header[key])} as {key}"
    try:
        value = json.loads(header[key])
    except (ValueError, RecursionError) as error:  # nested a thousandfold it is JSON too
        raise ValueError(f"{problem}, which is no JSON: save the LoRA again without it") from error
    if not isinstance(value, type(default)):
        raise ValueError(f"{problem}, which is no {JSON_KINDS[type(default)]}: save the LoRA again without it")
    return value


def _header_number(header: Mapping[str, str], field: str, name: str) -> float:
    """A number of a header within the bounds of `HEADER_NUMBERS`; see `training_size`."""
    lowest, highest = HEADER_NUMBERS[field]
    problem = f"the header of {name} holds {quoted(header[f'{FIELD}{field}'])} as {FIELD}{field}"
    advice = f"save the LoRA again with {lowest} to {highest}"
    try:
        number = float(header[f"{FIELD}{field}"])
    except ValueError as error:
        raise ValueError(f"{problem}, which is no number: {advice}") from error
    # Written so that NaN fails too.
    if not lowest <= number <= highest:
        raise ValueError(f"{problem}, which is out of bounds: {advice}")
    return number


def training_size(header: Mapping[str, str], name: str = "the LoRA") -> dict[str, Any]:
    """The size and guidance of an eraser's training, as far as a header has them.

    Args:
        header: of a LoRA file.
        name: of the LoRA, for the error.

    Returns:
        `width` and `height` in pixels and `guidance`, those that are there.

    Raises:
        ValueError: one of them is no number, or one that would take all memory.
    """
    size: dict[str, Any] = {}
    for field in ("width", "height"):
        if f"{FIELD}{field}" in header:
            size[field] = int(_header_number(header, field, name))
    if f"{FIELD}guidance" in header:
        size["guidance"] = _header_number(header, "guidance", name)
    return size


@dataclass(frozen=True)
class ErasedConcept:
    """A concept that is erased, and what its eraser was trained to keep.

    Attributes:
        names: the concept, then its synonyms.
        templates: sentences with `{}` for the concept.
        irrelevant: words that were kept.
        retain: whole prompts that were kept.
        width, height: of the training's pictures, in pixels.
        guidance: of the training.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...] = prompts.DEFAULT_TEMPLATES
    irrelevant: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    width: int = 512
    height: int = 512
    guidance: float = 3.5

    @classmethod
    def from_header(cls, header: Mapping[str, str], name: str, advice: str = "") -> "ErasedConcept":
        """Reads a header as the trainer writes it.

        Args:
            header: of a LoRA file.
            name: of the LoRA, for the error.
            advice: what the user can do where the header names no concept, for the error.

        Raises:
            ValueError: the header does not say what the LoRA erases, or holds nonsense.
        """
        concept = header.get(f"{FIELD}concept", "").strip()
        if not concept:
            advice = advice or "use an eraser of Erase Trainer"
            raise ValueError(f"{name} does not say what it erases: {advice}")
        # Lists are JSON in a header, which holds strings only; files of other packs have none of them.
        lists = {}
        for field in ("synonyms", "templates", "irrelevant", "retain"):
            entries = header_value(header, f"{FIELD}{field}", [], name)
            # Blank ones have no words to search for.
            lists[field] = tuple(str(entry) for entry in entries if str(entry).strip())
        return cls(
            names=(concept, *lists["synonyms"]),
            templates=lists["templates"] or cls.templates,
            irrelevant=lists["irrelevant"],
            retain=lists["retain"],
            **training_size(header, name),
        )

    def sentences(self, count: int, seed: int) -> list[str]:
        """Prompts that name the concept or a synonym, `count` at most, drawn by the seed."""
        sentences = []
        for template in self.templates:
            for name in self.names:
                sentences.append(prompts.fill(template, name))
        return random.Random(seed).sample(sentences, min(count, len(sentences)))

    def concept_prompts(self) -> list[str]:
        """Prompts that ask for the concept by its name, one a template."""
        return [prompts.fill(template, self.names[0]) for template in self.templates]

    def kept_prompts(self) -> list[str]:
        """Prompts that its training kept."""
        sentences = list(self.retain)
        for template in self.templates:
            for word in self.irrelevant:
                sentences.append(prompts.fill(template, word))
        return sentences


def kept_by_all(erased: Sequence[ErasedConcept], count: int, seed: int) -> list[str]:
    """Prompts that erasers were trained to keep, and that name nothing which another of them erases.

    Args:
        erased: the erasers' concepts.
        count: how many at most.
        seed: of the draw.
    """
    names: list[str] = []
    candidates: list[str] = []
    for concept in erased:
        names += concept.names
        candidates += concept.kept_prompts()
    # What one eraser keeps another one may erase: `heart` is an irrelevant word of `star`.
    free = [prompt for prompt in dict.fromkeys(candidates) if matching.first_occurring(prompt, names) is None]
    return random.Random(seed).sample(free, min(count, len(free)))


def typed_concepts(text: str) -> list[ErasedConcept]:
    """Concepts from a typed list: a line each, the concept first, then its synonyms, with commas.

    Raises:
        ValueError: a line has nothing but commas.
    """
    concepts = []
    for line in prompts.lines_of(text):
        names = prompts.words_of(line)
        if not names:
            raise ValueError(f"the line {quoted(line)} of `concepts` names no concept: type one, or delete the line")
        concepts.append(ErasedConcept(names))
    return concepts
