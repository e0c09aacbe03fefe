"""Build fills and control arms from names and whatever was counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.errors import ConfigError
from vqcortex.evaluation import ARMS, FILLS
from vqcortex.evaluation.arms import Arm
from vqcortex.evaluation.fills import Fill

T = TypeVar("T")


def fills_for(
    names: Sequence[str], *, frequency: Float[Tensor, "k ..."] | None = None, seed: int = 0
) -> tuple[Fill, ...]:
    """The named fills; `frequency` is needed by those that put codes in, None where none of them is named."""
    return tuple(built(FILLS[name], name, frequency=frequency, seed=seed) for name in names)


def arms_for(names: Sequence[str], *, counts: Int[Tensor, "c k"] | None = None, seed: int = 0) -> tuple[Arm, ...]:
    """The named control arms; `counts` is needed by token_frequency, None where it is not named."""
    return tuple(built(ARMS[name], name, counts=counts, seed=seed) for name in names)


def built(cls: type[T], name: str, **available: object) -> T:
    """An instance made from those of the available values that its settings name."""
    wanted = {one.name for one in fields(cls)} & set(available)  # type: ignore[arg-type]
    if missing := sorted(key for key in wanted if available[key] is None):
        raise ConfigError(f"{name!r} needs {missing[0]}, which was not given; count it on the model's own tokens")
    return cls(**{key: available[key] for key in wanted})
