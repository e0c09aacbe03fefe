"""Two codes put into images that hold neither: what one does, the other, and both.

Codes that exclude each other hardly meet in real images; here every pair can be tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.attribution.interactions import corners_of, synergy, values_on
from vqcortex.attribution.logits import AT_ONCE
from vqcortex.config import raise_all


def inserted_values(
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    codes: Float[Tensor, "m d"],
    places: Bool[Tensor, "m h w"],
    coalitions: Int[Tensor, "b q"],
    *,
    at_once: int = AT_ONCE,
) -> Float[Tensor, "b q"]:
    """Return the concept's logit of each image with some codes put in, float64 on the CPU.

    Args:
        embedded: Background images; meant to hold none of the codes put into them.
        concept: What the codes may speak for, hardly the images' own.
        codes: What is put in, at least 2.
        places: Where each code goes: at least one position, and none of another's.
        coalitions: Bit i is set where code i is put in, so that 0 is the image itself.
        at_once: Grids in one forward, at least 1.

    Raises:
        ConfigError: A code goes nowhere, or two to one position.
        ShapeError: Shapes do not fit one another.
        ModelError: The extractor gives NaN.
    """
    raise_all(_place_problems(places))
    places = places.to(embedded.device)
    put = (codes.to(embedded)[:, :, None, None] * places[:, None]).sum(0)
    shown = torch.where(places.any(0), put, embedded)
    players = places.expand(len(embedded), -1, -1, -1)
    return values_on(extractor, shown, [embedded], concept, image_ids, players, coalitions, at_once=at_once)


def insertion_synergy(
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    code_a: Float[Tensor, " d"],
    code_b: Float[Tensor, " d"],
    at_a: Bool[Tensor, "h w"],
    at_b: Bool[Tensor, "h w"],
    *,
    at_once: int = AT_ONCE,
) -> Float[Tensor, " b"]:
    """Return f(A and B) - f(A) - f(B) + f(neither) of each image, in logits.

    Above 0 where the concept needs both; far below 0 where it needs exactly one. Arguments and errors as in
    `inserted_values`, for two codes.
    """
    codes, places = torch.stack([code_a, code_b]), torch.stack([at_a, at_b])
    four = corners_of(2).expand(len(embedded), -1)
    return synergy(inserted_values(extractor, embedded, concept, image_ids, codes, places, four, at_once=at_once))


def typical_places(counts: Int[Tensor, "n h w"], cells: Sequence[int]) -> Bool[Tensor, "n h w"]:
    """Return where each of n codes usually stands; no two share a position.

    The most frequent (code, position) is settled first, then the next, as long as the code still wants positions and
    the position is free. A code that never stands anywhere free goes nowhere.

    Args:
        counts: How often each code stands at each position.
        cells: Positions wanted per code, at least 1.

    Example:
        >>> typical_places(torch.tensor([[[5, 3, 0]], [[4, 0, 1]]]), [1, 1]).int().tolist()
        [[[1, 0, 0]], [[0, 0, 1]]]
    """
    flat = counts.flatten(1).cpu()
    found, left = torch.zeros(flat.shape, dtype=torch.bool), list(cells)
    for place in flat.flatten().argsort(descending=True, stable=True).tolist():
        code, position = divmod(place, flat.shape[1])
        if not flat[code, position] or not any(left):
            break
        if left[code] and not found[:, position].any():
            found[code, position], left[code] = True, left[code] - 1
    return found.unflatten(1, counts.shape[1:])


def _place_problems(places: Tensor) -> Iterator[str]:
    for number, at in enumerate(places):
        if not bool(at.any()):
            yield f"code number {number} goes to 0 positions; at least 1 is needed, as from typical_places"
    if twice := int((places.sum(0) > 1).sum()):
        yield f"{twice} position(s) would hold two codes; give each position to one"
