"""What a search strategy is, and the settings that all gradient searches have in common.

A strategy is a frozen dataclass one can call. It changes tokens at the free positions only, uses live codes only, picks
no checkpoint by what a judge says, and what it finds for an image depends on (seed, image id, restart) and not on the
rest of the batch. Strategies are compared at equal cost, in passes of the extractor over one grid: a forward is one, a
backward is one, so that a step of a gradient search costs two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, Protocol, get_args, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.results import Trace
from vqcortex.search.objective import Objective

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
class Starting(Restarted, Protocol):
    """Settings of every strategy that starts somewhere.

    Args:
        start: Where the free positions begin: "image" (the codes that are there), "mean" (the mean live code),
            "random" (live codes drawn per restart).
        record_every: Steps between two measurements of the target's probability, at least 1.
        objective: What is to become large, see `Objective`.
    """

    @property
    def start(self) -> Start: ...
    @property
    def record_every(self) -> int: ...
    @property
    def objective(self) -> Objective: ...


@runtime_checkable
class Ascending(Starting, Protocol):
    """Settings that every gradient search has besides those of `Starting`; two searches then differ in nothing else.

    Args:
        steps: Steps of Adam, at least 1 (published: 5,000); the last one is the result.
        rate: Learning rate of Adam, above 0 (published: 0.01).
        spread: Standard deviation of the perturbation of the start, at least 0: in logits of every code; the same draw
            moves an embedding by this fraction of the codebook's own spread.
    """

    @property
    def steps(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def spread(self) -> float: ...


@runtime_checkable
class Regulariser(Protocol):
    """How plausible a grid is, whatever it means: what keeps a search away from patterns that no image has."""

    @property
    def codes(self) -> int:
        """k, codes it knows."""
        ...

    def __call__(self, grids: Int[Tensor, "m h w"], target: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Plausibility of each grid of its target, in nats, up to a constant."""
        ...

    def swaps(
        self,
        grids: Int[Tensor, "m h w"],
        target: Int[Tensor, " m"],
        places: tuple[Int[Tensor, " n"], Int[Tensor, " n"]],
        codes: Int[Tensor, " a"],
    ) -> Float[Tensor, "m n a"]:
        """By how much that changes when a code is put at a place, in nats; may be an estimate."""
        ...


@runtime_checkable
class Swapping(Starting, Protocol):
    """Settings that every search by swaps of single codes has besides those of `Starting`.

    Its steps, as a trace counts them, are passes of the extractor.

    Args:
        budget: Passes of the extractor per image and restart at most, at least 1.
        candidates: Swaps verified at a time, the most promising by the first-order estimate, at least 1.
        path: Points between the standing code and the mean live code at which the estimate takes its gradient, for a
            quarter of the positions at a time, so that no two neighbours move together; 0: one gradient, where the
            grid stands. On networks that bend, a code is far away and the slope where one stands says little of it.
        shake: Share of the free positions that begin at a drawn live code in every restart but the first, 0 to 1.
        regulariser: What plausible means; None: nothing is asked.
        weight: Of the regulariser: what one nat of plausibility is worth in units of the objective, at least 0.
    """

    @property
    def budget(self) -> int: ...
    @property
    def candidates(self) -> int: ...
    @property
    def path(self) -> int: ...
    @property
    def shake(self) -> float: ...
    @property
    def regulariser(self) -> Regulariser | None: ...
    @property
    def weight(self) -> float: ...


def restart_problems(settings: Restarted) -> Iterator[str]:
    """Say what is wrong with the settings of a strategy, one sentence each."""
    for name in ("restarts", "batch"):
        if getattr(settings, name) < 1:
            yield f"{name}={getattr(settings, name)} must be at least 1"


def ascent_problems(settings: Ascending) -> Iterator[str]:
    """Say what is wrong with the settings of a gradient search, one sentence each."""
    yield from start_problems(settings)
    if settings.steps < 1:
        yield f"steps={settings.steps} must be at least 1"
    if not 0 < settings.rate < math.inf:
        yield f"rate={settings.rate} must be above 0 and finite"
    if not 0 <= settings.spread < math.inf:
        yield f"spread={settings.spread} must be at least 0 and finite"


def start_problems(settings: Starting) -> Iterator[str]:
    """Say what is wrong with what every search has that starts somewhere, one sentence each."""
    yield from restart_problems(settings)
    if settings.record_every < 1:
        yield f"record_every={settings.record_every} must be at least 1"
    if settings.start not in (known := get_args(Start)):
        yield f"start={settings.start!r} must be one of {', '.join(known)}"
    if settings.objective not in (known := get_args(Objective)):
        yield f"objective={settings.objective!r} must be one of {', '.join(known)}"


def swap_problems(settings: Swapping) -> Iterator[str]:
    """Say what is wrong with the settings of a search by swaps, one sentence each."""
    yield from start_problems(settings)
    for name in ("budget", "candidates"):
        if getattr(settings, name) < 1:
            yield f"{name}={getattr(settings, name)} must be at least 1"
    if settings.path < 0:
        yield f"path={settings.path} must be at least 0"
    if not 0 <= settings.shake <= 1:
        yield f"shake={settings.shake} must lie in 0 to 1"
    if not 0 <= settings.weight < math.inf:
        yield f"weight={settings.weight} must be at least 0 and finite"
    if settings.weight and settings.regulariser is None:
        yield f"weight={settings.weight} has no regulariser to weigh; give one, or weight=0"


def recorded(steps: int, every: int) -> tuple[int, ...]:
    """Return the steps at which a search is measured: the start, every `every`-th, the last.

    Example:
        >>> recorded(25, 10)
        (0, 10, 20, 25)
    """
    return (*range(0, steps, every), steps)
