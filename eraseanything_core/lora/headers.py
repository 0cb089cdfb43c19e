"""What an eraser says about itself in the header of its file."""

import json
import random
from dataclasses import dataclass

from ..concepts import matching, prompts
from .adapter import title


@dataclass(frozen=True)
class Erased:
    """A concept that is erased, and what its eraser was trained to keep."""

    names: tuple[str, ...]  # the concept first, then its synonyms
    templates: tuple[str, ...] = prompts.TEMPLATES
    irrelevant: tuple[str, ...] = ()  # words
    retain: tuple[str, ...] = ()  # whole prompts
    width: int = 512  # px
    height: int = 512
    guidance: float = 3.5

    @classmethod
    def of(cls, header: dict[str, str], name: str) -> "Erased":
        """Reads a header as the trainer writes it.

        Args:
            name: of the LoRA, for the error.

        Raises:
            ValueError: it does not say what it erases.
        """
        concept = header.get("eraseanything.concept", "").strip()
        if not concept:
            raise ValueError(
                f"{name} does not say what it erases, as erasers of Erase Trainer do: use one of those, or type its "
                "concept into `concepts` of Multi Erase LoRA"
            )
        lists = {
            field: tuple(json.loads(header.get(f"eraseanything.{field}", "[]")))
            for field in ("synonyms", "templates", "irrelevant", "retain")
        }
        size = {
            field: kind(header[f"eraseanything.{field}"])
            for field, kind in (("width", int), ("height", int), ("guidance", float))
            if f"eraseanything.{field}" in header
        }
        templates = lists["templates"] or prompts.TEMPLATES
        return cls((concept, *lists["synonyms"]), templates, lists["irrelevant"], lists["retain"], **size)

    def sentences(self, count: int, seed: int) -> list[str]:
        """Prompts that name the concept, `count` at most."""
        every = [prompts.fill(t, name) for t in self.templates for name in self.names]
        return random.Random(seed).sample(every, min(count, len(every)))

    def asking(self) -> list[str]:
        """Prompts that ask for the concept by its name, one a template."""
        return [prompts.fill(template, self.names[0]) for template in self.templates]

    def kept(self) -> list[str]:
        """Prompts that its training kept."""
        return [*self.retain, *(prompts.fill(t, word) for t in self.templates for word in self.irrelevant)]


def kept_by_all(erased: list[Erased], count: int, seed: int) -> list[str]:
    """Prompts that the erasers kept, `count` at most, without any that names what one of them erases."""
    names = [name for e in erased for name in e.names]
    every = dict.fromkeys(p for e in erased for p in e.kept())
    free = [p for p in every if not any(matching.occurs(p, name) for name in names)]
    return random.Random(seed).sample(free, min(count, len(free)))


def listed(text: str) -> list[Erased]:
    """Concepts from a typed list: a line each, the concept first, then its synonyms, with commas."""
    return [Erased(prompts.words_of(line)) for line in prompts.lines_of(text)]


def joint_header(headers: list[dict[str, str]], names: list[str], weights: list[float], mode: str) -> dict[str, str]:
    """The header of a LoRA that was made of several."""
    concepts = [h.get("eraseanything.concept", name) for h, name in zip(headers, names, strict=True)]
    return {
        **title(", ".join(concepts)),
        "eraseanything.method": f"combined by {mode}",
        "eraseanything.concepts": json.dumps(concepts),
        "eraseanything.weights": json.dumps(weights),
    }
