"""Is a code the concept, or only its company: enrichment, places outside the object, and what happens without it.

Source:
    Geirhos et al. 2020, arXiv:2004.07780 (shortcut learning); Fisher's exact test with Benjamini and Hochberg 1995 for
    enrichment over the codebook. The two counterfactuals, and that judges who never saw a token decide them, are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.stats import hypergeom
from torch import Tensor
from torch.nn import functional as F

from vqcortex.errors import DataError, ShapeError
from vqcortex.significance import false_discovery

Ask: TypeAlias = Callable[[Float[Tensor, "b d h w"]], Float[Tensor, "b 2"]]
"""From codes to the probability of one concept: by the extractor, and by the judges."""

FOREGROUND = 0.1  # of the range of brightness: how far a pixel must be from its image's border to be no background
PLAIN = 0.15  # spread of the border's brightness up to which a background is plain


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Enrichment:
    """How much more often a concept's images hold each code than the other concepts' images.

    Args:
        share: Share of the concept's images, (c, k).
        elsewhere: Share of all other images, (c, k).
        lift: Their ratio, half an image added on either side, (c, k).
        q: One-sided p-values, corrected for every concept and every live code, (c, k); 1 for dead codes.
    """

    share: Float[Tensor, "c k"]
    elsewhere: Float[Tensor, "c k"]
    lift: Float[Tensor, "c k"]
    q: Float[Tensor, "c k"]


def measure_enrichment(holding: Int[Tensor, "c k"], images: Int[Tensor, " c"]) -> Enrichment:
    """Test every code of every concept against the other concepts.

    Args:
        holding: Images of each concept that hold each code.
        images: Images of each concept.

    Raises:
        DataError: Fewer than two concepts have images.
    """
    if int((images > 0).sum()) < 2:
        raise DataError(
            f"{int((images > 0).sum())} concept(s) have images; a code is over-represented against another: give 2"
        )
    mine, own = holding.double(), images.double()[:, None]
    theirs, others = mine.sum(0) - mine, own.sum() - own
    p = torch.ones_like(mine)
    live = holding.sum(0) > 0
    # Drawing the concept's images from all images: how likely is it to find as many with the code?
    tail = hypergeom.sf(
        holding[:, live].numpy() - 1, int(images.sum()), holding.sum(0)[live].numpy()[None], images.numpy()[:, None]
    )
    corrected = false_discovery(np.clip(np.nan_to_num(tail, nan=1.0), 0, 1).ravel().tolist())
    p[:, live] = torch.tensor(corrected, dtype=torch.float64).view(len(images), -1)
    lift = (mine + 0.5) / (own + 1) / ((theirs + 0.5) / (others + 1))
    return Enrichment(share=mine / own.clamp(min=1), elsewhere=theirs / others.clamp(min=1), lift=lift, q=p)


def outside_object(
    pixels: Float[Tensor, "b 3 H W"], grid: tuple[int, int]
) -> tuple[Bool[Tensor, "b h w"], Bool[Tensor, " b"]]:
    """Where an image's object is not, and whether its background is plain enough to say so.

    The object is the largest connected piece of what differs from the border of the image; a position lies outside
    where less than a quarter of its pixels belong to it. A busy border gives no answer: then the second value is False.

    Args:
        pixels: Images in [0, 1].
        grid: Rows and columns of positions, (h, w).
    """
    if pixels.shape[2] < grid[0] or pixels.shape[3] < grid[1]:
        raise ShapeError(f"images of {tuple(pixels.shape[2:])} pixels are smaller than the {grid[0]}x{grid[1]} grid")
    grey = pixels.cpu().double().mean(1)
    border = torch.cat([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], 1)
    middle = border.median(1).values
    plain = (border - middle[:, None]).abs().quantile(0.75, 1) <= PLAIN
    away = (grey - middle[:, None, None]).abs() > FOREGROUND
    largest = torch.stack([torch.from_numpy(_largest_piece(one.numpy())) for one in away])
    covered = F.adaptive_avg_pool2d(largest.double()[:, None], grid)[:, 0]
    return covered < 0.25, plain


def change_without(
    ask: Ask, embedded: Float[Tensor, "b d h w"], at: Bool[Tensor, "#b h w"], instead: Float[Tensor, "#b d #h #w"]
) -> Float[Tensor, "b 2"]:
    """How the probabilities change if other codes stand at some positions, less than 0 where they fall."""
    return ask(torch.where(at[:, None], instead, embedded)) - ask(embedded)


def gaps(changed: Float[Tensor, "b 2"], sign: int) -> Float[Tensor, " b"]:
    """How much more the extractor moved than the judges, per image.

    Args:
        changed: Changes by extractor and judges.
        sign: -1 after a code was taken out, which should lower both; 1 after it was put in, which should raise both.
    """
    return sign * (changed[:, 0] - changed[:, 1])


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    labelled, pieces = ndimage.label(mask)
    if not pieces:
        return mask
    sizes = np.bincount(labelled.ravel())
    sizes[0] = 0
    return np.asarray(labelled == sizes.argmax())
