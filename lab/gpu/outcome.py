"""What a check finds."""

from dataclasses import dataclass, field

Figure = float | str | bool
NOT_MEASURED = "not measured here"


class Skipped(Exception):
    """A check that cannot run here; the message is one sentence that says why."""


@dataclass
class Outcome:
    """What a check has measured, and what of it is not as it should be.

    Attributes:
        figures: by name.
        problems: one sentence each; a check without any has passed.
        skipped: why it did not run; empty where it did.
        seconds: that it took.
    """

    figures: dict[str, Figure] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    def at_most(self, name: str, value: float | None, bound: float) -> None:
        """Notes a figure that must not be above its bound; NaN is, and None was not measured."""
        self.figures[name] = NOT_MEASURED if value is None else value
        if value is not None and not value <= bound:
            self.problems.append(f"{name} is {value:.4g}, at most {bound:g} is right")

    def at_least(self, name: str, value: float, bound: float) -> None:
        """Notes a figure that must not be below its bound; NaN is."""
        self.figures[name] = value
        if not value >= bound:
            self.problems.append(f"{name} is {value:.4g}, at least {bound:g} is right")

    def must(self, name: str, holds: bool) -> None:
        """Notes something that has to be so."""
        self.figures[name] = bool(holds)
        if not holds:
            self.problems.append(f"not so: {name}")

    @property
    def state(self) -> str:
        """Passed, failed or skipped."""
        if self.skipped:
            return "skipped"
        return "failed" if self.problems else "passed"
