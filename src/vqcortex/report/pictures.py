"""Arrays to pictures inside the page: `data:` addresses of PNG or JPEG, and the maps laid over them."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vqcortex.exhibit import Floats, Pictures

CRISP = 64  # pictures up to this many pixels a side keep every pixel, and are shown with hard edges
LARGEST = 192  # larger ones are reduced to this: a page must stay under 15 MB
PATCH = 64
QUALITY = 82

WARM, COOL = (240, 106, 36), (56, 134, 255)  # above and below zero, visible on black and on white


def address_of(picture: Image.Image, is_crisp: bool) -> str:
    """A picture as a data address: exact PNG, or JPEG for photographs."""
    buffer = BytesIO()
    if is_crisp:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    kind = "png" if is_crisp else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def is_crisp(pixels: NDArray[np.uint8]) -> bool:
    """Whether pictures (…, H, W, 3) are so small that every pixel counts."""
    return bool(max(pixels.shape[-3:-1]) <= CRISP)


def reduced(pixels: Pictures, largest: int) -> Image.Image:
    """One picture (H, W, 3), no side longer than `largest`; without its colour channels if they are all alike."""
    is_grey = bool((pixels == pixels[..., :1]).all())
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if is_grey else pixels))
    picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    return picture


def picture_address(pixels: Pictures, largest: int = LARGEST) -> str:
    """One picture (H, W, 3)."""
    return address_of(reduced(pixels, largest), is_crisp(pixels))


def strip_address(pixels: Pictures, largest: int = LARGEST) -> str:
    """Pictures (p, H, W, 3) side by side in one, p at least 1: one picture costs less than many."""
    cells = [reduced(one, largest).convert("RGB") for one in pixels]
    wide, high = cells[0].size
    strip = np.concatenate([np.asarray(one) for one in cells], 1)
    assert strip.shape[:2] == (high, wide * len(cells))
    return address_of(reduced(strip.astype(np.uint8), max(strip.shape[:2])), is_crisp(pixels))


def overlay_pixels(importance: Floats) -> NDArray[np.uint8]:
    """One pixel per position (h, w, 4): warm above zero, cool below, the more opaque the farther from it.

    Each image has its own scale: its farthest value is opaque. Values that are no number stay clear.
    """
    values = np.nan_to_num(importance.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(np.abs(values).max()) or 1.0
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = np.where(values[..., None] >= 0, WARM, COOL)
    pixels[..., 3] = np.rint(np.abs(values) / top * 255)
    return pixels


def overlay_address(importance: Floats) -> str:
    """`overlay_pixels` as a PNG of h*w pixels, to be stretched over the image."""
    return address_of(Image.fromarray(overlay_pixels(importance)), is_crisp=True)


def top_cells(importance: Floats, count: int) -> list[tuple[int, int]]:
    """(row, column) of the highest values, best first, ties in reading order."""
    values = np.nan_to_num(importance, nan=-np.inf).ravel()
    order = np.argsort(-values, kind="stable")[:count]
    return [(int(place) // importance.shape[1], int(place) % importance.shape[1]) for place in order]


def cells_path(cells: Iterable[tuple[int, int]], inset: float = 0.0) -> str:
    """SVG path around each (row, column), one unit per position."""
    side = 1 - 2 * inset
    return "".join(f"M{column + inset:g} {row + inset:g}h{side:g}v{side:g}h-{side:g}z" for row, column in cells)


def outline_path(free: NDArray[np.bool_], shift: int = 0) -> str:
    """SVG path along the border between True and False positions, one unit per position.

    Args:
        free: (h, w).
        shift: Columns to its left.

    Example:
        >>> outline_path(np.array([[True]]))
        'M0 0h1M0 1h1M0 0v1M1 0v1'
    """
    padded = np.pad(free, 1)
    across = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    down = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    return "".join(f"M{column + shift} {row}h1" for row, column in across) + "".join(
        f"M{column + shift} {row}v1" for row, column in down
    )


def strip_outline(free: NDArray[np.bool_], count: int) -> str:
    """`outline_path` in each of the pictures of a strip."""
    return "".join(outline_path(free, free.shape[1] * number) for number in range(count))
