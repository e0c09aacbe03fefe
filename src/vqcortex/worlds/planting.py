"""Plant a world into token grids: choose its codes and places, clear the background of them, plant them image by image.

Every choice of a world is a function of (seed, world); every choice of an image of (seed, image id, purpose). The base
grid of an image, its concept and its background know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int, Real
from torch import Tensor

from vqcortex.errors import ConfigError, DataError, ShapeError, TokenError
from vqcortex.seeds import generator_for, number_for
from vqcortex.worlds import WORLDS
from vqcortex.worlds.protocol import LEAST_IMAGES, Kind, Parameters, World

TENTHS = ("train",) * 7 + ("validation",) + ("test",) * 2


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is the same for all images of a world.

    Args:
        kind: Which world.
        parameters: How it is turned.
        causal: Codes that make the concept, (m,).
        decoys: Codes that go with it, (u,).
        places: Where causal codes count.
        patch: Where a patch of decoys stands.
        allowed: True where a code may stand; None: everywhere.
        weights: How often a background code is drawn; 0 for planted ones.
    """

    kind: Kind
    parameters: Parameters
    causal: Int[Tensor, " m"]
    decoys: Int[Tensor, " u"]
    places: Bool[Tensor, "h w"]
    patch: Bool[Tensor, "h w"]
    allowed: Bool[Tensor, "k h w"] | None
    weights: Real[Tensor, " k"]

    @property
    def planted(self) -> Int[Tensor, " v"]:
        """All codes that stand nowhere but where they are planted."""
        return torch.cat([self.causal, self.decoys])


def build_world(
    name: str,
    base: Int[Tensor, "n h w"],
    image_ids: Sequence[str],
    *,
    frequency: Real[Tensor, " k"],
    parameters: Parameters | None = None,
    allowed: Bool[Tensor, "k h w"] | None = None,
    plantable: Bool[Tensor, " k"] | None = None,
) -> World:
    """Return a world planted into grids of a model; an image does not depend on those beside it.

    Args:
        name: One of WORLDS.
        base: Grids that look like the model's, one per image; planted codes in them are replaced by others first.
        image_ids: One name per image.
        frequency: How often each code is used; codes never used are not planted, background is drawn by it.
        parameters: How the world is turned; None: the defaults.
        allowed: True where a code may stand, for models whose levels have codebooks of their own; None: everywhere.
        plantable: True for codes that may be planted; None: all live ones.

    Raises:
        UnknownName: There is no such world.
        ConfigError: More codes than are live or than the grid has room for, or a patch that does not fit.
        DataError: Fewer than 20 images.
        TokenError, ShapeError: Tokens outside the codebook, or not one id per grid.
    """
    parameters = parameters or Parameters()
    _check_base(base, image_ids, len(frequency))
    plan = plan_world(WORLDS[name], (base.shape[1], base.shape[2]), frequency, parameters, allowed, plantable)
    made = [_image(plan, grid, image_id) for grid, image_id in zip(base.cpu().long(), image_ids, strict=True)]
    tokens = torch.stack([grid for grid, _, _ in made])
    return World(
        name=name,
        description=plan.kind.description,
        image_ids=tuple(image_ids),
        split=tuple(split_of(one, parameters.seed) for one in image_ids),
        tokens=tokens,
        concept=torch.tensor([concept for _, concept, _ in made]),
        truth=torch.tensor([truth for _, _, truth in made]),
        causal=causal_positions(plan, tokens),
        decoy=torch.isin(tokens, plan.decoys),
        causal_codes=plan.causal,
        decoy_codes=plan.decoys,
        together=plan.kind.together,
    )


def plan_world(
    kind: Kind,
    grid: tuple[int, int],
    frequency: Real[Tensor, " k"],
    parameters: Parameters,
    allowed: Bool[Tensor, "k h w"] | None = None,
    plantable: Bool[Tensor, " k"] | None = None,
) -> Plan:
    """Choose a world's codes among the live ones, and its places.

    Args:
        kind: Which world.
        grid: Rows and columns, (h, w).
        frequency: See `build_world`; so are allowed and plantable.
        parameters: How it is turned.

    Raises:
        ConfigError: More codes than are live or than the grid has room for, or a patch that does not fit.
    """
    live = (frequency > 0).cpu()
    fit = (live if plantable is None else live & plantable.cpu()).nonzero()[:, 0]
    m = parameters.codes if kind.causal is None else kind.causal
    u = 0 if kind.decoy is None else 1
    if m + u > len(fit) or m + u >= live.sum():
        raise ConfigError(
            f"world {kind.name!r} plants {m + u} codes, but {len(fit)} may be planted of {int(live.sum())} live ones, "
            "one of which must be left for the background; take fewer codes or more base grids"
        )
    chosen = fit[torch.randperm(len(fit), generator=generator_for(parameters.seed, kind.name, "codes"))[: m + u]]
    weights = frequency.double().cpu().clone()
    weights[chosen] = 0
    plan = Plan(
        kind=kind, parameters=parameters, causal=chosen[:m], decoys=chosen[m:],
        places=half_of(grid) if kind.is_placed else torch.ones(grid, dtype=torch.bool),
        patch=_patch(kind, grid, parameters, chosen[m:], allowed), allowed=allowed, weights=weights,
    )  # fmt: skip
    _check_room(plan)
    return plan


def half_of(grid: tuple[int, int]) -> Bool[Tensor, "h w"]:
    """The upper half of a grid, rounded down; the left half where there is but one row."""
    h, w = grid
    half = torch.zeros(grid, dtype=torch.bool)
    half[: max(1, h // 2), : w if h > 1 else w // 2] = True
    return half


def split_of(image_id: str, seed: int) -> str:
    """What an image is for: 7 of 10 train, 1 chooses, 2 test, drawn for each image by itself."""
    return TENTHS[number_for(seed, image_id, "split") % len(TENTHS)]


def copies_of(plan: Plan, image_id: str) -> int:
    """Positions that every scattered code of an image takes: one in a test image, any number up to the most elsewhere.

    With one copy it is one position that decides, which an explanation can be asked for; with several none decides by
    itself. From images with several an extractor learns sooner what to look for.
    """
    if split_of(image_id, plan.parameters.seed) == "test":
        return 1
    most = plan.parameters.most((plan.places.shape[0], plan.places.shape[1]))
    return 1 + int(torch.randint(most, (), generator=generator_for(plan.parameters.seed, image_id, "copies")))


def causal_positions(plan: Plan, tokens: Int[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """Where a causal code counts and decides: with it gone from the image, the rule says otherwise."""
    stands = (tokens[:, None] == plan.causal[:, None, None]) & plan.places  # (n, m, h, w)
    present = stands.flatten(2).any(2)
    found = torch.zeros_like(tokens, dtype=torch.bool)
    for number in range(len(plan.causal)):
        without = present.clone()
        without[:, number] = False
        decides = plan.kind.holds(without) != plan.kind.holds(present)
        found |= stands[:, number] & decides[:, None, None]
    return found


def background(plan: Plan, base: Int[Tensor, "h w"], image_id: str) -> Int[Tensor, "h w"]:
    """The base grid with every planted code replaced by one drawn by use among those that may stand there."""
    grid, source = base.clone(), generator_for(plan.parameters.seed, image_id, "background")
    for row, column in torch.isin(base, plan.planted).nonzero().tolist():
        weights = plan.weights if plan.allowed is None else plan.weights * plan.allowed[:, row, column]
        grid[row, column] = torch.multinomial(weights, 1, generator=source)[0]
    return grid


def _image(plan: Plan, base: Int[Tensor, "h w"], image_id: str) -> tuple[Tensor, int, int]:
    """Tokens, concept and truth of one image."""
    seed = plan.parameters.seed
    truth = _happens(0.5, seed, image_id, "concept")
    concept = truth != _happens(plan.parameters.label_noise, seed, image_id, "noise")
    grid = background(plan, base, image_id)
    source = generator_for(seed, image_id, "plant")
    copies = copies_of(plan, image_id)
    free = ~plan.patch
    for code, stands in zip(plan.causal.tolist(), plan.kind.present(truth, len(plan.causal), source), strict=True):
        if stands:
            _scatter(plan, grid, free, plan.places, code, copies, source)
    if plan.kind.is_placed:
        _lay_elsewhere(plan, grid, free, copies, image_id)
    _lay_decoys(plan, grid, free, copies, truth, concept, image_id)
    return grid, int(concept), int(truth)


def _happens(chance: float, *names: object) -> bool:
    seed, *rest = names
    assert isinstance(seed, int)
    return bool(torch.rand((), dtype=torch.float64, generator=generator_for(seed, *rest)) < chance)


def _scatter(
    plan: Plan, grid: Tensor, free: Tensor, where: Tensor, code: int, copies: int, source: torch.Generator
) -> None:
    """Put a code at so many positions, and mark them as taken."""
    cells = _room_for(plan, free & where, code).nonzero()
    rows, columns = cells[torch.randperm(len(cells), generator=source)[:copies]].T
    grid[rows, columns] = code
    free[rows, columns] = False


def _lay_elsewhere(plan: Plan, grid: Tensor, free: Tensor, copies: int, image_id: str) -> None:
    """In half of the images, whatever their concept, the causal codes also stand where they do not count."""
    if _happens(0.5, plan.parameters.seed, image_id, "elsewhere"):
        source = generator_for(plan.parameters.seed, image_id, "elsewhere places")
        for code in plan.causal.tolist():
            _scatter(plan, grid, free, ~plan.places, code, copies, source)


def _lay_decoys(plan: Plan, grid: Tensor, free: Tensor, copies: int, truth: bool, concept: bool, image_id: str) -> None:
    decoy, seed = plan.kind.decoy, plan.parameters.seed
    if decoy is None:
        return
    if split_of(image_id, seed) == "test":
        chance = decoy.in_test
    else:
        followed = truth if decoy.follows == "rule" else concept
        chance = plan.parameters.correlation if followed else 1 - plan.parameters.correlation
    if not _happens(chance, seed, image_id, "decoy"):
        return
    for code in plan.decoys.tolist():
        if decoy.is_patch:
            grid[plan.patch] = code
        else:
            source = generator_for(seed, image_id, "decoy places")
            _scatter(plan, grid, free, plan.places, code, copies, source)


def _room_for(plan: Plan, cells: Bool[Tensor, "h w"], code: int) -> Bool[Tensor, "h w"]:
    return cells if plan.allowed is None else cells & plan.allowed[code]


def _patch(
    kind: Kind, grid: tuple[int, int], parameters: Parameters, decoys: Tensor, allowed: Tensor | None
) -> Bool[Tensor, "h w"]:
    """A square place for decoys, the same in all images; nowhere for worlds without a patch."""
    found = torch.zeros(grid, dtype=torch.bool)
    if kind.decoy is None or not kind.decoy.is_patch:
        return found
    side = parameters.patch
    if side > min(grid):
        raise ConfigError(f"patch={side} is larger than the {grid[0]}x{grid[1]} grid; it may be {min(grid)} at most")
    may = torch.ones(grid, dtype=torch.bool) if allowed is None else allowed[decoys].all(0).cpu()
    corners = may.unfold(0, side, 1).unfold(1, side, 1).flatten(2).all(2).nonzero()  # whole squares
    if not len(corners):
        raise ConfigError(f"no {side}x{side} square of this grid may hold code {int(decoys[0])}; take a smaller patch")
    source = generator_for(parameters.seed, kind.name, "patch")
    row, column = corners[int(torch.randint(len(corners), (), generator=source))].tolist()
    found[row : row + side, column : column + side] = True
    return found


def _check_room(plan: Plan) -> None:
    """Every planted code must find its places, and the background a code, even where all stand in one image."""
    grid = (plan.places.shape[0], plan.places.shape[1])
    most, scattered = plan.parameters.most(grid), plan.planted if not plan.patch.any() else plan.causal
    needed = most * len(scattered)
    for where in (plan.places, ~plan.places) if plan.kind.is_placed else (plan.places,):
        for code in scattered.tolist():
            room = int(_room_for(plan, where & ~plan.patch, code).sum())
            if room < needed:
                raise ConfigError(
                    f"world {plan.kind.name!r} plants {len(scattered)} code(s) at up to {most} position(s), but code "
                    f"{code} may stand at {room} of the {grid[0]}x{grid[1]} positions; take fewer codes or a smaller "
                    "plant-rate"
                )
    if plan.allowed is not None and (lost := ~((plan.weights > 0)[:, None, None] & plan.allowed.cpu()).any(0)).any():
        row, column = lost.nonzero()[0].tolist()
        raise ConfigError(f"no code is left for the background at position ({row}, {column}); plant fewer codes")


def _check_base(base: Tensor, image_ids: Sequence[str], k: int) -> None:
    if len(base) != len(image_ids):
        raise ShapeError(f"{len(base)} base grids came with {len(image_ids)} ids; give one id per grid")
    if len(base) < LEAST_IMAGES:
        raise DataError(f"a world of {len(base)} images cannot train, choose and test; give at least {LEAST_IMAGES}")
    low, high = int(base.min()), int(base.max())
    if low < 0 or high >= k:
        raise TokenError(f"base tokens span [{low}, {high}] but frequency tells of codes [0, {k - 1}]")
