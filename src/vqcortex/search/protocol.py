"""What a search strategy is, and the settings that all gradient searches have in common.

A strategy is a frozen dataclass one can call. It changes tokens at the free positions only, uses live codes only, ends
at a fixed step (no checkpoint is picked), and what it finds for an image depends on (seed, image id, restart) and not
on the rest of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, Protocol, get_args, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.results import Trace

Start = Literal["image", "mean", "random"]


@runtime_checkable
class Search(Protocol):
    """A way to look for the codes that mean a concept."""

    name: ClassVar[str]

    def __call__(
        self,
        extractor: nn.Module,
        codebook: Float[Tensor, "k d"],
        tokens: Int[Tensor, "b h w"],
        free: Bool[Tensor, "rows columns"],
        target: Int[Tensor, " targets"],
        image_ids: Sequence[str],
    ) -> Trace:
        """Search every image for its target.

        Args:
            extractor: Embeddings (b, d, h, w) to concept logits (b, c); left as it was found.
            codebook: The codes as used for look-up.
            tokens: The grids to start from; what is not free stays.
            free: True where a token may change, one mask (h, w) for all images; all True searches from scratch.
            target: Index of the concept to reach, per image.
            image_ids: One name per image; random draws depend on it.

        Raises:
            ShapeError: `free`, `target` or `image_ids` does not fit `tokens`.
            TokenError: A token is outside the codebook.
            ConfigError: `free` is empty, no code is live, or a target is not a concept of the extractor.
            ModelError: The extractor gives NaN or infinite logits.
        """
        ...


@runtime_checkable
class Restarted(Protocol):
    """Settings that every strategy has.

    Args:
        restarts: Independent restarts per image, at least 1.
        seed: Every draw depends on this, the image id and the restart.
        batch: (image, restart) rows that run at once; changes speed and memory, never results.
        alive: True for the codes that may be used, (k,); None: all.
    """

    @property
    def restarts(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def alive(self) -> Bool[Tensor, " k"] | None: ...


@runtime_checkable
class Ascending(Restarted, Protocol):
    """Settings that every gradient search has besides those of `Restarted`; two searches then differ in nothing else.

    Args:
        steps: Steps of Adam, at least 1 (published: 5,000); the last one is the result.
        rate: Learning rate of Adam, above 0 (published: 0.01).
        start: Where the free positions begin: "image" (the codes that are there), "mean" (the mean live code),
            "random" (live codes drawn per restart).
        spread: Standard deviation of the perturbation of the start, at least 0: in logits of every code; the same draw
            moves an embedding by this fraction of the codebook's own spread.
        record_every: Steps between two measurements of the target's probability, at least 1.
    """

    @property
    def steps(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def start(self) -> Start: ...
    @property
    def spread(self) -> float: ...
    @property
    def record_every(self) -> int: ...


def restart_problems(settings: Restarted) -> Iterator[str]:
    """Say what is wrong with the settings of a strategy, one sentence each."""
    for name in ("restarts", "batch"):
        if getattr(settings, name) < 1:
            yield f"{name}={getattr(settings, name)} must be at least 1"


def ascent_problems(settings: Ascending) -> Iterator[str]:
    """Say what is wrong with the settings of a gradient search, one sentence each."""
    yield from restart_problems(settings)
    for name in ("steps", "record_every"):
        if getattr(settings, name) < 1:
            yield f"{name}={getattr(settings, name)} must be at least 1"
    if not 0 < settings.rate < math.inf:
        yield f"rate={settings.rate} must be above 0 and finite"
    if not 0 <= settings.spread < math.inf:
        yield f"spread={settings.spread} must be at least 0 and finite"
    if settings.start not in (known := get_args(Start)):
        yield f"start={settings.start!r} must be one of {', '.join(known)}"


def recorded(steps: int, every: int) -> tuple[int, ...]:
    """Return the steps at which a search is measured: the start, every `every`-th, the last.

    Example:
        >>> recorded(25, 10)
        (0, 10, 20, 25)
    """
    return (*range(0, steps, every), steps)
