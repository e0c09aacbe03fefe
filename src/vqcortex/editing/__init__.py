"""Change what an image shows by changing as few tokens as possible, and measure that this, and only this, changed."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from vqcortex.errors import ConfigError
from vqcortex.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqcortex.editing.protocol import Strategy

STRATEGIES: Registry[Callable[..., Strategy]] = Registry("edit strategy")
STRATEGIES.add("best_cells", "vqcortex.editing.cells:BestCells")
STRATEGIES.add("concept_tokens", "vqcortex.editing.concept:ConceptTokens")
STRATEGIES.add("frequency_codes", "vqcortex.editing.controls:FrequencyCodes")
STRATEGIES.add("generator", "vqcortex.editing.generator:FromGenerator")
STRATEGIES.add("random_codes", "vqcortex.editing.controls:RandomCodes")
STRATEGIES.add("search", "vqcortex.editing.searched:Searched")
STRATEGIES.add("smallest", "vqcortex.editing.smallest:Smallest")
CONTROLS = ("frequency_codes", "random_codes")


def make_strategy(name: str, **settings: Any) -> Strategy:
    """Return the strategy `name` with those of the settings that it has, so that one set serves all.

    Args:
        name: One of STRATEGIES.
        settings: Fields of the strategies; one that this strategy lacks but another has is left out.

    Raises:
        UnknownName: There is no such strategy.
        ConfigError: A setting is known to no strategy, or has a wrong value.

    Example:
        >>> make_strategy("smallest", sureness=2.0, draws=4).sureness
        2.0
    """
    chosen = STRATEGIES[name]
    known = {one: _field_names(STRATEGIES[one]) for one in STRATEGIES}
    every = frozenset().union(*known.values())
    if strange := sorted(set(settings) - every):
        raise ConfigError(f"no edit strategy has a setting {strange[0]!r}; known: {', '.join(sorted(every))}")
    return chosen(**{key: value for key, value in settings.items() if key in known[name]})


def _field_names(strategy: Any) -> frozenset[str]:
    return frozenset(one.name for one in fields(strategy))
