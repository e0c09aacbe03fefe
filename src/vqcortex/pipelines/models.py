"""What can be chosen by name."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from vqcortex.adapters import families, load_model
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


def list_families() -> list[tuple[str, ...]]:
    """One row per family of foreign models: name, what it opens, can do, how many grids, parity with official code."""
    measured = parity()
    return [
        (
            one.name,
            one.title,
            one.formats,
            ", ".join(one.abilities),
            one.levels,
            *_parity_words(measured.get(one.name, [])),
        )
        for one in families()
        if one.formats
    ]


def parity() -> dict[str, list[dict[str, Any]]]:
    """What comparing every family with its official code gave, by family; columns: tests/parity/golden.py."""
    rows = json.loads((files("vqcortex.adapters") / "parity.json").read_text())
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["family"], []).append(row)
    return found


def _parity_words(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Tokens that are equal, and the largest difference of a pixel, over a family's models."""
    compared = sum(row["tokens"] for row in rows)
    pixels = [row["pixels"] for row in rows if row["pixels"] is not None]
    equal = f"{sum(row['tokens_equal'] for row in rows)} of {compared}" if compared else "-"
    return equal, f"{max(pixels):.0e}" if pixels else "-"


def list_registries() -> list[tuple[str, str]]:
    """One row per registry: what it holds, and the names."""
    from vqcortex.attribution import METHODS
    from vqcortex.editing import STRATEGIES
    from vqcortex.evaluation import ARMS, FILLS
    from vqcortex.evaluation.metrics import METRICS
    from vqcortex.evaluation.sanity import CHECKS
    from vqcortex.extractors import EXTRACTORS
    from vqcortex.images import SOURCES
    from vqcortex.search import SEARCHES
    from vqcortex.worlds import WORLDS

    registries: tuple[Registry[Any], ...] = (
        EXTRACTORS, METHODS, SEARCHES, STRATEGIES, FILLS, ARMS, METRICS, CHECKS, WORLDS, SOURCES,
    )  # fmt: skip
    return [(one.kind, ", ".join(one)) for one in registries]
