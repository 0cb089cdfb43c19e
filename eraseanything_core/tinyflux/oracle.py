"""A judge without training: it reads a picture by rendering what it might be, and says so when nothing fits.

One object: for every entity and style a silhouette's box tells where the object would stand and how large it would
be; the picture is rendered so, and the nearest of all renders wins if it is near enough. Pictures are compared with a
tolerance of a pixel: both softened, and each of sixteen windows at the best of nine shifts, since a thin line that is
a pixel off on one side only would miss a render entirely. Two objects: their colours are separated and their places
compared.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import label
from torch import Tensor

from .shapes import ENTITIES, STYLES
from .world import BACKGROUNDS, COLOURS, Object, Scene, render

SEEN = 0.12  # colour difference from the background from which a pixel belongs to something
FIT = 0.35  # residual, as a fraction of the energy of what is drawn, above which a render does not explain a picture
WINDOW = 24  # px, of a part of the picture that has its own shift


@dataclass(frozen=True)
class Reading:
    """What a judge sees; None where it sees nothing of the kind ("flat" is a style that it sees)."""

    entity: str | None = None
    style: str | None = None
    relation: str | None = None


def background_of(picture: Tensor) -> str:
    """The nearest background to the middle colour of the picture's frame."""
    frame = torch.cat([picture[:, :3].flatten(1), picture[:, -3:].flatten(1), picture[:, :, :3].flatten(1)], dim=1)
    middle = frame.median(dim=1).values
    return min(BACKGROUNDS, key=lambda name: (torch.tensor(BACKGROUNDS[name]) - middle).abs().sum())


def _seen(picture: Tensor, background: str) -> Tensor:
    return (picture - torch.tensor(BACKGROUNDS[background])[:, None, None]).abs().amax(0) > SEEN


def _box(mask: Tensor) -> Tensor | None:
    """(left, right, top, bottom) of what is true, px."""
    columns, rows = mask.sum(0).gt(1).nonzero(), mask.sum(1).gt(1).nonzero()
    if len(columns) < 4 or len(rows) < 4:
        return None
    return torch.stack([columns[0, 0], columns[-1, 0] + 1, rows[0, 0], rows[-1, 0] + 1]).float()


@cache
def _edges(entity: str, style: str | None, colour: str, background: str) -> tuple[Tensor, Tensor]:
    """Where an object's box lies around its centre: edges = r * slope + offset, each [4]."""
    boxes = []
    for r in (20.0, 28.0):
        scene = Scene((Object(entity, colour, 48.0, 48.0, r),), background, style)
        boxes.append(_box(_seen(render(scene), background)) - 48.0)
    slope = (boxes[1] - boxes[0]) / 8.0
    return slope, boxes[0] - 20.0 * slope


def _place(box: Tensor, entity: str, style: str | None, colour: str, background: str) -> Object:
    """The object of a kind whose box is nearest to the given one."""
    slope, offset = _edges(entity, style, colour, background)
    middles, sizes = (box[[0, 2]] + box[[1, 3]]) / 2, box[[1, 3]] - box[[0, 2]]
    slopes, extra = slope[[1, 3]] - slope[[0, 2]], offset[[1, 3]] - offset[[0, 2]]
    r = float(((sizes - extra) * slopes).sum() / (slopes**2).sum())
    drift = ((slope[[0, 2]] + slope[[1, 3]]) * r + offset[[0, 2]] + offset[[1, 3]]) / 2
    return Object(entity, colour, float(middles[0] - drift[0]), float(middles[1] - drift[1]), max(4.0, r))


def colour_of(picture: Tensor, seen: Tensor) -> str:
    """The palette's colour whose hue most of the seen pixels have, strong ones counting more."""
    pixels = picture[:, seen].T
    chroma = pixels - pixels.min(1, keepdim=True).values
    palette = torch.tensor(list(COLOURS.values()))
    palette = palette - palette.min(1, keepdim=True).values
    similar = F.normalize(chroma, dim=1) @ F.normalize(palette, dim=1).T
    votes = torch.zeros(len(COLOURS)).index_add(0, similar.argmax(1), chroma.amax(1))
    return list(COLOURS)[int(votes.argmax())]


def colour_and_ground(picture: Tensor) -> tuple[str | None, str]:
    """The colour of what is drawn, None where nothing is, and the background, of a picture [3, 96, 96]."""
    background = background_of(picture)
    seen = _seen(picture, background)
    return (colour_of(picture, seen) if seen.sum() > 30 else None), background


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


def read_object(picture: Tensor) -> Reading:
    """Entity and style of a picture [3, 96, 96] with one object; an empty Reading if nothing explains it."""
    background = background_of(picture)
    seen = _seen(picture, background)
    box = _box(seen)
    if box is None:
        return Reading()
    colour = colour_of(picture, seen)
    blank = torch.tensor(BACKGROUNDS[background])[:, None, None]
    shown = _shifted(picture)
    best, found = FIT, Reading()
    for entity in ENTITIES:
        for style in (None, *STYLES):
            scene = Scene((_place(box, entity, style, colour, background),), background, style)
            drawn = _soft(render(scene))
            residual = float(_difference(shown, drawn) / ((drawn - blank).pow(2).sum() + 1e-6))
            if residual < best:
                best, found = residual, Reading(entity, style or "flat")
    return found


def _colour_masks(picture: Tensor) -> tuple[list[np.ndarray], np.ndarray]:
    """Masks of the two colours that cover most, larger first, and the mask of ink."""
    palette = torch.tensor([*COLOURS.values(), *BACKGROUNDS.values(), (0.08,) * 3])
    nearest = (picture.permute(1, 2, 0)[:, :, None] - palette).pow(2).sum(-1).argmin(-1)
    masks = sorted(((nearest == i).numpy() for i in range(len(COLOURS))), key=lambda m: -m.sum())[:2]
    return masks, (nearest == len(palette) - 1).numpy()


def _parts(mask: np.ndarray, least: int = 25) -> list[tuple[slice, slice]]:
    """Boxes (rows, columns) of a mask's connected parts of at least `least` pixels."""
    numbered, count = label(mask)
    parts = []
    for i in range(1, count + 1):
        rows, columns = np.nonzero(numbered == i)
        if len(rows) >= least:
            parts.append((rows.min(), rows.max() + 1, columns.min(), columns.max() + 1))
    return parts


def _joined(parts) -> np.ndarray:
    parts = np.array(parts)
    return np.array([parts[:, 0].min(), parts[:, 1].max(), parts[:, 2].min(), parts[:, 3].max()])


def _by_place(a: np.ndarray, b: np.ndarray) -> str | None:
    """The relation of two boxes (top, bottom, left, right), `a` the larger."""
    size = lambda box: (box[1] - box[0]) * (box[3] - box[2])  # noqa: E731
    down = max(a[0], b[0]) - min(a[1], b[1])  # gap if positive, overlap if negative
    along = max(a[2], b[2]) - min(a[3], b[3])
    if size(a) > 4 * size(b) and down < 0 and along < 0:
        return "inside"
    if down > 6:
        return "opposite" if along > 6 else "above"
    if along <= -3:
        return "overlapping"
    return "touching" if along <= 13 else "beside"


def _groups(first: np.ndarray, second: np.ndarray) -> list[list[tuple]]:
    """The parts of the two objects: by colour, or of one colour the part in the middle and the others."""
    groups = [_parts(first), _parts(second)]
    if not groups[1] and len(groups[0]) > 1:
        centres = np.array([((p[0] + p[1]) / 2, (p[2] + p[3]) / 2) for p in groups[0]])
        middle = int(np.linalg.norm(centres - centres.mean(0), axis=1).argmin())
        groups = [groups[0][:middle] + groups[0][middle + 1 :], [groups[0][middle]]]
    return groups


def read_relation(picture: Tensor) -> Reading:
    """The relation in a picture [3, 96, 96] of two flat objects; an empty Reading without two of them."""
    (first, second), ink = _colour_masks(picture)
    groups = _groups(first, second)
    if not groups[0] or not groups[1]:
        return Reading()
    if ink.mean(axis=0).max() > 0.8:
        return Reading(relation="divided")
    if ink.sum() > 40:
        return Reading(relation="tied")
    boxes = [_joined(group) for group in groups]
    for own, other in ((0, 1), (1, 0)):
        centre = boxes[other].reshape(2, 2).mean(1)
        around = [(np.sign((p[0] + p[1]) / 2 - centre[0]), np.sign((p[2] + p[3]) / 2 - centre[1])) for p in groups[own]]
        spread = boxes[own].reshape(2, 2) @ [-1, 1]
        if len(set(around)) == 4 and spread.min() > 60:
            return Reading(relation="amid")
        if {s for _, s in around} == {-1.0, 1.0} and spread[1] > 66 and spread[0] < 40:
            return Reading(relation="between")
    larger, smaller = sorted(boxes, key=lambda box: -(box[1] - box[0]) * (box[3] - box[2]))
    return Reading(relation=_by_place(larger, smaller))


def read(pictures: Tensor, kind: str) -> list[Reading]:
    """Reads pictures [n, 3, 96, 96] of one object (kind "entity" or "style") or of two (kind "relation")."""
    reader = read_relation if kind == "relation" else read_object
    return [reader(picture) for picture in pictures]
