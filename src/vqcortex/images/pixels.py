"""Pictures as tensors."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


def load_pixels(
    image: Image.Image, size: tuple[int, int], channels: Literal[1, 3] = 3
) -> Float[Tensor, "{channels} {size[0]} {size[1]}"]:
    """A picture as numbers in [0, 1].

    Args:
        image: Any mode; transparency is dropped.
        size: Height and width wanted, in pixels; a picture of another size is stretched to it (bilinear,
            antialiased).
        channels: 3 for RGB, 1 for grey.
    """
    picture = _eight_bit(image).convert("RGB" if channels == 3 else "L")
    if picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255)
    return pixels.reshape(*size, channels).permute(2, 0, 1).contiguous()


def _eight_bit(image: Image.Image) -> Image.Image:
    """Modes that Pillow converts badly, made plain: 16-bit grey would be clipped to white."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGBA") if image.mode == "P" else image
