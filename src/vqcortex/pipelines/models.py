"""What can be chosen by name."""

from __future__ import annotations

from typing import Any

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import Generator
from vqcortex.adapters.zoo import zoo_names
from vqcortex.registry import Registry


def list_models() -> list[tuple[str, ...]]:
    """One row per model that opens without a download: name, k, d, grid, pixels, concepts, whether it generates."""
    rows: list[tuple[str, ...]] = []
    for name in [*(f"zoo:{one}" for one in zoo_names()), "toy"]:
        model = load_model(name)
        codes, width = model.codebook.shape
        grid, size = (f"{one[0]}x{one[1]}" for one in (model.grid, model.size))
        generates = "yes" if isinstance(model, Generator) else "no"
        rows.append((name, str(codes), str(width), grid, size, str(len(model.concepts)), generates))
    return rows


def list_registries() -> list[tuple[str, str]]:
    """One row per registry: what it holds, and the names."""
    from vqcortex.attribution import METHODS
    from vqcortex.evaluation import ARMS, FILLS
    from vqcortex.extractors import EXTRACTORS
    from vqcortex.images import SOURCES
    from vqcortex.search import SEARCHES

    registries: tuple[Registry[Any], ...] = (EXTRACTORS, METHODS, SEARCHES, FILLS, ARMS, SOURCES)
    return [(one.kind, ", ".join(one)) for one in registries]
