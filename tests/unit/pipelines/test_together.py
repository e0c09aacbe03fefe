from __future__ import annotations

import pytest
import torch

from vqcortex.evaluation.intervals import Interval
from vqcortex.pipelines.together import (
    LEAST,
    GroupValues,
    PairValues,
    Strictness,
    corrected,
    group_table,
    p_values,
    pair_table,
    pair_verdict,
)
from vqcortex.significance import sign_flip_p

IMAGES = 30


def pair(neither, first, second, both, codes=(0, 1), images=IMAGES, form="insertion", spread=0.1, extractors=2):
    source = torch.Generator().manual_seed(sum(codes))
    means = torch.tensor([neither, first, second, both], dtype=torch.float64)
    values = means + spread * torch.randn(extractors, images, 4, generator=source, dtype=torch.float64)
    return PairValues(concept=0, codes=codes, form=form, values=values, interaction=torch.zeros(images).double())


def verdicts(*pairs):
    return [row["verdict"] for row in pair_table(pairs, ["cat"], Strictness()).rows]


def test_each_rule_has_its_verdict():
    assert verdicts(
        pair(0, 0, 0, 4, (0, 1)),  # both needed
        pair(0, 4, 4, 4, (0, 2)),  # either does
        pair(0, 4, 4, 0, (0, 3)),  # exactly one
        pair(0, 1, 2, 3, (1, 2)),  # adds up
        pair(0, 0, 0, 9, (1, 3), images=LEAST - 1),
        pair(0, 0, 0, 9, (2, 3), images=0),
    ) == ["synergy", "redundancy", "exclusive", "none", "too few images", "too few images"]


def test_a_row_holds_the_study_s_own_extractor_s_numbers():
    one = pair(1, 2, 4, 9, spread=0)
    one.values[1] *= 2
    (row,) = pair_table([one], ["cat"], Strictness()).rows
    assert (row["effect_a"], row["effect_b"], row["joint"], row["synergy"]) == (1, 3, 8, 4)
    assert (row["low"], row["high"], row["images"], row["extractors"]) == (4, 4, IMAGES, 2)
    assert row["p"] == row["q"] == 1e-4


def test_a_pair_counts_only_if_all_extractors_agree():
    one = pair(0, 0, 0, 4)
    assert verdicts(one) == ["synergy"]
    one.values[1] = one.values[1][:, [0, 3, 3, 0]]  # the second says the opposite
    (row,) = pair_table([one], ["cat"], Strictness()).rows
    assert (row["p"], row["verdict"]) == (1.0, "none")
    one.values[1] = torch.randn(IMAGES, 4, generator=torch.Generator().manual_seed(1)).double()  # or nothing
    assert verdicts(one) == ["none"]


def test_p_is_the_largest_of_the_extractors_own():
    source = torch.Generator().manual_seed(0)
    groups = [torch.randn(2, n, generator=source).double() + 0.4 for n in (12, 7, 12, 3)]
    groups[0][1] = groups[0][1].abs()
    found = p_values(groups, seed=5)
    assert found[3] is None
    for one, p in zip(groups[:3], found, strict=False):
        each = [float(sign_flip_p(row[None], seed=5)) for row in one]
        assert p == (max(each) if len(set(one.mean(1).sign().tolist())) == 1 else 1.0)


def test_false_discoveries_are_controlled_among_what_was_tested():
    assert corrected([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.04, 0.04])
    assert corrected([None, None]) == [None, None]


def test_only_what_speaks_alone_and_not_together_is_exclusive():
    def ends(*numbers):
        return [Interval(value=one, low=one - 0.5, high=one + 0.5, images=9) for one in numbers]

    assert pair_verdict(0.01, ends(-8, 4, 4, 0, -4, -4), 0.05) == "exclusive"
    assert pair_verdict(0.01, ends(-8, 4, 0.2, -4, -8, -4), 0.05) == "redundancy"
    assert pair_verdict(0.01, ends(-4, 4, 4, 4, 0, 0), 0.05) == "redundancy"
    assert pair_verdict(0.06, ends(-8, 4, 4, 0, -4, -4), 0.05) == "none"
    assert pair_verdict(None, [], 0.05) == "too few images"


def test_of_worlds_without_synergy_at_most_five_in_a_hundred_show_one():
    wrong, worlds = 0, 200
    for seed in range(worlds):
        source = torch.Generator().manual_seed(seed)
        pairs = [
            PairValues(
                concept=0, codes=(0, other), form="removal", values=torch.randn(1, 12, 4, generator=source).double(),
                interaction=torch.zeros(12),
            )
            for other in range(1, 9)
        ]  # fmt: skip
        q = corrected(p_values([one.values @ torch.tensor([1.0, -1, -1, 1]).double() for one in pairs], seed))
        wrong += any(one is not None and one <= 0.05 for one in q)
    # In a world with nothing to find, any discovery is false; 20 of 200 is four standard errors above 5 %.
    assert wrong <= 20


def test_half_true_pairs_are_found_and_few_false_ones_with_them():
    found = false = 0
    for seed in range(30):
        source = torch.Generator().manual_seed(seed)
        noise = torch.randn(10, 1, 25, generator=source).double()
        q = corrected(p_values([one + (2.0 if place < 5 else 0.0) for place, one in enumerate(noise)], seed))
        hits = [one is not None and one <= 0.05 for one in q]
        found, false = found + sum(hits[:5]), false + sum(hits[5:])
    assert found == 150
    assert false <= 0.1 * found


def group(ours, control, images=IMAGES):
    values = torch.tensor([*ours, *control]).double() + 0.1 * torch.randn(
        2, images, 4, generator=torch.Generator().manual_seed(0)
    )
    return GroupValues(
        concept=0, codes=(3, 5), values=values, shapley=(1.0, None), cells=4.0, control_cells=3.0
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "control", "verdict"),
    [((6, 2), (1, 1), "synergy"), ((2, 6), (1, 1), "redundancy"), ((6, 2), (5, 1), "none"), ((6, 6), (1, 1), "none")],
)
def test_a_group_is_compared_with_random_codes_of_the_same_images(ours, control, verdict):
    (row,) = group_table([group(ours, control)], ["cat"], Strictness()).rows
    assert row["verdict"] == verdict
    assert row["joint"] == pytest.approx(ours[0], abs=0.1)
    assert row["excess"] == pytest.approx(ours[0] - ours[1], abs=0.1)
    assert row["control_excess"] == pytest.approx(control[0] - control[1], abs=0.1)
    assert row["joint_low"] < row["joint"] < row["joint_high"]
    assert (row["p_joint"] < 0.05) is True
    assert (row["codes"], row["shapley"], row["images"]) == ([3, 5], [1.0, None], IMAGES)


def test_a_group_without_images_says_so():
    (row,) = group_table([group((6, 2), (1, 1), images=0)], ["cat"], Strictness()).rows
    assert (row["images"], row["joint"], row["p"], row["verdict"]) == (0, None, None, "too few images")


def test_tables_without_rows_are_tables():
    assert pair_table([], [], Strictness()).rows == []
    assert group_table([], [], Strictness()).rows == []
