"""An edit as one picture: before, after, the difference, the tokens that changed; a row per image."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from vqcortex.errors import ShapeError

LEAST = 112  # pixels per side at least: smaller pictures are enlarged, every pixel a square
GAP = 6
GROUND, MARK = (255, 255, 255), np.array((240, 106, 36), np.float64)


def strip(
    before: Float[Tensor, "b 3 H W"], after: Float[Tensor, "n 3 H W"], changed: Bool[Tensor, "m p q"]
) -> Image.Image:
    """Per image, from left to right: before, after, absolute difference on white, after with changed tokens marked.

    Args:
        before: Images in [0, 1].
        after: The edited ones.
        changed: True where a token changed, of the grid that fills the picture.

    Raises:
        ShapeError: There is no image, or the numbers of images differ.
    """
    if not len(before) == len(after) == len(changed) or not len(before):
        raise ShapeError(
            f"{len(before)} images came with {len(after)} edits and {len(changed)} marks; give 1 or more each"
        )
    was, now = (one.permute(0, 2, 3, 1).double().cpu().numpy() for one in (before, after))
    away = 1 - np.abs(now - was).mean(-1, keepdims=True).repeat(3, -1)
    tall, wide = was.shape[1:3]
    scale = max(1, -(-LEAST // max(tall, wide)))
    rows = [
        np.concatenate(
            [
                _framed(_enlarged(one, scale))
                for one in (was[n], now[n], away[n], _marked(now[n], changed[n].cpu().numpy()))
            ],
            1,
        )
        for n in range(len(was))
    ]
    return Image.fromarray(np.concatenate(rows, 0))


def _enlarged(pixels: np.ndarray, scale: int) -> np.ndarray:
    return np.rint(pixels * 255).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)


def _marked(pixels: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Half picture, half colour where a token changed."""
    rows, columns = (np.arange(n) * cells // n for n, cells in zip(pixels.shape[:2], changed.shape, strict=True))
    here = changed[rows][:, columns][..., None]
    return np.where(here, (pixels + MARK / 255) / 2, pixels)


def _framed(pixels: np.ndarray) -> np.ndarray:
    framed = np.full((pixels.shape[0] + GAP, pixels.shape[1] + GAP, 3), GROUND, np.uint8)
    framed[GAP // 2 : -GAP // 2, GAP // 2 : -GAP // 2] = pixels
    return framed
