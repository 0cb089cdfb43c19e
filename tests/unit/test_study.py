"""The user study: a page that gives nothing away, and ratings that are never made up."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from lab.study import study

METHODS = ("ours", "ESD", "UCE", "MACE", "EAP", "CA")


@pytest.fixture
def items(tmp_path):
    """Four sets of pictures: two erasing ones of six methods, two quality ones of three methods and two seeds."""
    entries = []
    for number, trial in enumerate(("erasing", "quality", "erasing", "quality")):
        images = {}
        for m, method in enumerate(METHODS if trial == "erasing" else METHODS[:3]):
            files = [f"{method}_{number}_{i}.png" for i in range(1 if trial == "erasing" else 2)]
            for i, file in enumerate(files):
                Image.new("RGB", (16, 16), (20 * m, 40 * number, 60 * i)).save(tmp_path / file)
            images[method] = files
        words = {"concept": "Drake", "irrelevant": "Rolex"} if trial == "erasing" else {}
        entries.append({"trial": trial, "prompt": f"prompt <{number}>", "images": images, **words})
    (tmp_path / "items.json").write_text(json.dumps(entries))
    return tmp_path / "items.json"


def lines(key, rater, rate):
    """What the page exports, every rating by `rate(item, method, axis)`."""
    rows = [",".join(f'"{c}"' for c in study.COLUMNS)]
    for item, letters in key["items"].items():
        for letter, method in letters.items():
            for axis in study.TRIALS["erasing" if len(letters) == 6 else "quality"]:
                row = (key["study"], rater, item, letter, axis, rate(item, method, axis))
                rows.append(",".join(f'"{c}"' for c in row))
    return "\r\n".join(rows) + "\r\n"


def test_the_page_names_no_method_and_needs_no_network(items):
    html, key = study.page(study.read_items(items), "Study", seed=3)
    for method in METHODS:
        assert f'"{method}"' not in html and f"{method}_" not in html
    assert "http" not in html and "src=" not in html and html.count("data:image/png;base64,") == 2 * 6 + 2 * 3 * 2
    assert "\\u003c0>" in html and "prompt <0>" not in html  # a prompt cannot end the script
    assert sorted(map(len, key["items"].values())) == [3, 3, 6, 6]


def test_pages_repeat_by_seed_and_letters_mean_something_else_in_every_set(items):
    found = study.read_items(items)
    assert study.page(found, "Study", 3) == study.page(found, "Study", 3)
    assert study.page(found, "Study", 3)[0] != study.page(found, "Study", 4)[0]
    sets = [tuple(letters.values()) for s in range(5) for letters in study.page(found, "S", s)[1]["items"].values()]
    assert len(set(sets)) > 10


def test_letters_lead_back_to_methods(items, tmp_path):
    key = study.page(study.read_items(items), "Study", 1)[1]
    value = {method: i % 5 + 1 for i, method in enumerate(METHODS)}
    for rater in ("r1", "r2", "r3"):
        text = lines(key, rater, lambda item, method, axis: value[method])
        (tmp_path / f"{rater}.csv").write_text(text, encoding="utf-8")
    result = study.means(study.ratings(sorted(tmp_path.glob("r*.csv")), key))
    assert {m: a["cleanliness"]["value"] for m, a in result.items()} == value
    assert set(result["MACE"]) == {"cleanliness", "preservation"} and set(result["ours"]) == set(study.AXES)
    assert result["ESD"]["quality"] == {"value": 2, "low": 2, "high": 2, "n": 6, "raters": 3}
    assert "| MACE | 4.00 (4.00 to 4.00, n = 6)" in study.markdown(result) and "not asked" in study.markdown(result)


def test_raters_that_disagree_widen_the_interval(items, tmp_path):
    key = study.page(study.read_items(items), "Study", 1)[1]
    for rater, value in (("r1", 1), ("r2", 5), ("r3", 3)):
        (tmp_path / f"{rater}.csv").write_text(lines(key, rater, lambda *_, value=value: value), encoding="utf-8")
    told = study.means(study.ratings(sorted(tmp_path.glob("r*.csv")), key))["ours"]["quality"]
    assert told["value"] == 3 and told["low"] < 2 and told["high"] > 4


def test_one_rater_gives_no_interval(items, tmp_path):
    key = study.page(study.read_items(items), "Study", 1)[1]
    (tmp_path / "r.csv").write_text(lines(key, "r", lambda *_: 3), encoding="utf-8")
    with pytest.raises(ValueError, match="at least two raters"):
        study.means(study.ratings([tmp_path / "r.csv"], key))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.splitlines()[0], "there are no ratings"),
        (lambda text: text + text.splitlines()[1], "stands twice"),
        (lambda text: text.replace('"3"\r\n', '"6"\r\n', 1), "'6' is no rating"),
        (lambda text: text.replace('"3"\r\n', '""\r\n', 1), "'' is no rating"),
        (lambda text: text.replace('"A"', '"Q"', 1), "not of the study"),
    ],
)
def test_what_is_no_rating_is_refused(items, tmp_path, change, message):
    key = study.page(study.read_items(items), "Study", 1)[1]
    (tmp_path / "r.csv").write_text(change(lines(key, "r", lambda *_: 3)), encoding="utf-8", newline="")
    with pytest.raises(ValueError, match=message):
        study.ratings([tmp_path / "r.csv"], key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trial": "taste"}, "no trial 'taste'"),
        ({"concept": ""}, "which concept was erased"),
        ({"images": {"a": ["x.png"], "b": []}}, "every method as many"),
        ({"images": {"a": ["x.png"], "b": ["y.png"]}}, "there is no picture x.png"),
    ],
)
def test_an_unfair_item_is_refused(items, change, message):
    entries = json.loads(items.read_text())
    items.write_text(json.dumps([entries[0] | change]))
    with pytest.raises(ValueError, match=f"item 1: .*{message}"):
        study.read_items(items)


def test_the_radar_shows_means_and_intervals():
    told = {"value": 3.0, "low": 2.5, "high": 3.5, "n": 8, "raters": 4}
    result = {"ours": dict.fromkeys(study.AXES, told), "MACE": {"cleanliness": told}}
    axes = study.radar(result).axes[0]
    closed = [line for line in axes.lines if len(line.get_xdata()) == 6]
    assert len(closed) == 1 and np.allclose(closed[0].get_ydata(), 3.0)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(study.AXES)
    assert len(axes.collections) >= 3  # a band and the bars of both
