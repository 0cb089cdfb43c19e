"""The user study in a real browser: a rater sees every set, cannot skip a rating, and exports what was clicked."""

import csv
import json

import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from lab.study import study

METHODS = ("ours", "ESD", "UCE", "MACE", "EAP", "CA")


@pytest.fixture
def made(tmp_path):
    """The page's file and key: an erasing set of six methods and a quality set of three."""
    for method in METHODS:
        for i in range(3):
            Image.new("RGB", (24, 24), (40 * i, 120, 200)).save(tmp_path / f"{method}_{i}.png")
    entries = [
        {
            "trial": "erasing",
            "prompt": "Drake </script> wears a Rolex",
            "concept": "Drake",
            "irrelevant": "Rolex",
            "images": {method: [f"{method}_0.png"] for method in METHODS},
        },
        {
            "trial": "quality",
            "prompt": "four aliens on a sofa",
            "images": {method: [f"{method}_{i}.png" for i in range(3)] for method in METHODS[:3]},
        },
    ]
    (tmp_path / "items.json").write_text(json.dumps(entries))
    html, key = study.page(study.read_items(tmp_path / "items.json"), "Study", seed=5)
    (tmp_path / "study.html").write_text(html, encoding="utf-8")
    return tmp_path / "study.html", key


def rate(page, key, number: int, values: dict[str, int]):
    """Clicks the value of each method on every scale of a set."""
    for letter, method in key["items"][str(number)].items():
        for axis in study.TRIALS["erasing" if len(key["items"][str(number)]) == 6 else "quality"]:
            page.locator(f'input[name="{number} {letter} {axis}"][value="{values[method]}"]').check()


def test_a_rater_rates_everything_and_the_csv_leads_back_to_methods(browser, made, tmp_path):
    file, key = made
    context = browser.new_context(offline=True)
    page, problems, asked = context.new_page(), [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.click("#begin")
    assert page.inner_text("#message") == "Type a name or a code first."
    page.fill("#rater", 'Ann "3", Lee')
    page.click("#begin")
    values = {method: i % 5 + 1 for i, method in enumerate(METHODS)}
    for number in range(2):
        letters = key["items"][str(number)]
        assert page.inner_text("#progress") == f"Set {number + 1} of 2"
        assert page.locator(".method").count() == len(letters)
        page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth === 24)")
        page.click("#next")
        assert page.inner_text("#message").startswith("Not rated yet: A (")
        rate(page, key, number, values)
        page.click("#next")
    with page.expect_download() as download:
        page.click("#save")
    saved = tmp_path / "saved.csv"
    download.value.save_as(saved)
    assert download.value.suggested_filename == f"ratings_{key['study']}_Ann_3_Lee.csv"
    assert not problems and all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    with saved.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 6 * 2 + 3 * 3 and {row["rater"] for row in rows} == {'Ann "3", Lee'}
    found = study.ratings([saved], key)
    assert found["cleanliness"] == {method: {'Ann "3", Lee': [value]} for method, value in values.items()}
    assert found["diversity"] == {method: {'Ann "3", Lee': [values[method]]} for method in METHODS[:3]}
    context.close()


def test_ratings_survive_a_reload_and_a_step_back(browser, made):
    file, key = made
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto(file.as_uri())
    page.fill("#rater", "Bo")
    page.click("#begin")
    rate(page, key, 0, dict.fromkeys(METHODS, 4))
    page.reload()
    page.fill("#rater", "Bo")
    page.click("#begin")
    assert page.locator("input:checked").count() == page.locator("fieldset").count()
    page.click("#next")
    page.click("#back")
    assert page.inner_text("#progress") == "Set 1 of 2"
    assert page.locator('input[value="4"]:checked').count() == page.locator("fieldset").count()
    page.reload()
    page.fill("#rater", "Cy")
    page.click("#begin")
    assert page.locator("input:checked").count() == 0  # another rater's page is empty
    context.close()
