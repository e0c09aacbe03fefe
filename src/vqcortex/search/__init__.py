"""Codebook level: what each code does to a concept, and which combination of codes means it."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from vqcortex.errors import ConfigError
from vqcortex.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqcortex.search.protocol import Search

SEARCHES: Registry[Callable[..., Search]] = Registry("search strategy")
SEARCHES.add("annealing", "vqcortex.search.annealing:Annealing")
SEARCHES.add("beam", "vqcortex.search.beam:Beam")
SEARCHES.add("embedding_optimisation", "vqcortex.search.embedding:EmbeddingOptimisation")
SEARCHES.add("greedy", "vqcortex.search.greedy:Greedy")
SEARCHES.add("random_codes", "vqcortex.search.random_codes:RandomCodes")
SEARCHES.add("token_selection", "vqcortex.search.selection:TokenSelection")


def make_search(name: str, **settings: Any) -> Search:
    """Return the strategy `name` with those of the settings that it has, so that one set serves every arm.

    Args:
        name: One of SEARCHES.
        settings: Fields of the strategies; one that this strategy lacks but another has is left out.

    Raises:
        UnknownName: There is no such strategy.
        ConfigError: A setting is known to no strategy, or has a wrong value.

    Example:
        >>> make_search("random_codes", restarts=3, steps=100).restarts
        3
    """
    known = {one: _field_names(SEARCHES[one]) for one in SEARCHES}
    every = frozenset().union(*known.values())
    if strange := sorted(set(settings) - every):
        raise ConfigError(f"no search strategy has a setting {strange[0]!r}; known: {', '.join(sorted(every))}")
    return SEARCHES[name](**{key: value for key, value in settings.items() if key in known.get(name, ())})


def _field_names(strategy: Any) -> frozenset[str]:
    return frozenset(one.name for one in fields(strategy))
