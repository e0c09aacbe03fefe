"""Codes that carry a group are found, others are not, and lists are held against what even rates would give."""

import pytest
import torch

from vqcortex.audit.carriers import carriers_table, count_lists, find_carriers, without_shared
from vqcortex.audit.effect import live_codes
from vqcortex.errors import ConfigError, DataError

EVEN = torch.tensor([0.5, 0.5], dtype=torch.float64)
MARK = 19


def grids(images, marked, seed):
    """Random codes 0..14, and the mark in a share of the images."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(15, (images, 4, 4), generator=rng)
    tokens[torch.rand(images, generator=rng) < marked, 0, 0] = MARK
    return tokens


GROUPS = {"with": grids(300, 1.0, 1), "without": grids(300, 0.0, 2)}


def found(rate, seed=3):
    neutral = grids(400, rate, seed)
    return find_carriers(GROUPS, neutral, live_codes(*GROUPS.values(), neutral), EVEN)


def test_the_planted_code_is_the_one_found_and_its_excess_is_seen():
    biased = found(0.9)
    table = carriers_table(biased, {"with": [MARK, 1], "without": [1]}, 0.05)
    assert [(row["group"], row["code"]) for row in table.rows] == [("with", MARK)]
    row = table.rows[0]
    assert row["delta"] == 1
    assert row["is_concept_token"]
    assert not row["is_shared"]
    assert row["expected"] == 0.5
    assert row["excess_low"] > 0.3
    assert row["excess_q"] < 1e-6


def test_even_rates_show_no_excess_of_any_code():
    assert (found(0.5).excess_q > 0.05).all()


def test_false_discoveries_over_the_codebook_stay_few():
    alarms = sum(bool((found(0.5, seed=100 + number).excess_q <= 0.05).any()) for number in range(40))
    assert alarms <= 6


def test_shares_of_the_reference_are_what_is_expected():
    uneven = torch.tensor([0.2, 0.8], dtype=torch.float64)
    one = find_carriers(GROUPS, grids(50, 0.2, 5), torch.tensor([MARK]), uneven)
    assert one.expected.tolist() == pytest.approx([0.2])


def test_lists_are_held_against_even_rates_and_not_against_zero():
    # Code 1 is in most images of both groups, the mark in half of the neutral ones: the lists differ, the rates do not.
    counts = count_lists(([MARK], [1, 2, 3]), list(GROUPS.values()), grids(400, 0.5, 7), EVEN)
    assert counts.expected < -0.5
    assert counts.one.sum() == (grids(400, 0.5, 7) == MARK).sum()
    assert counts.other.max() > 1


def test_shared_codes_leave_every_list():
    assert without_shared({"a": [4, 2], "b": [2, 7], "c": [7]}) == ({"a": [4], "b": [], "c": []}, [2, 7])


def test_too_little_to_compare_is_refused():
    with pytest.raises(DataError, match=r"group 'neutral' has 1 image"):
        find_carriers(GROUPS, grids(1, 0.5, 1), torch.tensor([1]), EVEN)
    with pytest.raises(ConfigError, match=r"1 attribute group\(s\) given"):
        find_carriers({"with": GROUPS["with"]}, grids(5, 0.5, 1), torch.tensor([1]), EVEN[:1])
