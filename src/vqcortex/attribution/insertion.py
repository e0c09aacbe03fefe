"""Two codes put into images that hold neither: what one does, the other, and both.

Codes that exclude each other hardly meet in real images; here every pair can be tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.attribution.interactions import synergy
from vqcortex.attribution.logits import (
    AT_ONCE,
    at_once_problems,
    check_finite,
    check_lengths,
    evaluated,
    hidden_logits,
)
from vqcortex.config import raise_all


def inserted_values(
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
) -> Float[Tensor, "b 4"]:
    """Return the concept's logit of each image untouched, with A, with B, and with both, float64 on the CPU.

    Args:
        embedded: Background images; meant to hold neither code.
        concept: What A and B may speak for, hardly the images' own.
        code_a: What stands at the positions of A.
        code_b: Likewise.
        at_a: Where A goes, at least one position, none of them B's.
        at_b: Likewise.
        at_once: Grids in one forward, at least 1.

    Raises:
        ConfigError: A code goes nowhere, or both to one position.
        ShapeError: The numbers of images, concepts and ids differ.
        ModelError: The extractor gives NaN.
    """
    raise_all([*at_once_problems(at_once), *_place_problems(at_a, at_b)])
    check_lengths(embedded, concept, image_ids)
    device, images = embedded.device, len(embedded)
    at_a, at_b = at_a.to(device), at_b.to(device)
    codes = torch.where(at_a, code_a.to(embedded)[:, None, None], code_b.to(embedded)[:, None, None])
    changed = torch.stack([torch.zeros_like(at_a), at_a, at_b, at_a | at_b]).expand(images, -1, -1, -1)
    with evaluated(extractor):
        values = hidden_logits(extractor, embedded, codes.expand_as(embedded), changed, concept.cpu(), at_once)
    check_finite(values, image_ids, "logits")
    return values.double().cpu()


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

    Above 0 where the concept needs both; far below 0 where it needs exactly one. Arguments as in `inserted_values`.
    """
    return synergy(
        inserted_values(
            extractor, embedded, concept, image_ids, code_a, code_b, at_a, at_b, at_once=at_once
        )
    )  # fmt: skip


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


def _place_problems(at_a: Tensor, at_b: Tensor) -> Iterator[str]:
    for name, at in (("A", at_a), ("B", at_b)):
        if not bool(at.any()):
            yield f"code {name} goes to 0 positions; at least 1 is needed, as from typical_places"
    if both := int((at_a.cpu() & at_b.cpu()).sum()):
        yield f"{both} position(s) would hold both codes; give each position to one"
