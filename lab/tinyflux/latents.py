"""The latents of the world, computed from a scene and not from its picture.

What a generator finds hard decides what it learns: with latents that only compress pixels, a small Flux learns
colours and no shapes, and with thumbnails and names of shapes its points stay blunt. So a cell of 8 x 8 px holds four
things, each of about unit variance:

- channels 0-4: a thumbnail of the picture, 2 x 2 px a cell, as its five strongest components; it is painted flat,
  or with its texture (which the thumbnail just resolves) if the style is one;
- channels 5-7: where the cell lies in the entity that covers it, (x - cx) / r and (y - cy) / r, and r: smooth fields,
  from which and from the code the decoder draws the silhouette;
- channels 8-11: a code of the entity that covers the cell;
- channels 12-15: a code of the style that paints what covers the cell, zero for flat colour, on top of a fixed
  pattern that alternates with the cell's row (12, 13) and column (14, 15): without a pattern in its input, a
  decoder of convolutions and nearest upsampling cannot tell where inside a cell it is.

The autoencoder learns to decode them into pictures and to read them off pictures.
"""

import random
from dataclasses import replace
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from eraseanything_core.tinyflux.shapes import ENTITIES, PAINT_STYLES, TEXTURES
from eraseanything_core.tinyflux.world import PICTURE_SIZE, Scene, render
from lab.tinyflux.scenes import draw_scene, object_mask

CELLS = 12
THUMBNAIL = 5
PLACE = 3
CODE = 4
CODES = torch.tensor([v for v in product((-1.0, 1.0), repeat=CODE)])[torch.tensor([0, 15, 3, 12, 5, 10, 6, 9, 1, 14])]
REACH = 7  # px: how far beyond an object its codes reach, so that halos and shadows fall inside
ALTERNATION = 0.6
RADIUS = 24.0  # px: the unit of r
# Flux's latent format: model latent = (vae latent - shift) * scale
LATENT_SCALE = 0.3611
LATENT_SHIFT = 0.1159


def _patches(scene: Scene) -> Tensor:
    """The thumbnail as [12, 12, 12]: 3 colours x 2 x 2 px a cell."""
    style = scene.style if scene.style in TEXTURES else None
    small = F.avg_pool2d(render(replace(scene, style=style))[None], PICTURE_SIZE // CELLS // 2)
    return F.pixel_unshuffle(small, 2)[0]


def _covered(scene: Scene) -> tuple[Tensor, Tensor]:
    """[12, 12] each: how much an object covers the cell, fading with the distance from it, and which one."""
    near = torch.zeros(len(scene.objects), CELLS, CELLS)
    for i, thing in enumerate(scene.objects):
        alone = replace(scene, objects=(thing,))
        wide = F.max_pool2d(object_mask(alone, thing.entity)[None], (1, 2 * REACH + 1), 1, (0, REACH))
        grown = F.max_pool2d(wide, (2 * REACH + 1, 1), 1, (REACH, 0))
        # The first object lies on top, so it wins where two cover a cell alike.
        rank = 1.0 + 1e-3 * (len(scene.objects) - i)
        near[i] = F.avg_pool2d(grown, PICTURE_SIZE // CELLS)[0] * rank
    strength, owner = near.max(0)
    return strength.clamp(max=1), owner


def _names(scene: Scene) -> Tensor:
    """[11, 12, 12]: the place in the object, the codes of entity and style, faded with the distance from it."""
    strength, owner = _covered(scene)
    cx, cy, r = (torch.tensor([getattr(o, name) for o in scene.objects])[owner] for name in ("cx", "cy", "r"))
    centre = (torch.arange(CELLS) + 0.5) * (PICTURE_SIZE // CELLS)
    place = torch.stack([(centre[None, :] - cx) / r, (centre[:, None] - cy) / r, r / RADIUS])
    entity = CODES[torch.tensor([list(ENTITIES).index(o.entity) for o in scene.objects])][owner].permute(2, 0, 1)
    style = CODES[PAINT_STYLES.index(scene.style)] if scene.style else torch.zeros(CODE)
    return torch.cat([place, entity, style[:, None, None].expand(-1, CELLS, CELLS)]) * strength


@cache
def _basis() -> tuple[Tensor, Tensor, Tensor]:
    """(mean [12], components [5, 12], std of all channels [16]) of 2,000 scenes of the training distribution."""
    rng = random.Random(20)
    scenes = [draw_scene(rng) for _ in range(2000)]
    patches = torch.stack([_patches(s) for s in scenes])  # n c h w
    names = torch.stack([_names(s) for s in scenes])
    rows = patches.permute(0, 2, 3, 1).reshape(-1, 12)
    mean = rows.mean(0)
    components = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:THUMBNAIL]
    spread = ((rows - mean) @ components.T).std(0).clamp(min=0.12)  # edges are rare and strong: no full whitening
    std = names.std(dim=(0, 2, 3))
    x = std[0:1]
    y = std[1:2]
    r = std[2:3]
    entity = std[3:7].mean()
    style = std[7:].mean()
    return mean, components, torch.cat([spread, x, y, r, entity.expand(CODE), style.expand(CODE)])


def _alternation() -> Tensor:
    """[16, 12, 12]: the fixed pattern of the last four channels."""
    sign = 1.0 - 2.0 * (torch.arange(CELLS) % 2)
    pattern = torch.zeros(THUMBNAIL + PLACE + 2 * CODE, CELLS, CELLS)
    pattern[-4:-2] = ALTERNATION * sign[:, None]
    pattern[-2:] = ALTERNATION * sign[None, :]
    return pattern


def scene_latent(scene: Scene) -> Tensor:
    """The model-space latent x_0 of a scene, [16, 12, 12], every channel with a variance near 1 over the world."""
    mean, components, std = _basis()
    thumbnail = torch.einsum("kc,chw->khw", components, _patches(scene) - mean[:, None, None])
    return torch.cat([thumbnail, _names(scene)]) / std[:, None, None] + _alternation()
