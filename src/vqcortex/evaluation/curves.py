"""What judges believe while positions are taken away, and while all but a few are: what curve metrics read.

It must never: ask a judge twice about one picture of an image, or let the size of a step change a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vqcortex.adapters.protocol import Adapter
from vqcortex.errors import ConfigError, DataError
from vqcortex.evaluation.arms import check_scores, places
from vqcortex.evaluation.drop import check_counts
from vqcortex.evaluation.fills import Fill, Filler, decoded, filler
from vqcortex.evaluation.judge import Judge, ask, probability_of
from vqcortex.evaluation.values import check_images, check_names, slices


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Judges' probability of each image's concept, 0 to 1, float32, on the CPU.

    Args:
        arms: a names of what chose the positions.
        fills: f names.
        counts: n numbers of positions, ascending, each 1 to `positions`.
        judges: j names.
        image_ids: b names.
        positions: h*w of the grid.
        before: Of the untouched images, (j, b).
        removed: With the top n positions of the arm's score hidden, (a, f, n, j, b).
        kept: With all but the top n positions hidden, (a, f, n, j, b); None: not measured.
        empty: With every position hidden, (f, j, b).
    """

    arms: tuple[str, ...]
    fills: tuple[str, ...]
    counts: tuple[int, ...]
    judges: tuple[str, ...]
    image_ids: tuple[str, ...]
    positions: int
    before: Float[Tensor, "j b"]
    removed: Float[Tensor, "a f n j b"]
    kept: Float[Tensor, "a f n j b"] | None
    empty: Float[Tensor, "f j b"]


@torch.no_grad()
def measure_curves(
    adapter: Adapter,
    judges: Sequence[Judge],
    tokens: Int[Tensor, "b h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    scores: Mapping[str, Float[Tensor, "b h w"]],
    counts: Sequence[int],
    fills: Sequence[Fill],
    *,
    kept: bool = True,
    batch: int = 64,
) -> Curves:
    """Probability of the concept with the best n positions hidden, and with all others hidden.

    Arms that hide the same positions of an image share one picture; fills in pixels decode nothing but the image.

    Args:
        adapter: The model that made the tokens.
        judges: Classifiers that took no part in making the scores.
        tokens: Grids to hide positions of.
        concept: What each image shows, as an index into the judges' concepts.
        image_ids: One name per grid; random fills depend on it.
        scores: Importance or control scores per arm; higher goes first, ties in reading order.
        counts: Numbers of positions (n), each 1 to h*w, in any order.
        fills: What takes the place of hidden positions.
        kept: False: measure removal only, at half the cost.
        batch: Pictures per step, at least 1; changes speed and memory, never results.

    Raises:
        ConfigError: No arm, fill, count or judge, one given twice, a count outside 1 to h*w, or a score is NaN.
        ShapeError: A score, concept or id does not fit the tokens.

    Source:
        Petsiuk et al. 2018, arXiv:1806.07421, section 4.1 (deletion and insertion); DeYoung et al. 2020,
        arXiv:1911.03429, section 4 (removing and keeping). Where we differ: tokens, not pixels; several fills.
    """
    check_images(tokens, image_ids, len(adapter.codebook), concept=concept)
    check_names("arm", list(scores))
    check_names("fill", [fill.name for fill in fills])
    check_names("judge", [judge.name for judge in judges])
    check_counts(counts, tokens.shape[1] * tokens.shape[2])
    for arm, score in scores.items():
        check_scores(score, tokens, arm)
    parts = []
    for rows in slices(len(tokens), batch):
        ranks = torch.stack([places(score[rows].to(tokens.device)) for score in scores.values()], 1)
        part = _slice_curves(
            adapter, judges, tokens[rows], concept[rows], image_ids[rows], ranks, sorted(counts), fills, kept, batch
        )
        parts.append(replace(part, arms=tuple(scores)))
    return join_curves(parts)


def join_curves(parts: Sequence[Curves]) -> Curves:
    """One set of curves over all the images of the parts, which share everything else.

    Raises:
        DataError: There is no part.
        ConfigError: Two parts were measured differently.
    """
    if not parts:
        raise DataError("there are no images to measure; pass at least one")
    first = parts[0]
    for other in parts[1:]:
        for field in ("arms", "fills", "counts", "judges", "positions"):
            one, two = getattr(first, field), getattr(other, field)
            if one != two:
                raise ConfigError(f"curves with {field} {two} cannot be joined to {one}; measure both alike")
    with_kept = [part.kept for part in parts if part.kept is not None]
    if len(with_kept) not in (0, len(parts)):
        raise ConfigError("curves with and without kept positions cannot be joined; measure both alike")
    return replace(
        first,
        image_ids=tuple(name for part in parts for name in part.image_ids),
        before=torch.cat([part.before for part in parts], -1),
        removed=torch.cat([part.removed for part in parts], -1),
        kept=torch.cat(with_kept, -1) if with_kept else None,
        empty=torch.cat([part.empty for part in parts], -1),
    )


def _slice_curves(
    adapter: Adapter,
    judges: Sequence[Judge],
    tokens: Int[Tensor, "b h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    ranks: Int[Tensor, "b a h w"],
    counts: Sequence[int],
    fills: Sequence[Fill],
    kept: bool,
    batch: int,
) -> Curves:
    """Curves of a few images, their arms yet without names."""
    arms, steps = ranks.shape[1], len(counts)
    top = ranks[:, :, None] < torch.tensor(counts, device=ranks.device)[:, None, None]  # (b, a, n, h, w)
    everything = torch.ones_like(tokens, dtype=torch.bool)[:, None]
    masks = torch.cat([everything, *((each.flatten(1, 2)) for each in ([top, ~top] if kept else [top]))], 1)
    image, hidden, place = distinct(masks)
    pixels = decoded(adapter, tokens)
    before = torch.stack([probability_of(ask(judge, pixels), concept) for judge in judges])
    beliefs = torch.stack(
        [
            believed(judges, filler(fill, adapter, tokens, image_ids, pixels), image, hidden, concept, batch)
            for fill in fills
        ]
    )
    found = beliefs[:, :, place.cpu()].float().movedim(3, 0)  # (m, f, j, b)
    curves = found[1:].unflatten(0, (-1, arms, steps)).transpose(2, 3)  # (1 or 2, a, f, n, j, b)
    return Curves(
        arms=(),
        fills=tuple(fill.name for fill in fills),
        counts=tuple(counts),
        judges=tuple(judge.name for judge in judges),
        image_ids=tuple(image_ids),
        positions=tokens[0].numel(),
        before=before.float(),
        removed=curves[0],
        kept=curves[1] if kept else None,
        empty=found[0],
    )


def distinct(
    masks: Bool[Tensor, "b m h w"],
) -> tuple[Int[Tensor, " r"], Bool[Tensor, "r h w"], Int[Tensor, "b m"]]:
    """Every mask of an image once: image and mask of each of r rows, and the row of each (image, mask)."""
    images, number = masks.shape[:2]
    image = torch.arange(images, device=masks.device).repeat_interleave(number)
    keys = torch.cat([image[:, None], masks.flatten(0, 1).flatten(1)], 1)
    rows, place = torch.unique(keys, dim=0, return_inverse=True)
    return rows[:, 0], rows[:, 1:].bool().unflatten(1, masks.shape[2:]), place.reshape(images, number)


def believed(
    judges: Sequence[Judge],
    fill: Filler,
    image: Int[Tensor, " r"],
    hidden: Bool[Tensor, "r h w"],
    concept: Int[Tensor, " b"],
    batch: int,
) -> Float[Tensor, "j r"]:
    """Every judge's probability of the image's concept in each of r pictures, `batch` of them at a time, float64."""
    parts = []
    for rows in slices(len(image), batch):
        pixels, mine = fill(image[rows], hidden[rows]), concept[image[rows].to(concept.device)]
        parts.append(torch.stack([probability_of(ask(judge, pixels), mine) for judge in judges]))
    return torch.cat(parts, 1)
