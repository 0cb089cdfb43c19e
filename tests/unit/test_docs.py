"""What people read: sentences stay short, help pages describe every input, and every link leads somewhere."""

import json
import re
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "comfy" / "nodes.golden.json"
HELP_PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *HELP_PAGES,
]
# The owner is not known before the first release, so the address has a placeholder.
REPOSITORY = re.compile(r"https://github\.com/OWNER/ComfyUI-EraseAnything/(?:blob|tree)/main/")

LONGEST_SENTENCE = 35  # words
LONGEST_HELP_PAGE = 100  # lines
LARGEST_HELP_PAGE = 8500  # characters: about two screens of the help panel


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[str]:
    """The paragraphs, list items and table cells of a page, without code and headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    found, lines = [], []
    for line in [*text.splitlines(), ""]:
        is_code = line.startswith("    ") and not lines
        starts_block = line.lstrip().startswith(("- ", "* ", "|", "#", "![")) or not line.strip()
        if starts_block and lines:
            found.append(" ".join(lines))
            lines = []
        if re.match(r"\[[^\]]+\]: ", line):
            continue  # the address of a link
        if line.startswith("|"):
            found += [cell for cell in line.strip("|").split(" | ") if cell.strip(" -:|")]
        elif line.strip() and not is_code and not line.startswith("#"):
            lines.append(line.strip().removeprefix("- "))
    return found


def sentences(text: str) -> list[str]:
    """The sentences of a page; code counts as one word and a link as its text."""
    found = []
    for block in blocks(text):
        plain = re.sub(r"`[^`]*`", "x", block)
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        # A colon may end a sentence, but not within "e.g." or a number.
        found += [part for part in re.split(r"(?<=[.!?:])\s+", plain) if part.strip()]
    return found


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """The targets of a page's links and pictures, outside of code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)
    inline = re.findall(r"\]\(([^)\s]+)\)", text)
    referenced = re.findall(r"^\[[^\]]+\]: (\S+)$", text, flags=re.MULTILINE)
    return inline + referenced


def section(page: str, heading: str) -> str:
    """What stands below a heading."""
    return page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def rows(page: str, heading: str) -> list[str]:
    """The names in the first column of the tables below a heading, in order."""
    cells = [line.split("|")[1] for line in section(page, heading).splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def listed(page: str, heading: str) -> list[str]:
    """The names with which the entries of the lists below a heading begin, in order."""
    return re.findall(r"^ *- `([^`]+)`: \S", section(page, heading), flags=re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_no_sentence_is_long(path):
    long = [s for s in sentences(path.read_text(encoding="utf-8")) if len(s.split()) > LONGEST_SENTENCE]
    assert not long


def test_half_of_the_sentences_are_short():
    lengths = []
    for path in PAGES:
        # Cells of tables are short anyway and would hide long prose.
        prose = re.sub(r"^\|.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        lengths += [len(sentence.split()) for sentence in sentences(prose)]
    assert median(lengths) < 18


def test_sentences_are_counted_in_paragraphs_lists_and_tables():
    text = "# No\n\nOne two. Three\nfour `five six`.\n\n- A [b c](d e).\n\n    code here\n\n"
    text += "| a b | c |\n| --- | --- |\n"
    assert sentences(text) == ["One two.", "Three four x.", "A b c.", " a b", "c "]


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_link_leads_somewhere(path):
    for link in links(path.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if REPOSITORY.match(target):
            file = ROOT / REPOSITORY.sub("", target)
        elif "://" in target or target.startswith("mailto:"):
            continue
        else:
            file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{link} is not there"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{link} has no such heading"


@pytest.mark.parametrize("path", HELP_PAGES, ids=page_id)
def test_a_help_page_is_two_screens_at_most(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST_HELP_PAGE
    assert len(text) <= LARGEST_HELP_PAGE


@pytest.mark.parametrize("path", HELP_PAGES, ids=page_id)
def test_links_of_a_help_page_work_inside_comfyui(path):
    """The help panel opens no relative links."""
    relative = [link for link in links(path.read_text(encoding="utf-8")) if "://" not in link]
    assert not relative


@pytest.mark.parametrize("path", HELP_PAGES, ids=page_id)
def test_a_help_page_describes_every_input_and_output_in_order(path):
    page = path.read_text(encoding="utf-8")
    node = json.loads(GOLDEN.read_text(encoding="utf-8"))[path.stem]
    inputs = [name.split(".")[0] for name in node["inputs"]]
    assert rows(page, "Inputs") == list(dict.fromkeys(inputs))
    assert rows(page, "Outputs") == list(node["outputs"])
    fields = [name.split(".")[-1] for name in node["inputs"] if name.count(".") == 2]
    # Long names: a table of them would be wider than the help panel, which cuts it.
    assert not fields or listed(page, "Fields") == fields


def test_a_help_page_starts_with_what_it_does_and_an_example():
    for path in HELP_PAGES:
        page = path.read_text(encoding="utf-8")
        headings = re.findall(r"^## (.+)$", page, flags=re.MULTILINE)
        assert headings[:3] == ["Example", "Inputs", "Outputs"], path.name
        assert "**Use it" in page.split("## Example")[0], path.name


def test_every_node_has_a_help_page():
    assert {path.stem for path in HELP_PAGES} == set(json.loads(GOLDEN.read_text(encoding="utf-8")))


def test_the_floor_plan_names_every_file_and_no_other():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room, heading in (("eraseanything_core", "Map of the core"), ("nodes", "Map of the nodes")):
        folder = ROOT / room
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
        section = page.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
        described = set()
        subfolder = ""
        for line in section.splitlines():
            if line.startswith("### "):
                subfolder = line[4:] if line.endswith("/") else ""
            if line.startswith("| `"):
                described.add(subfolder + line.split("`")[1])
        assert not described - files
        assert {file for file in files - described if not file.endswith("__init__.py")} == set()
