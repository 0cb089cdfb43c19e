"""The artwork: one SVG a thing and set, from npm packages of the Iconify project, rendered once and kept.

The packages are fetched when somebody trains or runs the oracle. Nothing of them is committed: TINYFLUX.md names the
artists and their licences.
"""

import hashlib
import importlib.util
import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "artwork"
SIZE = 128  # px of a rendered thing, more than a scene ever shows


@dataclass(frozen=True)
class ArtSet:
    """A set of emoji by one group of artists.

    Attributes:
        package, version: of the npm registry; a fixed version keeps the pictures the same.
        licence: what its artists ask for.
    """

    package: str
    version: str
    licence: str


SETS = {  # the word that a prompt calls the style by
    "noto": ArtSet("@iconify-json/noto", "1.2.9", "Apache-2.0"),
    "blob": ArtSet("@iconify-json/noto-v1", "1.2.5", "Apache-2.0"),
    "glossy": ArtSet("@iconify-json/fluent-emoji", "1.2.7", "MIT"),
    "flat": ArtSet("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
    "twemoji": ArtSet("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0"),
    "emojione": ArtSet("@iconify-json/emojione", "1.2.3", "CC-BY-4.0"),
}


def fetch(art: ArtSet, cache: Path = CACHE) -> dict:
    """The icons of a set as Iconify's JSON; downloaded by npm the first time.

    Raises:
        RuntimeError: npm is missing, or the registry cannot be reached.
    """
    path = cache / f"{art.package.rpartition('/')[2]}-{art.version}.json"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pack = ["npm", "pack", "--silent", "--pack-destination", str(cache), f"{art.package}@{art.version}"]
        try:
            archive = subprocess.run(pack, check=True, capture_output=True, text=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"npm could not fetch {art.package}: install Node.js and check the network") from error
        with tarfile.open(cache / archive) as package:
            icons = package.extractfile("package/icons.json")
            assert icons is not None
            path.write_bytes(icons.read())
    return json.loads(path.read_text(encoding="utf-8"))


def svg(icons: dict, name: str) -> str:
    """The SVG of an icon; an alias is the icon that it points to."""
    while name in icons.get("aliases", {}):
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'{head} viewBox="0 0 {width} {height}" width="{SIZE}" height="{SIZE}">{icon["body"]}</svg>'


def rendered(names: Sequence[str], cache: Path = CACHE) -> Tensor:
    """All icons in all sets, uint8 [icons, sets, 4, 128, 128], RGB with alpha; kept in a file."""
    key = hashlib.sha256(repr((tuple(names), SETS)).encode()).hexdigest()[:12]
    path = cache / f"rendered-{key}.npy"
    if not path.exists():
        pictures = np.zeros((len(names), len(SETS), 4, SIZE, SIZE), np.uint8)
        for column, art in enumerate(SETS.values()):
            icons = fetch(art, cache)
            for row, name in enumerate(names):
                pictures[row, column] = render(svg(icons, name))
        np.save(path, pictures)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def render(source: str) -> np.ndarray:
    """An SVG as uint8 [4, 128, 128], centred on a transparent square.

    Raises:
        RuntimeError: resvg-py is not installed.
    """
    if importlib.util.find_spec("resvg_py") is None:
        raise RuntimeError("the artwork of lab/world is drawn by resvg-py: run `pip install resvg-py`")
    import resvg_py

    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=source, width=SIZE)))).convert("RGBA")
    square = Image.new("RGBA", (SIZE, SIZE))
    square.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return np.asarray(square).transpose(2, 0, 1)
