"""A judge without training: it reads a picture by rendering what it might be, and rejects it when nothing fits.

One object: for every entity and style the silhouette's box says where the object would be and how large. The picture is
rendered so, and the nearest of all renders wins if it is near enough. Pictures are compared with a tolerance of one
pixel: both are softened, and each of sixteen windows is compared at the best of nine shifts. Without it a thin line
that is off by one pixel would miss its render entirely. Two objects: their colours are separated and their boxes
compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import label
from torch import Tensor

from .shapes import ENTITIES, INK, PAINT_STYLES
from .world import BACKGROUNDS, COLOURS, Object, Scene, render

SEEN = 0.12  # colour difference from the background from which a pixel belongs to something
FIT = 0.35  # residual, as a fraction of the energy of what is drawn, above which a render does not explain a picture
WINDOW = 24  # px, of a part of the picture that has its own shift
FEWEST_PIXELS = 30  # of an object whose colour can be read
PROBE_SIZES = (20.0, 28.0)  # px, half sizes at which an object's edges are measured


Box = np.ndarray  # (top, bottom, left, right), px


@dataclass(frozen=True)
class SceneReading:
    """What a judge sees; None where it sees nothing of the kind ("flat" is a style that it sees)."""

    entity: str | None = None
    style: str | None = None
    relation: str | None = None


def background_of(picture: Tensor) -> str:
    """The nearest background to the median colour of the picture's frame."""
    frame = torch.cat([picture[:, :3].flatten(1), picture[:, -3:].flatten(1), picture[:, :, :3].flatten(1)], dim=1)
    # A median: an object may touch the frame, and a blurred one reaches it.
    middle = frame.median(dim=1).values

    def distance(name: str) -> float:
        return float((torch.tensor(BACKGROUNDS[name]) - middle).abs().sum())

    return min(BACKGROUNDS, key=distance)


def _seen(picture: Tensor, background: str) -> Tensor:
    """Which pixels differ from the background, [h, w] bool."""
    return (picture - torch.tensor(BACKGROUNDS[background])[:, None, None]).abs().amax(0) > SEEN


def _box(mask: Tensor) -> Tensor | None:
    """(left, right, top, bottom) of what is true, px; None where it is too small."""
    columns = mask.sum(0).gt(1).nonzero()
    rows = mask.sum(1).gt(1).nonzero()
    if len(columns) < 4 or len(rows) < 4:
        return None
    return torch.stack([columns[0, 0], columns[-1, 0] + 1, rows[0, 0], rows[-1, 0] + 1]).float()


@cache
def _edges(entity: str, style: str | None, colour: str, background: str) -> tuple[Tensor, Tensor]:
    """Where an object's box lies around its centre: edges = r * slope + offset, each [4].

    Styles such as a glow reach beyond the silhouette, so the edges are measured at two sizes.
    """
    boxes = []
    for r in PROBE_SIZES:
        scene = Scene((Object(entity, colour, 48.0, 48.0, r),), background, style)
        box = _box(_seen(render(scene), background))
        assert box is not None  # an object of these sizes has one
        boxes.append(box - 48.0)
    slope = (boxes[1] - boxes[0]) / (PROBE_SIZES[1] - PROBE_SIZES[0])
    return slope, boxes[0] - PROBE_SIZES[0] * slope


def _place(box: Tensor, entity: str, style: str | None, colour: str, background: str) -> Object:
    """The object of a kind whose box is nearest to the given one, by least squares over width and height."""
    # Inverts edges = r * slope + offset for the box that was seen.
    slope, offset = _edges(entity, style, colour, background)
    middles = (box[[0, 2]] + box[[1, 3]]) / 2
    sizes = box[[1, 3]] - box[[0, 2]]
    slopes = slope[[1, 3]] - slope[[0, 2]]
    extra = offset[[1, 3]] - offset[[0, 2]]
    r = float(((sizes - extra) * slopes).sum() / (slopes**2).sum())
    drift = ((slope[[0, 2]] + slope[[1, 3]]) * r + offset[[0, 2]] + offset[[1, 3]]) / 2
    return Object(entity, colour, float(middles[0] - drift[0]), float(middles[1] - drift[1]), max(4.0, r))


def colour_of(picture: Tensor, seen: Tensor) -> str:
    """The palette's colour whose hue most of the seen pixels have; strong ones count more."""
    pixels = picture[:, seen].T
    # Without their grey part, colours that a style has shaded keep their hue.
    chroma = pixels - pixels.min(1, keepdim=True).values
    palette = torch.tensor(list(COLOURS.values()))
    palette = palette - palette.min(1, keepdim=True).values
    # The cosine compares hues and leaves brightness out.
    similar = F.normalize(chroma, dim=1) @ F.normalize(palette, dim=1).T
    votes = torch.zeros(len(COLOURS)).index_add(0, similar.argmax(1), chroma.amax(1))
    return list(COLOURS)[int(votes.argmax())]


def colour_and_ground(picture: Tensor) -> tuple[str | None, str]:
    """The colour of what is drawn, None where nothing is, and the background, of a picture [3, 96, 96]."""
    background = background_of(picture)
    seen = _seen(picture, background)
    colour = colour_of(picture, seen) if seen.sum() > FEWEST_PIXELS else None
    return colour, background


def _soft(picture: Tensor) -> Tensor:
    """The picture [3, h, w] averaged over 5 x 5 px with weights 1, 4, 6, 4, 1 in both directions."""
    for _ in range(2):
        wide = F.pad(picture, (1, 1, 1, 1), mode="replicate")
        wide = (wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]) / 4
        picture = (wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]) / 4
    return picture


def _shifted(picture: Tensor) -> Tensor:
    """The picture [3, h, w] softened and moved by -1, 0 and 1 px each way, [9, 3, h, w]."""
    wide = F.pad(_soft(picture), (1, 1, 1, 1), mode="replicate")
    h, w = picture.shape[1:]
    return torch.stack([wide[:, y : y + h, x : x + w] for y in range(3) for x in range(3)])


def _difference(shown: Tensor, drawn: Tensor) -> Tensor:
    """Squared difference of a render [3, h, w] to the shifts [9, 3, h, w], every window at its best shift."""
    return F.avg_pool2d((shown - drawn).pow(2).sum(1), WINDOW).amin(0).sum() * WINDOW**2


def read_object(picture: Tensor) -> SceneReading:
    """Entity and style of a picture [3, 96, 96] with one object; an empty reading if nothing explains it."""
    background = background_of(picture)
    seen = _seen(picture, background)
    box = _box(seen)
    if box is None:
        return SceneReading()
    colour = colour_of(picture, seen)
    blank = torch.tensor(BACKGROUNDS[background])[:, None, None]
    shown = _shifted(picture)
    lowest = FIT
    best = SceneReading()
    for entity in ENTITIES:
        for style in (None, *PAINT_STYLES):
            scene = Scene((_place(box, entity, style, colour, background),), background, style)
            drawn = _soft(render(scene))
            # Relative to what is drawn, so that a thin outline and a filled square are judged alike.
            energy = (drawn - blank).pow(2).sum() + 1e-6
            residual = float(_difference(shown, drawn) / energy)
            if residual < lowest:
                lowest = residual
                best = SceneReading(entity, style or "flat")
    return best


def _colour_masks(picture: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks of the two colours that cover most, larger first, and the mask of ink."""
    palette = torch.tensor([*COLOURS.values(), *BACKGROUNDS.values(), (INK,) * 3])
    nearest = (picture.permute(1, 2, 0)[:, :, None] - palette).pow(2).sum(-1).argmin(-1)
    masks = [(nearest == i).numpy() for i in range(len(COLOURS))]
    masks.sort(key=lambda mask: -mask.sum())
    ink = (nearest == len(palette) - 1).numpy()
    return masks[0], masks[1], ink


def _parts(mask: np.ndarray, least: int = 25) -> list[Box]:
    """Boxes of a mask's connected parts of at least `least` pixels."""
    numbered, count = label(mask)
    parts = []
    for i in range(1, count + 1):
        rows, columns = np.nonzero(numbered == i)
        if len(rows) >= least:
            parts.append(np.array([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]))
    return parts


def _bounding_box(parts: Sequence[Box]) -> Box:
    """The box around several boxes."""
    boxes = np.array(parts)
    return np.array([boxes[:, 0].min(), boxes[:, 1].max(), boxes[:, 2].min(), boxes[:, 3].max()])


def _area(box: Box) -> int:
    return (box[1] - box[0]) * (box[3] - box[2])


def _relation_by_place(a: Box, b: Box) -> str | None:
    """The relation of two boxes, `a` the larger."""
    down = max(a[0], b[0]) - min(a[1], b[1])  # gap if positive, overlap if negative
    along = max(a[2], b[2]) - min(a[3], b[3])
    if _area(a) > 4 * _area(b) and down < 0 and along < 0:
        return "inside"
    if down > 6:
        return "opposite" if along > 6 else "above"
    if along <= -3:
        return "overlapping"
    return "touching" if along <= 13 else "beside"


def _groups(first: np.ndarray, second: np.ndarray) -> tuple[list[Box], list[Box]]:
    """The parts of the two objects: by colour, or of one colour the part in the middle and the others."""
    parts = _parts(first)
    others = _parts(second)
    if others or len(parts) < 2:
        return parts, others
    centres = np.array([((p[0] + p[1]) / 2, (p[2] + p[3]) / 2) for p in parts])
    middle = int(np.linalg.norm(centres - centres.mean(0), axis=1).argmin())
    return parts[:middle] + parts[middle + 1 :], [parts[middle]]


def read_relation(picture: Tensor) -> SceneReading:
    """The relation in a picture [3, 96, 96] of two flat objects; an empty reading without two of them."""
    first, second, ink = _colour_masks(picture)
    groups = _groups(first, second)
    if not groups[0] or not groups[1]:
        return SceneReading()
    # Ink is drawn only as a bar: from edge to edge between divided objects, shorter between tied ones.
    if ink.mean(axis=0).max() > 0.8:
        return SceneReading(relation="divided")
    if ink.sum() > 40:
        return SceneReading(relation="tied")
    boxes = [_bounding_box(group) for group in groups]
    for own, other in ((0, 1), (1, 0)):
        relation = _relation_by_copies(groups[own], boxes[own], boxes[other])
        if relation:
            return SceneReading(relation=relation)
    larger, smaller = sorted(boxes, key=lambda box: -_area(box))
    return SceneReading(relation=_relation_by_place(larger, smaller))


def _relation_by_copies(parts: Sequence[Box], around: Box, inner: Box) -> str | None:
    """The relation of an object whose copies stand around another one; None where they do not.

    Args:
        parts: the boxes of the copies.
        around: the box around all of them.
        inner: the box of the other object.
    """
    centre = inner.reshape(2, 2).mean(1)
    directions = []
    for part in parts:
        down = np.sign((part[0] + part[1]) / 2 - centre[0])
        right = np.sign((part[2] + part[3]) / 2 - centre[1])
        directions.append((down, right))
    spread = around.reshape(2, 2) @ [-1, 1]  # height and width
    if len(set(directions)) == 4 and spread.min() > 60:
        return "amid"
    if {right for _, right in directions} == {-1.0, 1.0} and spread[1] > 66 and spread[0] < 40:
        return "between"
    return None


def read(pictures: Tensor, kind: str) -> list[SceneReading]:
    """Reads pictures [n, 3, 96, 96] of one object (kind "entity" or "style") or of two (kind "relation")."""
    reader = read_relation if kind == "relation" else read_object
    return [reader(picture) for picture in pictures]
