"""A search problem, checked once at the door, with one row per (image, restart); and what is asked of an extractor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.errors import ConfigError, ModelError, ShapeError, TokenError
from vqcortex.search.objective import Objective, value_of

NEAREST_CHUNK = 1 << 24  # distances held at once: 64 MB


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a search has to solve, for m rows (images times restarts) and n free positions.

    Args:
        codebook: All codes.
        live: Ids of the codes that may be used, ascending.
        grids: Tokens to start from, one grid per row.
        places: Rows and columns of the free positions, in reading order.
        target: Concept to reach.
        keys: (image id, restart) of every row.
    """

    codebook: Float[Tensor, "k d"]
    live: Int[Tensor, " a"]
    grids: Int[Tensor, "m h w"]
    places: tuple[Int[Tensor, " n"], Int[Tensor, " n"]]
    target: Int[Tensor, " m"]
    keys: tuple[tuple[str, int], ...]

    @property
    def codes(self) -> Float[Tensor, "a d"]:
        """The live codes."""
        return self.codebook[self.live]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, free positions and live codes: (m, n, a)."""
        return len(self.keys), len(self.places[0]), len(self.live)

    def parts(self, size: int) -> Iterator[Problem]:
        """Cut into problems of at most `size` rows, in order."""
        for first in range(0, len(self.keys), size):
            rows = slice(first, first + size)
            yield replace(self, grids=self.grids[rows], target=self.target[rows], keys=self.keys[rows])

    def take(self, rows: Int[Tensor, " some"]) -> Problem:
        """These rows, in this order, any of them as often as it is named."""
        keys = tuple(self.keys[row] for row in rows.tolist())
        return replace(self, grids=self.grids[rows], target=self.target[rows], keys=keys)

    def embedded(self) -> Float[Tensor, "m d h w"]:
        """Codes of the grids to start from."""
        return embed(self.grids, self.codebook)

    def free_tokens(self) -> Int[Tensor, "m n"]:
        """Tokens that stand at the free positions."""
        return self.grids[:, self.places[0], self.places[1]]

    def filled(self, choice: Int[Tensor, "m n"]) -> Int[Tensor, "m h w"]:
        """Grids with the chosen live codes (0..a-1) at the free positions."""
        grids = self.grids.clone()
        grids[:, self.places[0], self.places[1]] = self.live[choice]
        return grids


def pose(
    codebook: Float[Tensor, "k d"],
    tokens: Int[Tensor, "b h w"],
    free: Bool[Tensor, "rows columns"],
    target: Int[Tensor, " targets"],
    image_ids: Sequence[str],
    *,
    alive: Bool[Tensor, " codes"] | None = None,
    restarts: int = 1,
) -> Problem:
    """Check the inputs of a search and lay its rows out, the restarts of an image side by side.

    Raises:
        ShapeError, TokenError, ConfigError: See `Search`.
    """
    _check_shapes(tokens, free, target, image_ids)
    check_tokens(tokens, codebook)
    rows, columns = free.nonzero(as_tuple=True)
    if not len(rows):
        raise ConfigError("the free region holds no position; at least 1 is needed, so choose a larger region")
    device = codebook.device
    return Problem(
        codebook=codebook,
        live=live_codes(codebook, alive),
        grids=tokens.to(device).repeat_interleave(restarts, 0),
        places=(rows.to(device), columns.to(device)),
        target=target.to(device).repeat_interleave(restarts),
        keys=tuple((name, restart) for name in image_ids for restart in range(restarts)),
    )


def _check_shapes(tokens: Tensor, free: Tensor, target: Tensor, image_ids: Sequence[str]) -> None:
    images, grid = len(tokens), tuple(tokens.shape[1:])
    if tuple(free.shape) != grid:
        raise ShapeError(f"the free region has shape {tuple(free.shape)} but the grids are {grid}; use one mask (h, w)")
    if len(target) != images or len(image_ids) != images:
        raise ShapeError(
            f"{images} grids came with {len(target)} targets and {len(image_ids)} image ids; give one of each per grid"
        )


def check_tokens(tokens: Int[Tensor, "*any"], codebook: Float[Tensor, "k d"]) -> None:
    """Return quietly, or raise a TokenError that names the span of the tokens."""
    if not tokens.numel():
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= len(codebook):
        raise TokenError(
            f"tokens span [{low}, {high}] but this codebook holds indices [0, {len(codebook) - 1}]; "
            "were they made with another model?"
        )


def live_codes(codebook: Float[Tensor, "k d"], alive: Bool[Tensor, " codes"] | None) -> Int[Tensor, " a"]:
    """Ids of the codes that may be used, ascending.

    Raises:
        ShapeError: The mask is not (k,).
        ConfigError: No code is live.
    """
    if alive is None:
        return torch.arange(len(codebook), device=codebook.device)
    if len(alive) != len(codebook):
        raise ShapeError(
            f"the mask of live codes has {len(alive)} entries but the codebook {len(codebook)}; give one per code"
        )
    if not alive.any():
        raise ConfigError(
            f"none of the {len(codebook)} codes is live; at least 1 is needed, or pass alive=None for all"
        )
    return alive.to(codebook.device).nonzero()[:, 0]


def embed(tokens: Int[Tensor, "b h w"], codebook: Float[Tensor, "k d"]) -> Float[Tensor, "b d h w"]:
    """Codes of grids, channels first."""
    return F.embedding(tokens, codebook).permute(0, 3, 1, 2).contiguous()


def nearest(points: Float[Tensor, "*any d"], codes: Float[Tensor, "a d"]) -> Int[Tensor, "*any"]:
    """Index of the code nearest to each point, by squared distance; the first of equals."""
    halves = codes.square().sum(1) / 2
    parts = torch.split(points.reshape(-1, codes.shape[1]), max(1, NEAREST_CHUNK // len(codes)))
    return torch.cat([(halves - part @ codes.T).argmin(1) for part in parts]).reshape(points.shape[:-1])


def logits_of(
    extractor: nn.Module, embedded: Float[Tensor, "b d h w"], concept: Int[Tensor, " b"]
) -> Float[Tensor, "b c"]:
    """Logits of all concepts, once it is sure that the wanted ones exist and that all are finite.

    Raises:
        ConfigError: A concept is not among the logits.
        ModelError: A logit is NaN or infinite.
    """
    logits = extractor(embedded)
    check_concept(concept, logits.shape[1])
    check_finite(logits)
    return logits


def check_concept(concept: Int[Tensor, " b"], concepts: int) -> None:
    """Return quietly, or raise a ConfigError that names a concept outside [0, concepts)."""
    outside = concept[(concept < 0) | (concept >= concepts)]
    if len(outside):
        raise ConfigError(
            f"concept {int(outside[0])} is not one of the extractor's {concepts} concepts, 0 to {concepts - 1}; "
            "name one of those, or train an extractor that knows it"
        )


def check_finite(values: Float[Tensor, "b x"], what: str = "logits") -> None:
    """Return quietly, or raise a ModelError when what the extractor gave is NaN or infinite."""
    if not (finite := values.isfinite()).all():
        kind = "NaN" if values.isnan().any() else "infinite"
        raise ModelError(
            f"the extractor gives {kind} {what} for {int((~finite).any(1).sum())} of {len(values)} images; all must be "
            "finite, so train it again with a lower learning rate, or look for NaN in its weights and in the codebook"
        )


def slope_of(
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    concept: Int[Tensor, " b"],
    *,
    careful: bool = False,
    objective: Objective = "logit",
) -> Float[Tensor, "b d h w"]:
    """Gradient of each image's concept logit with respect to its embedding: one backward for the batch.

    Args:
        extractor: Must be held still (`still`), or the images of a batch would mix.
        embedded: Where the gradient is taken.
        concept: Whose logit, per image.
        careful: Check concept and logits as `logits_of` does; inside a loop that costs a wait for the device.
        objective: What stands in for the logit, see `Objective`.
    """
    with torch.enable_grad():
        point = embedded.detach().requires_grad_()
        logits = logits_of(extractor, point, concept) if careful else extractor(point)
        return torch.autograd.grad(value_of(logits, concept, objective).sum(), point)[0]
