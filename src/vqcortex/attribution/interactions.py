"""Which codes of an image matter together: what several do to the concept's logit, beyond what each does by itself.

The players of an image are groups of its positions, such as those that hold one code. A coalition is worth the
concept's logit when the positions of all absent players hold the baseline and everything else of the image stays.

Source:
    Grabisch and Roubens 1999, International Journal of Game Theory 28, 547-565 (interaction indices); Lundberg et al.
    2018, arXiv:1802.03888, section 4, halves the Shapley index between the two players, we do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.attribution.baselines import Baseline, baseline_grid, draws_of
from vqcortex.attribution.logits import (
    AT_ONCE,
    at_once_problems,
    check_finite,
    check_lengths,
    evaluated,
    hidden_logits,
)
from vqcortex.config import raise_all
from vqcortex.errors import ConfigError, ShapeError
from vqcortex.seeds import generator_for

EXACT = 8
"""Players up to which every coalition is asked: 256."""
MOST = 24
"""Players at most: a coalition is a number with one bit per player."""
ROUNDING = 1e-5  # sums of float32 logits that come to less than this share of them are nothing


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """What the m players of b images do, in logits; pairs in the order of `pairs_of`, float64 on the CPU.

    A player that an image lacks changes nothing in it: its values are 0, and a mean must leave them out.

    Args:
        present: Whether the image has the player, (b, m).
        shapley: Shapley values, (b, m); they add up to `joint`.
        pairs: Values of neither, the first, the second and both of a pair while all others are present, (b, p, 4).
        interaction: Shapley interaction index: mean synergy over contexts, each number of others alike, (b, p).
        banzhaf: Banzhaf interaction index: mean synergy over contexts, each set of others alike, (b, p).
        alone: Value of a player by itself minus that of none, (b, m).
        joint: Value of all minus that of none, (b).
    """

    present: Bool[Tensor, "b m"]
    shapley: Float[Tensor, "b m"]
    pairs: Float[Tensor, "b p 4"]
    interaction: Float[Tensor, "b p"]
    banzhaf: Float[Tensor, "b p"]
    alone: Float[Tensor, "b m"]
    joint: Float[Tensor, " b"]


def pairs_of(players: int) -> list[tuple[int, int]]:
    """Every pair of players, in order.

    Example:
        >>> pairs_of(3)
        [(0, 1), (0, 2), (1, 2)]
    """
    return list(combinations(range(players), 2))


def corners_of(players: int) -> Int[Tensor, "p 4"]:
    """Coalitions of neither, the first, the second and both of every pair.

    Example:
        >>> corners_of(2).tolist()
        [[0, 1, 2, 3]]
    """
    first, second = (1 << torch.tensor(pairs_of(players))).unbind(1)
    return torch.stack([0 * first, first, second, first | second], 1)


def positions_of(tokens: Int[Tensor, "b h w"], codes: Sequence[int], k: int) -> Bool[Tensor, "b m h w"]:
    """Return where each code stands: one player per code.

    Args:
        codes: At least 2 different ones.
        k: Codes of the codebook.

    Raises:
        ConfigError: Fewer than two codes, one twice, or one outside the codebook.
    """
    if len(codes) < 2 or len(set(codes)) < len(codes):
        raise ConfigError(f"codes {list(codes)} must be at least 2, all different: what matters together is a pair")
    if min(codes) < 0 or max(codes) >= k:
        raise ConfigError(
            f"codes span [{min(codes)}, {max(codes)}] but this codebook holds indices [0, {k - 1}]; "
            "were they found with another model?"
        )
    return tokens[:, None] == torch.tensor(codes, device=tokens.device)[None, :, None, None]


def synergy(values: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Return what two do beyond the sum of each: v(both) - v(first) - v(second) + v(neither).

    Above 0: each needs the other. Below 0: either does without the other, or they exclude each other. What is within
    rounding of 0 is 0, so that no test takes rounding for a rule.

    Args:
        values: Of neither, the first, the second and both, in logits.
    """
    neither, first, second, both = values.unbind(-1)
    found = both - first - second + neither
    return torch.where(found.abs() > ROUNDING * values.abs().amax(-1), found, 0)


def coalition_values(
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    players: Bool[Tensor, "_ m _ _"],
    coalitions: Int[Tensor, "b q"],
    *,
    baseline: Baseline = None,
    at_once: int = AT_ONCE,
) -> Float[Tensor, "b q"]:
    """Return the concept's logit of every coalition, float64 on the CPU; the same grid is never asked twice.

    Args:
        players: True at the positions of each; no position has two.
        coalitions: Bit i is set where player i is present, so that 0 is nobody.
        baseline: What the positions of absent players hold; drawn codes are averaged over their draws.
        at_once: Grids in one forward, at least 1.

    Raises:
        ShapeError: Shapes do not fit one another.
        ConfigError: Fewer than two players, or more than 24; or one position with two.
        ModelError: The extractor gives NaN.
    """
    fills = (baseline_grid(baseline, draw, embedded, image_ids) for draw in range(draws_of(baseline)))
    return values_on(extractor, embedded, fills, concept, image_ids, players, coalitions, at_once=at_once)


def values_on(
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    fills: Iterable[Float[Tensor, "b d h w"]],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    players: Bool[Tensor, "_ m _ _"],
    coalitions: Int[Tensor, "b q"],
    *,
    at_once: int = AT_ONCE,
) -> Float[Tensor, "b q"]:
    """As `coalition_values`, with whole grids for what absent players hold, averaged over: at least one."""
    raise_all(at_once_problems(at_once))
    check_lengths(embedded, concept, image_ids)
    _check_players(players, embedded)
    m, concept, players = players.shape[1], concept.cpu(), players.to(embedded.device)
    bits = torch.arange(m)
    has = (players.flatten(2).any(2).cpu().long() << bits).sum(1)
    images = torch.arange(len(embedded))[:, None]
    # An absent player that the image lacks changes nothing: such coalitions are one.
    asked, place = (images << m | coalitions.cpu() & has[:, None]).unique(return_inverse=True)
    found = []
    with evaluated(extractor):
        for fill in fills:
            parts = []
            for part in asked.split(at_once):
                image, absent = part >> m, (part[:, None] >> bits & 1) == 0
                here = image.to(embedded.device)
                hidden = (players[here] & absent.to(here.device)[:, :, None, None]).any(1, keepdim=True)
                parts.append(hidden_logits(extractor, embedded[here], fill[here], hidden, concept[image], at_once))
            found.append(torch.cat(parts)[:, 0].double().cpu())
    values = torch.stack(found).mean(0)[place]
    check_finite(values, image_ids, "logits")
    return values


def measure_together(
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    players: Bool[Tensor, "_ m _ _"],
    *,
    baseline: Baseline = None,
    contexts: int = 16,
    seed: int = 0,
    at_once: int = AT_ONCE,
) -> Together:
    """Return what the players of each image do alone, in pairs and all together.

    Up to 8 players every coalition is asked, and every index is exact. Beyond, both indices and the Shapley values are
    means over `contexts` random ones per pair; `pairs`, `alone` and `joint` stay exact.

    Args:
        players: As in `coalition_values`.
        baseline: Likewise.
        contexts: Random orders, and random sets, per image with more than 8 players, at least 1.
        seed: Those depend on it and on the image id.
        at_once: Grids in one forward, at least 1.

    Raises:
        ConfigError, ShapeError, ModelError: As `coalition_values`; contexts is below 1.
    """
    raise_all([] if contexts >= 1 else [f"contexts={contexts} must be at least 1"])
    check_lengths(embedded, concept, image_ids)
    _check_players(players, embedded)
    m = players.shape[1]
    own, corners, everybody = 1 << torch.arange(m), corners_of(m), (1 << m) - 1
    both = corners[:, 3]
    if m <= EXACT:
        around, by_size = _all_contexts(m, both)
        before, singly = _all_contexts(m, own)
        evenly, alike = around, torch.full_like(by_size, 1 / by_size.shape[1])
    else:
        before, around, evenly = _drawn_contexts(pairs_of(m), m, image_ids, contexts, seed)
        by_size = singly = alike = torch.full((1, contexts), 1 / contexts, dtype=torch.float64)
    wanted = [
        torch.stack([torch.zeros(m + 1).long(), torch.cat([own, torch.tensor([everybody])])], 1)[None],  # (1, m + 1, 2)
        torch.stack([before, before | own[:, None]], 3),
        (everybody & ~both)[None, :, None] | corners[None],
        around[..., None] | corners[:, None],
        evenly[..., None] | corners[:, None],
    ]
    sets = [one.expand(len(embedded), *one.shape[1:]).flatten(1) for one in wanted]
    found = coalition_values(
        extractor, embedded, concept, image_ids, players, torch.cat(sets, 1), baseline=baseline, at_once=at_once
    )
    parts = found.split([one.shape[1] for one in sets], 1)
    ends, joins, pairs, mixed, even = (
        part.unflatten(1, one.shape[1:]) for part, one in zip(parts, wanted, strict=True)
    )
    alone = ends[..., 1] - ends[..., 0]
    return Together(
        present=players.flatten(2).any(2).cpu(),
        shapley=((joins[..., 1] - joins[..., 0]) * singly).sum(2),
        pairs=pairs,
        interaction=(synergy(mixed) * by_size).sum(2),
        banzhaf=(synergy(even) * alike).sum(2),
        alone=alone[:, :-1],
        joint=alone[:, -1],
    )


def _all_contexts(players: int, away: Int[Tensor, " g"]) -> tuple[Int[Tensor, "1 g s"], Float[Tensor, "g s"]]:
    """Every coalition without the players of each group, and its weight in the Shapley mean."""
    every = torch.arange(1 << players)
    sets = torch.stack([every[(every & one) == 0] for one in away])
    others = int(sets.shape[1]).bit_length() - 1
    weights = torch.tensor([1 / ((others + 1) * comb(others, n)) for n in range(others + 1)], dtype=torch.float64)
    return sets[None], weights[(sets[..., None] >> torch.arange(players) & 1).sum(2)]


def _drawn_contexts(
    pairs: list[tuple[int, int]], players: int, image_ids: Sequence[str], draws: int, seed: int
) -> tuple[Int[Tensor, "b m s"], Int[Tensor, "b p s"], Int[Tensor, "b p s"]]:
    """Those before each player in random orders; before each pair, had the two come together; random sets for pairs."""
    first, second = torch.tensor(pairs).unbind(1)
    bits, ahead, sets = 1 << torch.arange(players), [], []
    for name in image_ids:
        source = generator_for(seed, name, "coalitions")
        rank = torch.rand(draws, players, generator=source).argsort(1).argsort(1)
        ahead.append(((rank[:, None, :] < rank[:, :, None]).long() * bits).sum(2).T)  # (m, s)
        sets.append(torch.randint(1 << players, (draws,), generator=source))
    before, drawn = torch.stack(ahead), torch.stack(sets)[:, None]
    around = before[:, first] & ~bits[second, None]
    return before, around, drawn & ~(bits[first] | bits[second])[:, None]


def group_effect(
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    players: Bool[Tensor, "_ m _ _"],
    *,
    baseline: Baseline = None,
    at_once: int = AT_ONCE,
) -> Float[Tensor, "b 2"]:
    """Return (value of all - of none, sum of each player's value by itself - of none), in logits.

    Arguments and errors as in `coalition_values`.
    """
    m = players.shape[1]
    wanted = torch.tensor([0, (1 << m) - 1, *(1 << one for one in range(m))]).expand(len(embedded), -1)
    found = coalition_values(
        extractor, embedded, concept, image_ids, players, wanted, baseline=baseline, at_once=at_once
    )
    gains = found[:, 1:] - found[:, :1]
    return torch.stack([gains[:, 0], gains[:, 1:].sum(1)], 1)


def control_positions(
    tokens: Int[Tensor, "b h w"], codes: Sequence[int], image_ids: Sequence[str], *, seed: int = 0, draw: int = 0
) -> Bool[Tensor, "b m h w"]:
    """Return where other codes of the same image stand, as many as it has of the codes, drawn without regard to size.

    An image that has too few others gets those it has: compare the numbers of players before the effects.

    Args:
        codes: Those to stand beside, m of them.
        seed: The draw depends on it, on the image id and on `draw`.
        draw: Number of the draw, from 0.
    """
    tokens, mine = tokens.cpu(), torch.tensor(codes)
    found = torch.zeros(len(tokens), len(codes), *tokens.shape[1:], dtype=torch.bool)
    for row, name in enumerate(image_ids):
        held = tokens[row].unique()
        is_mine = torch.isin(held, mine)
        others, wanted = held[~is_mine], int(is_mine.sum())
        order = torch.randperm(len(others), generator=generator_for(seed, name, "control codes", draw))
        for place, code in enumerate(others[order[:wanted]]):
            found[row, place] = tokens[row] == code
    return found


def _check_players(players: Tensor, embedded: Tensor) -> None:
    if (len(players), *players.shape[2:]) != (len(embedded), *embedded.shape[2:]):
        raise ShapeError(
            f"players have shape {tuple(players.shape)} but (b, m, h, w) = ({len(embedded)}, m, "
            f"{embedded.shape[2]}, {embedded.shape[3]}) is needed: a mask per image and player"
        )
    raise_all(_player_problems(players))


def _player_problems(players: Tensor) -> Iterator[str]:
    if not 2 <= players.shape[1] <= MOST:
        yield f"players={players.shape[1]} must lie in 2 to {MOST}"
    if int(players.sum(1).max()) > 1:
        yield "a position belongs to two players; give each position to one, as one code stands there"
