"""What an edit is: tokens, the region that may change, what it shows and what it is to show; and what may be asked.

A strategy changes tokens inside the region only, uses live codes only, and what it makes of an image depends on
(seed, image id) and not on the rest of the batch. Whoever chooses the tokens is among the `choosers`; whoever is not
may judge the edit afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.errors import ConfigError, ShapeError
from vqcortex.tokens.grid import check_tokens

AT_ONCE = 256  # grids in one forward


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Images to edit.

    Args:
        tokens: Their grids, (b, h, w).
        free: True where a token may change, per image.
        source: Concept they show.
        target: Concept they are to show, another one.
        image_ids: b names; random draws depend on them.
        inside: Pixels that may change at no cost, for a leak budget: the region with its footprint; None: all.
        seed: Of the draws.
    """

    tokens: Int[Tensor, "b h w"]
    free: Bool[Tensor, "images rows columns"]
    source: Int[Tensor, " b"]
    target: Int[Tensor, " b"]
    image_ids: tuple[str, ...]
    inside: Bool[Tensor, "b H W"] | None = None
    seed: int = 0

    def __len__(self) -> int:
        """Images."""
        return len(self.tokens)

    def take(self, rows: Sequence[int]) -> Task:
        """Those of these images, in this order."""
        at = list(rows)
        return replace(
            self, tokens=self.tokens[at], free=self.free[at], source=self.source[at], target=self.target[at],
            image_ids=tuple(self.image_ids[row] for row in at),
            inside=None if self.inside is None else self.inside[at],
        )  # fmt: skip

    def parts(self, size: int) -> Iterator[Task]:
        """Tasks of at most `size` images each, in order."""
        rows = range(len(self))
        return (self.take(rows[first : first + size]) for first in rows[::size])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What strategies may ask; each asks for some of it.

    Args:
        codebook: The codes as used for look-up.
        alive: True for the codes that may be put in, (k,).
        choosers: Networks from codes (b, d, h, w) to concept logits (b, c), differentiable, held still.
        decode: Codes to images in [0, 1]; None: the model has no decoder.
        listed: A concept's tokens, best first, -1 after the last, by concept.
        places: How often each code stands at each position of a concept's images, (k, h, w), by concept.
        effects: Mean effect of each code at each position on a concept, (k, h, w), by concept.
        chances: Grids and concepts to log-probabilities of every code at every position, given the tokens before it;
            None: the model has no generator that tells.
        search: A codebook search: codes that make the target, inside one mask for all images; None: none was wired.
    """

    codebook: Float[Tensor, "k d"]
    alive: Bool[Tensor, " k"]
    choosers: Sequence[nn.Module] = ()
    decode: Callable[[Tensor], Tensor] | None = None
    listed: Mapping[int, Tensor] = field(default_factory=dict)
    places: Mapping[int, Tensor] = field(default_factory=dict)
    effects: Mapping[int, Tensor] = field(default_factory=dict)
    chances: Callable[[Tensor, Tensor], Tensor] | None = None
    search: Callable[[Task, Tensor], Tensor] | None = None


@runtime_checkable
class Strategy(Protocol):
    """A way to choose the tokens that make the target."""

    name: ClassVar[str]

    def __call__(self, task: Task, means: Means) -> Int[Tensor, "b h w"]:
        """The edited grids.

        Args:
            task: The images.
            means: What may be asked.

        Raises:
            ConfigError: What the strategy needs is not among the means, or the task is not sound (`check_task`).
        """
        ...


def check_task(task: Task, means: Means) -> None:
    """Return quietly if a task can be edited.

    Raises:
        ShapeError: Shapes do not fit one another.
        TokenError: A token is outside the codebook.
        ConfigError: A region is empty, a target is its source, or no code is live.
    """
    if task.free.shape != task.tokens.shape:
        raise ShapeError(
            f"the regions have shape {tuple(task.free.shape)} but the grids {tuple(task.tokens.shape)}; "
            "give one mask (h, w) per image"
        )
    if not len(task) == len(task.source) == len(task.target) == len(task.image_ids):
        raise ShapeError(
            f"{len(task)} grids came with {len(task.source)} sources, {len(task.target)} targets and "
            f"{len(task.image_ids)} image ids; give one of each per grid"
        )
    check_tokens(task.tokens, len(means.codebook))
    for name, one in zip(task.image_ids, task.free, strict=True):
        if not one.any():
            raise ConfigError(f"the region of image {name!r} holds no position; at least 1 is needed, so enlarge it")
    if (same := (task.source == task.target).nonzero()).numel():
        name, concept = task.image_ids[int(same[0, 0])], int(task.target[same[0, 0]])
        raise ConfigError(f"image {name!r} shows its target, concept {concept}, already; choose another target")
    if not means.alive.any():
        raise ConfigError(f"none of the {len(means.codebook)} codes is live; at least 1 is needed")


def needed(found: object, strategy: str, what: str, how: str) -> None:
    """Return quietly where a strategy has what it needs.

    Raises:
        ConfigError: It does not; `how` is the next step.
    """
    if not found:
        raise ConfigError(f"edit strategy {strategy!r} needs {what}, and there is none; {how}")


def embed(tokens: Int[Tensor, "b h w"], codebook: Float[Tensor, "k d"]) -> Float[Tensor, "b d h w"]:
    """Codes of grids, channels first."""
    return F.embedding(tokens, codebook).permute(0, 3, 1, 2).contiguous()


def leads(
    choosers: Sequence[nn.Module],
    embedded: Float[Tensor, "b d h w"],
    source: Int[Tensor, " b"],
    target: Int[Tensor, " b"],
    over: str = "source",
) -> Float[Tensor, "e b"]:
    """How far each chooser puts the target before the source, or before the likeliest other concept, in nats.

    Args:
        choosers: See `Means`.
        embedded: Codes of the images.
        source: Concept they showed.
        target: Concept they are to show.
        over: "source" or "others".
    """
    found = []
    for chooser in choosers:
        logits = chooser(embedded)
        mine = logits.gather(1, target[:, None])[:, 0]
        if over == "source":
            found.append(mine - logits.gather(1, source[:, None])[:, 0])
        else:
            found.append(mine - logits.scatter(1, target[:, None], -torch.inf).amax(1))
    return torch.stack(found)
