"""Exhaustive traversal: the first-order effect of every code at every position, checked by real swaps.

The effect of putting code v at (i, j) of image b is estimated by G[b, :, i, j] . (C[v] - C[t_bij]), G being the
gradient of the concept's logit. Summed over images that is C[v] . sum G - sum G . C[t], so images leave nothing behind
but one gradient of size (d, h, w), and the product with the codebook is made once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.errors import ConfigError, ShapeError
from vqcortex.extractors.still import still
from vqcortex.results import Traversal
from vqcortex.search.problem import (
    check_finite,
    check_tokens,
    embed,
    live_codes,
    logits_of,
    slope_of,
)
from vqcortex.seeds import generator_for

CODES_AT_ONCE = 4096  # codes turned to float64 at once
Distinct = Literal["cell", "position", "code"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SwapSum:
    """What any number of images leave behind; adds up in double precision, so that batches hardly matter.

    Args:
        gradient: Sum over images of the concept logit's gradient, (d, h, w).
        standing: Sum over images of gradient times the code that stands there, (h, w).
        images: Images summed.
    """

    gradient: Float[Tensor, "d h w"]
    standing: Float[Tensor, "h w"]
    images: int

    def __add__(self, other: SwapSum) -> SwapSum:
        if self.gradient.shape != other.gradient.shape:
            raise ShapeError(
                f"sums of shape {tuple(self.gradient.shape)} and {tuple(other.gradient.shape)} do not add up; "
                "use images of one model"
            )
        return SwapSum(
            gradient=self.gradient + other.gradient,
            standing=self.standing + other.standing,
            images=self.images + other.images,
        )

    def effects(self, codebook: Float[Tensor, "k d"]) -> Float[Tensor, "k h w"]:
        """Estimated change of the concept's logit per code and position, summed over images."""
        slope, standing = self.gradient.flatten(1), self.standing.flatten()
        parts = [(codes.double() @ slope - standing).float() for codes in torch.split(codebook, CODES_AT_ONCE)]
        return torch.cat(parts).view(len(codebook), *self.standing.shape)


def swap_sum(
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    tokens: Int[Tensor, "b h w"],
    codebook: Float[Tensor, "k d"],
    concept: int | Int[Tensor, " b"],
) -> SwapSum:
    """Return what a batch adds to a traversal: one backward.

    Raises:
        ConfigError: A concept is not one of the extractor's.
        ModelError: The extractor's gradient is NaN or infinite.
    """
    check_tokens(tokens, codebook)
    wanted = _per_image(concept, embedded)
    with still(extractor):
        slope = slope_of(extractor, embedded, wanted, careful=True).double()
    check_finite(slope.flatten(1), "gradients")
    return SwapSum(
        gradient=slope.sum(0),
        standing=(slope * embed(tokens, codebook)).sum((0, 1)),
        images=len(embedded),
    )


def swap_effects(
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    tokens: Int[Tensor, "b h w"],
    codebook: Float[Tensor, "k d"],
    concept: int | Int[Tensor, " b"],
) -> Float[Tensor, "k h w"]:
    """Estimated change of the concept's logit when a code is put at a position, summed over the images.

    Args:
        extractor: Embeddings to concept logits; left as it was found.
        embedded: Where the gradient is taken.
        tokens: What stands there now.
        codebook: The codes as used for look-up.
        concept: One index for all images, or one per image.
    Returns:
        Logits, higher means the code speaks more for the concept there; a token that stands there already has 0.
    Raises:
        TokenError, ConfigError, ModelError: See `swap_sum`.
    """
    return swap_sum(extractor, embedded, tokens, codebook, concept).effects(codebook)


def _per_image(concept: int | Tensor, images: Tensor) -> Int[Tensor, " b"]:
    if isinstance(concept, int):
        return torch.full((len(images),), concept, device=images.device)
    return concept.to(images.device)


def best_cells(
    effect: Float[Tensor, "k h w"],
    count: int,
    alive: Bool[Tensor, " codes"] | None = None,
    distinct: Distinct = "cell",
    allowed: Bool[Tensor, "k h w"] | None = None,
) -> Int[Tensor, "v 3"]:
    """Return the cells (code, row, column) of largest effect, best first; of equals, the first in the table.

    Args:
        effect: Per code and position.
        count: Cells wanted, at least 1; fewer come back when there are fewer.
        alive: True for the codes to choose from; None: all.
        distinct: "cell" takes the best; "position" at most one cell per position; "code" at most one per code.
        allowed: True where a code may stand at a position, for models whose levels have codebooks of their own;
            None: everywhere.

    Raises:
        ConfigError: `count` is below 1, `distinct` unknown, or no code is live.
        ShapeError: `alive` is not (k,).
    """
    if count < 1:
        raise ConfigError(f"{count} cells were asked for; at least 1 is needed")
    if distinct not in get_args(Distinct):
        raise ConfigError(f"distinct={distinct!r} must be one of {', '.join(get_args(Distinct))}")
    live = live_codes(effect.flatten(1), alive)
    table = effect[live].flatten(1)  # (a, hw)
    if allowed is not None:
        table = table.masked_fill(~allowed[live].flatten(1), -torch.inf)
    flat = _candidates(table, distinct)
    flat = flat[table.flatten()[flat] > -torch.inf]
    values = table.flatten()[flat]
    if not len(values):
        raise ConfigError("none of the live codes may stand anywhere; at least 1 must, so check `alive` and `allowed`")
    kept = flat[_largest(values, count)]
    code, place = live[kept // table.shape[1]], kept % table.shape[1]
    return torch.stack([code, place // effect.shape[2], place % effect.shape[2]], 1)


def _candidates(table: Float[Tensor, "a n"], distinct: Distinct) -> Int[Tensor, " cells"]:
    """Flat indices among which the best are sought, ascending."""
    cells = torch.arange(table.numel(), device=table.device).view_as(table)
    if distinct == "cell":
        return cells.flatten()
    axis = 0 if distinct == "position" else 1
    top = table == table.amax(axis, keepdim=True)
    return torch.where(top, cells, table.numel()).amin(axis).sort().values


def _largest(values: Float[Tensor, " n"], count: int) -> Int[Tensor, " kept"]:
    """Indices of the largest values, best first, the lower index first among equals."""
    last = values.topk(min(count, len(values))).values[-1]
    near = (values >= last).nonzero()[:, 0]
    return near[values[near].sort(descending=True, stable=True).indices][:count]


def verify_cells(
    extractor: nn.Module,
    batches: Iterable[Tensor],
    codebook: Float[Tensor, "k d"],
    concept: int,
    cells: Int[Tensor, "v 3"],
    *,
    batch: int = 64,
) -> tuple[Float[Tensor, " v"], Float[Tensor, " v"]]:
    """Put each code at its position in every image and measure the change of the concept's logit.

    Args:
        extractor: Embeddings to concept logits; left as it was found.
        batches: Token grids (b, h, w), any number at a time.
        codebook: The codes as used for look-up.
        concept: Index of the concept.
        cells: (code, row, column) each.
        batch: Edited grids that run at once; changes speed and memory, never results.
    Returns:
        Mean change in logits and its standard error over images; the error of a single image is NaN.
    Raises:
        TokenError: A token or a cell's code is outside the codebook.
        ConfigError: A cell's position is outside the grid, the concept is unknown, or there is no image.
        ModelError: The extractor gives NaN or infinite logits.
    """
    check_tokens(cells[:, 0], codebook)
    images = 0
    total = torch.zeros(2, len(cells), dtype=torch.float64, device=codebook.device)
    with still(extractor), torch.no_grad():
        for tokens in _pieces(batches, batch):
            change = _changes(extractor, tokens.to(codebook.device), codebook, concept, cells, batch)
            total += torch.stack([change.sum(1), change.square().sum(1)])
            images += len(tokens)
    return _mean_and_error(total[0], total[1], images)


def _pieces(batches: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    if size < 1:
        raise ConfigError(f"batch={size} must be at least 1")
    for tokens in batches:
        yield from torch.split(tokens, size)


def _mean_and_error(first: Tensor, second: Tensor, images: int) -> tuple[Tensor, Tensor]:
    if not images:
        raise ConfigError("no image was given; at least 1 is needed, so choose a concept that has images")
    mean = first / images
    spread = (second / images - mean.square()).clamp_(min=0)
    # With one image 0 / 0: an error that nobody can know.
    error = (spread / (images - 1)).sqrt() if images > 1 else torch.full_like(mean, torch.nan)
    return mean.float(), error.float()


def _changes(
    extractor: nn.Module, tokens: Tensor, codebook: Tensor, concept: int, cells: Tensor, batch: int
) -> Float[Tensor, "v b"]:
    """Change of the concept's logit per cell and image."""
    check_tokens(tokens, codebook)
    _check_places(cells, tokens.shape[1:])
    wanted = _per_image(concept, tokens)
    embedded = embed(tokens, codebook)
    before = logits_of(extractor, embedded, wanted)[:, concept].double()
    pairs = torch.cartesian_prod(torch.arange(len(cells)), torch.arange(len(tokens))).to(tokens.device)
    after = [_swapped(extractor, embedded, codebook, cells, part)[:, concept] for part in torch.split(pairs, batch)]
    return torch.cat(after).double().view(len(cells), len(tokens)) - before


def _swapped(
    extractor: nn.Module, embedded: Tensor, codebook: Tensor, cells: Tensor, pairs: Tensor
) -> Float[Tensor, "m c"]:
    """Logits with the cell's code in place, for each pair of cell and image."""
    code, row, column = cells.to(pairs.device)[pairs[:, 0]].unbind(1)
    edited = embedded[pairs[:, 1]]
    edited[torch.arange(len(pairs), device=pairs.device), :, row, column] = codebook[code]
    logits = extractor(edited)
    check_finite(logits)
    return logits


def _check_places(cells: Tensor, grid: torch.Size) -> None:
    rows, columns = grid
    outside = (cells[:, 1:] < 0).any(1) | (cells[:, 1] >= rows) | (cells[:, 2] >= columns)
    if outside.any():
        row, column = cells[outside][0, 1:].tolist()
        raise ConfigError(
            f"position ({row}, {column}) lies outside the grid of {rows} rows and {columns} columns; "
            f"rows go from 0 to {rows - 1}, columns from 0 to {columns - 1}"
        )


def traverse(
    extractor: nn.Module,
    batches: Iterable[Tensor],
    codebook: Float[Tensor, "k d"],
    concept: int,
    *,
    count: int = 40,
    sampled: int = 0,
    alive: Bool[Tensor, " codes"] | None = None,
    distinct: Distinct = "position",
    allowed: Bool[Tensor, "k h w"] | None = None,
    seed: int = 0,
    batch: int = 64,
) -> Traversal:
    """Estimate the effect of every code at every position on a concept and verify some cells by real swaps.

    Args:
        extractor: Embeddings to concept logits; left as it was found.
        batches: Token grids (b, h, w), any number at a time; read twice, so a list or a reader and not a generator.
        codebook: The codes as used for look-up.
        concept: Index of the concept.
        count: Best cells to verify, at least 1.
        sampled: Further cells to verify, drawn evenly from all live cells, at least 0. The best cells are those whose
            estimate is most likely too high; drawn ones show the error of the estimate at large.
        alive: True for the codes to verify, (k,); None: all. The table of effects holds every code.
        distinct: Which of the best cells to verify, see `best_cells`; so is allowed.
        seed: Of the draw.
        batch: Grids that run at once; changes speed and memory, never results.
    Raises:
        ConfigError: There is no image, `batches` can be read only once, or see `verify_cells`, `best_cells`.
        TokenError, ModelError: See `verify_cells`.
    """
    if iter(batches) is batches:
        raise ConfigError("batches can be read only once but traversal reads them twice; pass a list of token grids")
    total = _summed(extractor, _pieces(batches, batch), codebook, concept)
    effect = total.effects(codebook).div_(total.images)
    cells = best_cells(effect, count, alive, distinct, allowed)
    cells = _ordered(effect, torch.cat([cells, sampled_cells(effect, sampled, alive, seed, allowed)]))
    measured, error = verify_cells(extractor, batches, codebook, concept, cells, batch=batch)
    return Traversal(
        concept=concept,
        effect=effect,
        images=total.images,
        cells=cells,
        estimated=effect[cells[:, 0], cells[:, 1], cells[:, 2]],
        measured=measured,
        measured_error=error,
    )


def _summed(extractor: nn.Module, batches: Iterable[Tensor], codebook: Tensor, concept: int) -> SwapSum:
    total = None
    for tokens in batches:
        check_tokens(tokens, codebook)
        tokens = tokens.to(codebook.device)
        one = swap_sum(extractor, embed(tokens, codebook), tokens, codebook, concept)
        total = one if total is None else total + one
    if total is None:
        raise ConfigError("no image was given; at least 1 is needed, so choose a concept that has images")
    return total


def sampled_cells(
    effect: Float[Tensor, "k h w"],
    count: int,
    alive: Bool[Tensor, " codes"] | None,
    seed: int,
    allowed: Bool[Tensor, "k h w"] | None = None,
) -> Int[Tensor, "v 3"]:
    """Return cells drawn evenly from all that are live and allowed; the same seed draws the same cells."""
    live = live_codes(effect.flatten(1), alive)
    rng = generator_for(seed, "sampled cells")
    if allowed is not None:
        cells = allowed[live].nonzero()
        drawn = cells[torch.randint(len(cells), (count,), generator=rng).to(cells.device)]
        return torch.cat([live[drawn[:, :1]], drawn[:, 1:]], 1)
    bounds = (len(live), *effect.shape[1:])
    code, row, column = (torch.randint(bound, (count,), generator=rng).to(live.device) for bound in bounds)
    return torch.stack([live[code], row, column], 1)


def _ordered(effect: Tensor, cells: Tensor) -> Tensor:
    """The cells without repetition, largest estimate first."""
    cells = torch.unique(cells, dim=0)
    values = effect[cells[:, 0], cells[:, 1], cells[:, 2]]
    return cells[values.sort(descending=True, stable=True).indices]


def linear_error(traversal: Traversal) -> dict[str, float | None]:
    """Return how well the linear estimate agrees with real swaps over the verified cells.

    Returns:
        pearson: Correlation of estimated and measured change, -1 to 1; None when one of them does not vary.
        spearman: The same of their ranks.
        mean_absolute_error: In logits.
        slope: Least-squares slope of measured on estimated change: 1 is exact, below 1 the estimate is too large.
    """
    estimated, measured = traversal.estimated.double(), traversal.measured.double()
    return {
        "pearson": _correlation(estimated, measured),
        "spearman": _correlation(_ranks(estimated), _ranks(measured)),
        "mean_absolute_error": float((estimated - measured).abs().mean()),
        "slope": _slope(estimated, measured),
    }


def _correlation(one: Tensor, other: Tensor) -> float | None:
    one, other = one - one.mean(), other - other.mean()
    scale = float((one.square().sum() * other.square().sum()).sqrt())
    return float(one @ other) / scale if scale > 0 else None


def _slope(estimated: Tensor, measured: Tensor) -> float | None:
    one, other = estimated - estimated.mean(), measured - measured.mean()
    scale = float(one.square().sum())
    return float(one @ other) / scale if scale > 0 else None


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, equal values sharing their mean rank."""
    _, place, times = torch.unique(values, return_inverse=True, return_counts=True)
    last = times.cumsum(0).double()
    return (last - (times + 1) / 2)[place]
