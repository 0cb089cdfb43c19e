"""The judge that never learned: which render of the artwork is nearest to the thing in a picture.

It finds the ground, cuts out what differs from it, and compares the cut-out with every icon of every artist, under each
filter and mirrored; then the nearest few again, as they look on that ground. It reads pictures of one thing, and runs
where the artwork is installed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.world.artwork import SETS, rendered
from lab.world.drawing import FILTERS, ground, lights
from lab.world.scenes import GROUNDS, HALF, SIDE, STEP
from lab.world.things import ICONS, THINGS

SMALL = 16  # px a side of what is compared first
FINE = 32  # and of the nearest few
BORDER = 3  # px of the picture's edge that show the ground, mostly
DIFFERENT = 0.10  # mean difference of a pixel's colour from the ground's
FEWEST = 60  # pixels: less is no thing
FAR = 0.08  # mean squared difference: a picture whose nearest render is farther shows nothing known
AGAIN = 24  # renders that are compared on the picture's own ground
MARK = (slice(79, 95), slice(60, 95))  # rows and columns of a watermark

_THING_OF = {icon: thing.name for thing in THINGS for icon in thing.icons}


@dataclass(frozen=True)
class Render:
    """An icon as an artist draws it.

    Attributes:
        artist: the set of the icon.
        style: the set, or a filter over it.
    """

    icon: str
    artist: str
    style: str
    flipped: bool


@dataclass(frozen=True)
class Nearest:
    """The nearest render of a picture, or none.

    Attributes:
        thing, style: of the render; None where the picture shows nothing that is near to one.
        distance: mean squared difference to it.
    """

    thing: str | None
    style: str | None
    distance: float


class Oracle:
    """All renders as cut-outs.

    Args:
        artwork: of all `ICONS`, as `artwork.rendered` gives it; fetched where it is not installed.
        icons: the ones that are known.
    """

    def __init__(self, artwork: Tensor | None = None, icons: Sequence[str] = ICONS) -> None:
        self.artwork = rendered(ICONS) if artwork is None else artwork
        self.renders = [
            Render(icon, artist, style, flipped)
            for icon in icons
            for artist in SETS
            for style in (artist, *FILTERS)
            for flipped in (False, True)
        ]
        self.cutouts = torch.stack([cut_out(*self.layer(render)) for render in self.renders])
        self.squares = self.cutouts.pow(2).sum(1)

    def layer(self, render: Render, down: int = 0, right: int = 0) -> tuple[Tensor, Tensor]:
        """Colour [3, 96, 96] and alpha [96, 96] of a render, so many px from the middle of a scene."""
        scaled = self.artwork[ICONS.index(render.icon), list(SETS).index(render.artist)].float() / 255
        premultiplied = torch.cat((scaled[:3] * scaled[3:], scaled[3:]))
        small = F.interpolate(premultiplied[None], size=(2 * HALF, 2 * HALF), mode="bilinear", antialias=True)[0]
        both = F.pad(small, [(SIDE - 2 * HALF) // 2] * 4)
        both = both.flip(-1) if render.flipped else both
        both = both.roll((down, right), (1, 2))
        colour, alpha = both[:3] / both[3:].clamp(min=1e-3), both[3:]
        if render.style in FILTERS:
            colour, alpha = FILTERS[render.style](colour, alpha)
        return colour, alpha[0]

    def read(self, pictures: Tensor) -> list[Nearest]:
        """The nearest render of each picture [n, 3, 96, 96] in [0, 1]."""
        return [self._nearest(picture) for picture in pictures]

    def _nearest(self, picture: Tensor) -> Nearest:
        base, alpha = foreground(picture)
        unmarked = alpha.clone()
        unmarked[MARK] = 0
        near = [self._of(picture, base, seen) for seen in (alpha, unmarked) if seen.sum() >= FEWEST]
        distance, render = min(near, key=lambda pair: pair[0], default=(float("inf"), self.renders[0]))
        if distance > FAR:
            return Nearest(None, None, distance)
        return Nearest(_THING_OF[render.icon], render.style, distance)

    def _of(self, picture: Tensor, base: Tensor, alpha: Tensor) -> tuple[float, Render]:
        own = cut_out(picture, alpha)
        fine = cut_out(picture, alpha, FINE)
        place = centre(alpha)
        first = (self.squares - 2 * self.cutouts @ own).topk(min(AGAIN, len(self.renders)), largest=False).indices
        distances = {int(number): self._on(base, self.renders[number], fine, place) for number in first}
        best = min(distances, key=lambda number: distances[number])
        return distances[best], self.renders[best]

    def _on(self, base: Tensor, render: Render, own: Tensor, place: tuple[float, float]) -> float:
        """The distance of a cut-out to a render there on a ground; parts of the ground's colour are not seen."""
        middle = centre((self.layer(render)[1] > 0.5).float())
        down, right = (_shift(there - here) for there, here in zip(place, middle))
        colour, alpha = self.layer(render, down, right)
        shown = base * (1 - alpha) + colour * alpha
        return (cut_out(shown, differing(shown, base), FINE) - own).pow(2).mean().item()


def _shift(px: float) -> int:
    """The shift of a thing that is alone which is nearest to so many px."""
    return STEP // 2 if px > 0 else -STEP // 2


def _grounds() -> Tensor:
    plain = [ground(name) for name in GROUNDS]
    return torch.stack([*plain, *(lights(canvas) for canvas in plain)])


ALL_GROUNDS = _grounds()  # with and without lights, [16, 3, 96, 96]


def foreground(picture: Tensor) -> tuple[Tensor, Tensor]:
    """The ground that explains the border best [3, 96, 96], and where the picture differs from it, 0 or 1, [96, 96]."""
    difference = (ALL_GROUNDS - picture).abs().mean(1)
    border = torch.ones(SIDE, SIDE, dtype=torch.bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    # The median: a thing may reach into the border.
    best = difference[:, border].median(1).values.argmin()
    return ALL_GROUNDS[best], differing(picture, ALL_GROUNDS[best])


def differing(picture: Tensor, base: Tensor) -> Tensor:
    """Where a picture differs from a ground, 0 or 1, [96, 96]; single pixels are smoothed away."""
    difference = (picture - base).abs().mean(0)
    return (F.avg_pool2d(difference[None, None], 3, 1, 1)[0, 0] > DIFFERENT).float()


def centre(alpha: Tensor) -> tuple[float, float]:
    """The row and the column of the middle of what a mask [96, 96] holds, px."""
    rows, columns = alpha.nonzero(as_tuple=True)
    return (rows.min() + rows.max()).item() / 2, (columns.min() + columns.max()).item() / 2


def cut_out(picture: Tensor, alpha: Tensor, size: int = SMALL) -> Tensor:
    """The part of a picture under a mask, its box filled: colour times alpha, and alpha, [4 * size * size]."""
    solid = alpha > 0.5
    rows = solid.sum(1).gt(1).nonzero()
    columns = solid.sum(0).gt(1).nonzero()
    if len(rows) == 0 or len(columns) == 0:
        return torch.zeros(4 * size * size)
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    layer = torch.cat((picture * alpha, alpha[None]))[(slice(None), *box)]
    height, width = layer.shape[1:]
    side = max(height, width)
    # Squared before it is made smaller, so that long things stay long.
    square = F.pad(
        layer, ((side - width) // 2, (side - width + 1) // 2, (side - height) // 2, (side - height + 1) // 2)
    )
    return F.interpolate(square[None], size=(size, size), mode="area")[0].flatten()
