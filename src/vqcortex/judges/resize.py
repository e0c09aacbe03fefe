"""Pictures of any size at the one size that a judge looks at."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def squared(pixels: Float[Tensor, "b ch H W"], side: int) -> Float[Tensor, "b ch side side"]:
    """Images at side x side pixels, averaged where they shrink and interpolated where they grow.

    An image that is not square is stretched: a judge meets every image of a study alike.

    Args:
        pixels: Any height and width.
        side: Height and width wanted, at least 1.
    """
    if pixels.shape[-2:] == (side, side):
        return pixels
    return F.interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False)
