"""Concept level: what happens when a concept's tokens are taken out of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vqcortex.adapters.protocol import Adapter
from vqcortex.errors import ConfigError, TokenError
from vqcortex.evaluation.arms import places, random_order
from vqcortex.evaluation.drop import Mask, measure_masks
from vqcortex.evaluation.fills import Fill
from vqcortex.evaluation.judge import Judge
from vqcortex.evaluation.values import Evidence, Masking, check_names
from vqcortex.seeds import generator_for

OURS = "concept_tokens"
NO_CODE = -1  # fills a list that is shorter than the others


def measure_concept_level(
    adapter: Adapter,
    judges: Sequence[Judge],
    tokens: Int[Tensor, "b h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    lists: Mapping[str, Int[Tensor, "c _"]],
    fills: Sequence[Fill],
    *,
    cap: float = 0.5,
    seed: int = 0,
    maskings: Sequence[Masking] = ("by_id", "area_matched"),
    batch: int = 64,
) -> Evidence:
    """Drops when the tokens on each arm's list are hidden, with the published masking and with equal areas.

    "by_id" hides every cell whose token is on the list, as published; the arms then hide different areas,
    which `touched` holds. "area_matched" hides as many positions per image in every arm as the list of
    `concept_tokens` does, at most `cap` of the grid: in the order of the list, then in reading order; cells
    that are not on the list come last, in an order drawn per image.

    Args:
        adapter: The model that made the tokens.
        judges: Classifiers that took no part in making the lists.
        tokens: Grids to hide positions of.
        concept: What each image shows; a row of every list and an index into the judges' concepts.
        image_ids: One name per grid.
        lists: Codes per arm and concept, best first, -1 after the end of a shorter list; as many codes in
            every arm (`same_length` cuts them). One arm is called "concept_tokens".
        fills: What takes their place.
        cap: Largest share of positions hidden with equal areas, above 0, at most 1.
        seed: For the order of cells that are on no list.
        maskings: Which of the two to measure.
        batch: Images per step; changes speed and memory, never results.

    Returns:
        Evidence with the metrics `probability_drop` and `log_odds_drop`. An image without any concept token
        hides nothing and counts as a drop of 0 with equal areas.

    Raises:
        ConfigError: Lists of different lengths, no list of ours, a cap out of range.
        TokenError: A listed code is not in the codebook, or listed twice.
    """
    check_lists(lists, len(adapter.codebook), concept)
    check_names("masking", list(maskings))
    if wrong := set(maskings) - {"by_id", "area_matched"}:
        raise ConfigError(f"masking {min(wrong)!r} is not for lists of tokens; choose 'by_id' or 'area_matched'")
    if not 0 < cap <= 1:
        raise ConfigError(f"cap={cap} must be above 0 and at most 1, the share of positions that may be hidden")
    ranks = {arm: ranks_of(codes, len(adapter.codebook)).to(tokens.device) for arm, codes in lists.items()}
    most = max(1, int(cap * tokens.shape[1] * tokens.shape[2]))

    def masks_of(rows: slice) -> dict[Mask, Tensor]:
        grids, owner = tokens[rows], concept[rows].to(tokens.device)
        listed = {arm: rank[owner[:, None, None], grids] for arm, rank in ranks.items()}  # (b, h, w)
        by_id = {arm: place < lists[arm].shape[1] for arm, place in listed.items()}
        budget = by_id[OURS].flatten(1).sum(1).clamp(max=most)
        last = random_order(grids, image_ids[rows], seed)
        matched = {arm: hide_listed(listed[arm], by_id[arm], last, budget) for arm in listed}
        found: dict[Masking, dict[str, Tensor]] = {"by_id": by_id, "area_matched": matched}
        return {Mask(arm, masking): hidden for masking in maskings for arm, hidden in found[masking].items()}

    return measure_masks(adapter, judges, tokens, concept, image_ids, masks_of, fills, level="concept", batch=batch)


def hide_listed(
    listed: Int[Tensor, "b h w"],
    is_listed: Bool[Tensor, "b h w"],
    last: Int[Tensor, "b h w"],
    budget: Int[Tensor, " b"],
) -> Bool[Tensor, "b h w"]:
    """True at exactly `budget` positions per image: by place on the list, reading order, then `last`."""
    key = torch.where(is_listed, listed, listed.amax().clamp(min=0) + 1 + last)
    return places(-key.double()) < budget[:, None, None]


def ranks_of(codes: Int[Tensor, "c m"], k: int) -> Int[Tensor, "c k"]:
    """Place of every code on each concept's list, 0 first; m for codes that are not on it."""
    count, length = codes.shape
    ranks = torch.full((count, k + 1), length, dtype=torch.int64)  # the last column swallows the -1 entries
    spots = torch.where(codes < 0, k, codes).cpu()
    ranks.scatter_(1, spots, torch.arange(length).expand(count, -1))
    return ranks[:, :k]


def frequency_lists(counts: Int[Tensor, "c k"], length: int) -> Int[Tensor, "c m"]:
    """The most frequent codes of each concept, ties by code; -1 where a concept uses fewer."""
    check_length(length, counts.shape[1])
    order = counts.argsort(dim=1, descending=True, stable=True)[:, :length]
    return torch.where(counts.gather(1, order) > 0, order, NO_CODE)


def random_lists(counts: Int[Tensor, "c k"], length: int, seed: int = 0) -> Int[Tensor, "c m"]:
    """Codes drawn without repeats from those that each concept uses at all; -1 where it uses fewer.

    Drawing from the whole codebook would hide next to nothing in a large one: too weak a control.
    """
    check_length(length, counts.shape[1])
    rows = []
    for number, used in enumerate(counts.cpu() > 0):
        codes = used.nonzero()[:, 0]
        drawn = codes[torch.randperm(len(codes), generator=generator_for(seed, number, "random codes"))][:length]
        rows.append(torch.cat([drawn, torch.full((length - len(drawn),), NO_CODE)]))
    return torch.stack(rows)


def same_length(lists: Mapping[str, Int[Tensor, "c _"]]) -> dict[str, Int[Tensor, "c _"]]:
    """The lists cut so that every arm lists the same number of codes of each concept."""
    width = min(codes.shape[1] for codes in lists.values())
    shortest = torch.stack([lengths_of(codes) for codes in lists.values()]).amin(0)
    keeps = torch.arange(width) < shortest[:, None]
    return {arm: torch.where(keeps, codes.cpu()[:, :width], NO_CODE) for arm, codes in lists.items()}


def lengths_of(codes: Int[Tensor, "c m"]) -> Int[Tensor, " c"]:
    """Number of codes listed for each concept."""
    return (codes >= 0).sum(1).cpu()


def check_length(length: int, codes: int) -> None:
    """Return if so many codes can be listed."""
    if not 1 <= length <= codes:
        raise ConfigError(f"a list of {length} codes cannot be made from a codebook of {codes}; choose 1 to {codes}")


def check_lists(lists: Mapping[str, Int[Tensor, "c _"]], codes: int, concept: Int[Tensor, " b"]) -> None:
    """Return if the lists hold different codes of the codebook, equally many in every arm."""
    if OURS not in lists:
        raise ConfigError(f"no list is called {OURS!r}, which sets the areas; known: {', '.join(sorted(lists))}")
    for arm, listed in lists.items():
        check_list(arm, listed, codes, concept)
        if not torch.equal(lengths_of(listed), lengths_of(lists[OURS])):
            raise ConfigError(
                f"arm {arm!r} lists {lengths_of(listed).tolist()} codes per concept but {OURS!r} "
                f"{lengths_of(lists[OURS]).tolist()}; cut them alike with same_length"
            )


def check_list(arm: str, listed: Int[Tensor, "c m"], codes: int, concept: Int[Tensor, " b"]) -> None:
    """Return if one arm's lists are sound."""
    if len(listed) <= concept.max():
        raise ConfigError(
            f"arm {arm!r} has lists of {len(listed)} concepts but concept {int(concept.max())} is asked for"
        )
    if listed.max() >= codes or listed.min() < NO_CODE:
        span = f"[{int(listed.min())}, {int(listed.max())}]"
        raise TokenError(f"codes of arm {arm!r} span {span} but this codebook holds [0, {codes - 1}]")
    ordered = listed.sort(1).values
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise TokenError(f"arm {arm!r} lists a code twice for one concept; list each once")
