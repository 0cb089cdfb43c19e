"""The user study of the paper's Appendix E on any pictures.

    python scripts/dev.py study page items.json --seed 7     writes study.html, for raters, and study.key.json
    python scripts/dev.py study draw ratings_*.csv           writes study.json, .md and .svg from what they sent back

`items.json` is a list of {"trial": "erasing", "prompt", "concept", "irrelevant", "images": {method: [file]}} and
{"trial": "quality", "prompt", "images": {method: [file, ...]}}. Keep the key from the raters.
"""

import argparse
import json
import sys
from pathlib import Path

from lab.provenance import commit
from lab.study import study


def write(path: Path, text: str):
    """Writes a file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    print(f"{path} is written")


def make_page(items: Path, out: Path, title: str, seed: int):
    """Writes the page for raters and the key that leads back to the methods."""
    html, key = study.page(study.read_items(items), title, seed)
    write(out.with_suffix(".html"), html)
    write(out.with_suffix(".key.json"), json.dumps(key, indent=1) + "\n")


def draw(files: list[Path], out: Path):
    """Writes means and the radar chart of what the raters sent back."""
    key = json.loads(out.with_suffix(".key.json").read_text(encoding="utf-8"))
    result = study.means(study.ratings(files, key))
    command = f"python scripts/dev.py study draw {' '.join(f.name for f in files)}"
    report = {"command": command, "commit": commit(), "study": key["study"], "methods": result}
    write(out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    write(out.with_suffix(".md"), study.markdown(result))
    study.radar(result).savefig(out.with_suffix(".svg.part"), format="svg")
    out.with_suffix(".svg.part").replace(out.with_suffix(".svg"))
    print(study.markdown(result))


def main() -> int:
    """Makes the page or draws the result; returns an exit code."""
    parser = argparse.ArgumentParser(
        prog="dev.py study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("page", "draw"))
    parser.add_argument("files", nargs="+", type=Path, help="items.json, or the ratings")
    parser.add_argument("--out", type=Path, default=Path("study"), help="path of what is written, without ending")
    parser.add_argument("--title", default="User study")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        if args.what == "page":
            make_page(args.files[0], args.out, args.title, args.seed)
        else:
            draw(args.files, args.out)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
