"""Pairs planted in a world, as the table of interactions sees them: put into images that hold neither code."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.adapters.protocol import Adapter
from vqcortex.attribution.insertion import inserted_values
from vqcortex.attribution.interactions import corners_of, synergy
from vqcortex.pipelines.together import INSERTION, PairValues, Strictness, pair_table
from vqcortex.seeds import generator_for, number_for
from vqcortex.worlds.protocol import CONCEPTS, WITH, World

PLACES = 8  # pairs of positions that a pair of codes is put to; one alone may be where the extractor does not look
CONTROLS = 4  # pairs of a planted code and one that means nothing
SEEDS = 2**31


def planted_pairs(
    world: World, module: nn.Module, model: Adapter, alive: Int[Tensor, " a"], *, images: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of `worlds_pairs` without what says which piece they are of: the planted pairs, then the controls.

    Args:
        world: Only test images that hold no planted code are used.
        module: Who learned it.
        model: Whose codes they are.
        alive: Codes that controls are drawn from.
        images: At most so many.
        seed: Of positions, controls and tests.
    """
    if not world.pairs:
        return []
    planted = torch.cat([world.causal_codes, world.decoy_codes])
    rows = world.rows("test")
    rows = rows[~torch.isin(world.tokens[rows], planted).flatten(1).any(1)][:images]
    pairs = [*world.pairs, *_controls(world, alive[~torch.isin(alive, planted)], seed)]
    found = [_measured(pair, world, rows, module, model, seed) for pair in pairs]
    table = pair_table(found, CONCEPTS, Strictness(seed=number_for(seed, "tests") % SEEDS))
    strongest = max((abs(row["synergy"] or 0.0) for row in table.rows[len(world.pairs) :]), default=0.0)
    return [
        {name: row[name] for name in ("code_a", "code_b", "images", "synergy", "low", "high", "p", "q", "verdict")}
        | {"is_planted": place < len(world.pairs), "is_strongest": abs(row["synergy"] or 0.0) > strongest}
        for place, row in enumerate(table.rows)
    ]


def _controls(world: World, others: Int[Tensor, " o"], seed: int) -> list[tuple[int, int]]:
    """Each of the first planted code and another live one, drawn without repeats."""
    first = int(world.causal_codes[0])
    drawn = torch.randperm(len(others), generator=generator_for(seed, "control codes"))[:CONTROLS]
    return [(first, code) for code in others[drawn].tolist()]


def _measured(
    pair: tuple[int, int], world: World, rows: Int[Tensor, " r"], module: nn.Module, model: Adapter, seed: int
) -> PairValues:
    embedded = model.embed(world.tokens[rows].to(model.device))
    concept = torch.full((len(rows),), WITH, device=model.device)
    names = [world.image_ids[row] for row in rows.tolist()]
    codes = model.codebook.detach()[list(pair)]
    values: Float[Tensor, "r 4"] = torch.zeros(len(rows), 4, dtype=torch.float64)
    for places in _places(model.grid, seed):
        four = corners_of(2).expand(len(rows), -1)
        values += inserted_values(module, embedded, concept, names, codes, places, four) / PLACES
    return PairValues(concept=WITH, codes=pair, form=INSERTION, values=values[None], interaction=synergy(values))


def _places(grid: tuple[int, int], seed: int) -> list[Bool[Tensor, "2 h w"]]:
    """Two different positions each, the same for every pair of codes."""
    found = []
    for number in range(PLACES):
        two = torch.randperm(grid[0] * grid[1], generator=generator_for(seed, "pair places", number))[:2]
        found.append(torch.nn.functional.one_hot(two, grid[0] * grid[1]).bool().unflatten(1, grid))
    return found
