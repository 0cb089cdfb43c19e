"""The user study of the paper's Appendix E: a page for raters that knows no method, and its ratings as a radar.

Two trials. "erasing": one picture a method, same prompt, guidance and seed, rated for cleanliness and preservation.
"quality": several pictures a method, varied seeds, rated for quality, adherence and diversity.
"""

import base64
import csv
import hashlib
import json
import math
import mimetypes
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from matplotlib.figure import Figure

from eraseanything_core.evaluation.metrics import clustered_bootstrap

TRIALS = {
    "erasing": {
        "cleanliness": "Erasing cleanliness: nothing is left of “{concept}”",
        "preservation": "Irrelevant preservation: “{irrelevant}” is as it should be",
    },
    "quality": {
        "quality": "Imaging quality",
        "adherence": "Prompt adherence",
        "diversity": "Output diversity",
    },
}
AXES = tuple(axis for axes in TRIALS.values() for axis in axes)
COLUMNS = ("study", "rater", "item", "letter", "axis", "rating")
TEMPLATE = Path(__file__).with_name("study.html")


@dataclass(frozen=True)
class Item:
    """One set of pictures.

    Attributes:
        trial: of `TRIALS`.
        prompt: what the pictures were made from.
        images: {method: files}; one file a method in "erasing".
        concept, irrelevant: what was erased, and what of the prompt should have stayed; for "erasing".
    """

    trial: str
    prompt: str
    images: dict[str, tuple[Path, ...]]
    concept: str = ""
    irrelevant: str = ""


def read_items(path: Path) -> list[Item]:
    """The items of a JSON list; files are looked for beside it.

    Raises:
        ValueError: an item that cannot be shown fairly.
    """
    items = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        images = {m: tuple(path.parent / f for f in files) for m, files in entry["images"].items()}
        items.append(Item(**entry | {"images": images}))
        check(items[-1], len(items))
    return items


def check(item: Item, number: int):
    """Raises ValueError for an item that cannot be shown fairly."""
    if item.trial not in TRIALS:
        raise ValueError(f"item {number}: there is no trial {item.trial!r}; known: {', '.join(TRIALS)}")
    if len({len(files) for files in item.images.values()}) != 1 or not 2 <= len(item.images) <= len(ascii_uppercase):
        raise ValueError(f"item {number}: give 2 to 26 methods, and every method as many pictures")
    if item.trial == "erasing" and not (item.concept and item.irrelevant):
        raise ValueError(f"item {number}: say which concept was erased and what should have stayed")
    missing = [f.name for files in item.images.values() for f in files if not f.is_file()]
    if missing:
        raise ValueError(f"item {number}: there is no picture {missing[0]}")


def page(items: list[Item], title: str, seed: int) -> tuple[str, dict]:
    """A page that needs nothing else, and the key to its letters.

    Args:
        items: shown in an order drawn from the seed; so are each item's methods.
        title: of the page.
        seed: equal seeds give equal pages.

    Returns:
        The HTML, which names no method and no file, and {"study", "items": {number: {letter: method}}}.
    """
    rng = random.Random(seed)
    shown = []
    key = {}
    for number, item in enumerate(rng.sample(items, len(items))):
        methods = rng.sample(sorted(item.images), len(item.images))
        letters = dict(zip(ascii_uppercase, methods))
        words = {"concept": item.concept, "irrelevant": item.irrelevant}
        shown.append(
            {
                "trial": item.trial,
                "prompt": item.prompt,
                "axes": {axis: text.format(**words) for axis, text in TRIALS[item.trial].items()},
                "pictures": {letter: [embedded(f) for f in item.images[m]] for letter, m in letters.items()},
            }
        )
        key[str(number)] = letters
    data = json.dumps({"title": title, "items": shown}, sort_keys=True)
    study = hashlib.sha256(data.encode()).hexdigest()[:12]
    data = json.dumps({"study": study, **json.loads(data)}).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace("/* data */ null", data), {"study": study, "items": key}


def embedded(file: Path) -> str:
    """A picture as a data URI."""
    kind = mimetypes.guess_type(file.name)[0]
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def ratings(files: Iterable[Path], key: dict) -> dict[str, dict[str, dict[str, list[int]]]]:
    """{axis: {method: {rater: ratings}}} of what the page exported.

    Raises:
        ValueError: no rating at all, or a line that is not of this study, is double or is no rating.
    """
    by_axis = {axis: defaultdict(lambda: defaultdict(list)) for axis in AXES}
    seen = set()
    for file in files:
        with file.open(newline="", encoding="utf-8") as opened:
            for line in csv.DictReader(opened):
                where = tuple(line.get(name) or "" for name in COLUMNS[:-1])
                method = key["items"].get(where[2], {}).get(where[3])
                if where[0] != key["study"] or method is None or where[4] not in AXES:
                    raise ValueError(f"{file.name}: a line is not of the study {key['study']}: {where}")
                if line["rating"] not in ("1", "2", "3", "4", "5"):
                    raise ValueError(f"{file.name}: {line['rating']!r} is no rating from 1 to 5")
                if where in seen:
                    raise ValueError(f"{file.name}: a rating stands twice: {where}")
                seen.add(where)
                by_axis[where[4]][method][where[1]].append(int(line["rating"]))
    if not seen:
        raise ValueError("there are no ratings: nothing is drawn")
    return by_axis


def means(ratings_by_axis: dict) -> dict[str, dict[str, dict]]:
    """{method: {axis: {"value", "low", "high", "n", "raters"}}}; raters are drawn again, then their ratings.

    Raises:
        ValueError: fewer than two raters, so that nothing is known of how raters differ.
    """
    if len({rater for methods in ratings_by_axis.values() for raters in methods.values() for rater in raters}) < 2:
        raise ValueError("an interval needs the ratings of at least two raters")
    result = defaultdict(dict)
    for axis, methods in ratings_by_axis.items():
        for method, raters in methods.items():
            interval = clustered_bootstrap({axis: list(raters.values())}, lambda r, axis=axis: r[axis])
            mean = {name: round(value, 3) for name, value in interval.items()}
            count = sum(len(values) for values in raters.values())
            result[method][axis] = mean | {"n": count, "raters": len(raters)}
    return dict(result)


def mean_text(mean: dict) -> str:
    """A mean with its interval and n."""
    return f"{mean['value']:.2f} ({mean['low']:.2f} to {mean['high']:.2f}, n = {mean['n']})"


def markdown(result: dict[str, dict[str, dict]]) -> str:
    """The means for people."""
    lines = ["| method | " + " | ".join(AXES) + " |", "| --- |" + " ---: |" * len(AXES)]
    for method, axes in result.items():
        cells = [mean_text(axes[axis]) if axis in axes else "not asked" for axis in AXES]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Mean ratings from 1 to 5; 95 % intervals by redrawing raters.", ""])


def radar(result: dict[str, dict[str, dict]]) -> Figure:
    """Five axes from 1 to 5: lines join a method's means, bands and bars are the intervals.

    A method that was not asked on every axis has bars only.
    """
    figure = Figure(figsize=(7, 6), dpi=120, layout="constrained")
    axes = figure.add_subplot(projection="polar")
    turn = {axis: 2 * math.pi * i / len(AXES) for i, axis in enumerate(AXES)}
    for number, (method, means_of) in enumerate(result.items()):
        angles = [turn[axis] for axis in AXES if axis in means_of]
        value, low, high = (
            [means_of[axis][name] for axis in AXES if axis in means_of] for name in ("value", "low", "high")
        )
        shifted = [angle + 0.03 * (number - len(result) / 2) for angle in angles]  # bars side by side
        reach = [[v - a for v, a in zip(value, low)], [b - v for v, b in zip(value, high)]]
        bars = axes.errorbar(shifted, value, yerr=reach, fmt="o", capsize=3, label=method)
        if len(angles) == len(AXES):
            colour = bars[0].get_color()
            axes.plot([*angles, angles[0]], [*value, value[0]], color=colour)
            axes.fill_between([*angles, angles[0]], [*low, low[0]], [*high, high[0]], color=colour, alpha=0.15)
    axes.set(ylim=(1, 5), yticks=range(1, 6), theta_offset=math.pi / 2, theta_direction=-1)
    axes.set_xticks(list(turn.values()), list(turn))
    figure.legend(loc="outside lower center", ncols=3)
    return figure
