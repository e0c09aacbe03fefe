"""The verdict, figure by figure."""

from __future__ import annotations

import pytest
import torch

from vqcortex.errors import DataError
from vqcortex.evaluation.rank_agreement import RankAgreement
from vqcortex.evaluation.sanity.protocol import Finding
from vqcortex.evaluation.trust import Answers, Bounds, read_trust, reasons_for, trust_tables, weighed

NAMES = ("cat", "dog", "owl", "fox")
TRUTH = torch.arange(400) % 4


def mostly_right(share: float, shown: int | None = None) -> torch.Tensor:
    """Answers that are right on a share of the images (of one concept), and name the next concept otherwise."""
    concerned = torch.ones(400, dtype=torch.bool) if shown is None else shown == TRUTH
    wrong = concerned & (torch.arange(400) // 4 >= 100 * share)
    return torch.where(wrong, (TRUTH + 1) % 4, TRUTH)


def finding(verdict="pass", value=0.1, reason="") -> Finding:
    return Finding(
        check="randomised_weights", verdict=verdict, measures="mean rank correlation", value=value, low=None,
        high=None, limit=0.2, images=32, reason=reason,
    )  # fmt: skip


def good(**changed) -> Answers:
    given = {"concept": TRUTH, "named": TRUTH, "judges": {"cnn": TRUTH}, "ece": 0.02, **changed}
    return Answers(**given)


def level_of(answers, sanity):
    return weighed(reasons_for(answers, sanity, NAMES), NAMES).level


def agreement(value: float, images: int = 40, flat: int = 0) -> dict:
    is_flat = torch.arange(images) < flat
    return {"one and two": RankAgreement(torch.full((images,), value, dtype=torch.float64), is_flat)}


@pytest.mark.parametrize(
    ("answers", "sanity", "level"),
    [
        (good(), (finding(),), "high"),
        (good(), None, "high"),
        (good(judges={}), (finding(),), "moderate"),  # nobody independent agrees
        (good(judges={}, extractors={"se_resnet": TRUTH}), (finding(),), "high"),
        (good(judges={"cnn": mostly_right(0.69)}), (finding(),), "moderate"),
        (good(judges={"cnn": mostly_right(0.43)}), (finding(),), "low"),
        (good(judges={"cnn": TRUTH, "patch": mostly_right(0.3)}), (finding(),), "low"),
        (good(extractors={"se_resnet": mostly_right(0.43)}), (finding(),), "low"),
        (good(named=mostly_right(0.71), judges={"cnn": mostly_right(0.71)}), (finding(),), "high"),
        (good(named=mostly_right(0.69), judges={"cnn": mostly_right(0.69)}), (finding(),), "moderate"),
        (good(named=mostly_right(0.43), judges={"cnn": mostly_right(0.43)}), (finding(),), "low"),
        (good(ece=0.1), (finding(),), "high"),
        (good(ece=0.11), (finding(),), "moderate"),
        (good(ece=0.26), (finding(),), "low"),
        (good(ece=None), (finding(),), "high"),
        (good(maps=agreement(0.2)), (finding(),), "high"),
        (good(maps=agreement(0.19)), (finding(),), "moderate"),
        (good(maps=agreement(0.09)), (finding(),), "low"),
        (good(maps=agreement(0.9, flat=30)), (finding(),), "moderate"),
        (good(), (finding("skipped", None, "too few"),), "high"),
        (good(), (finding("fail", 0.5), finding()), "low"),
    ],
)
def test_one_bad_figure_is_low_one_doubtful_figure_moderate(answers, sanity, level):
    assert level_of(answers, sanity) == level


def test_a_concept_on_which_the_extractor_fails_is_stamped_although_the_whole_is_fine():
    named = mostly_right(0.2, shown=2)
    reasons = reasons_for(good(named=named, judges={"cnn": named}), (finding(),), NAMES)
    trust = weighed(reasons, NAMES)
    assert trust.level == "high"
    assert trust.of("owl").level == "low"
    assert trust.of("owl").reasons[0] == (
        "bad: the extractor finds owl on 20.0 % of 100 test images (chance 25.0 %; fine from 70.0 %, bad below 43.8 %)"
    )
    assert trust.of("cat").level == "high"
    assert trust.of("fox").level == "moderate"  # every second image called a fox is an owl
    assert any("right to name fox on 55.6 % of 180" in one for one in trust.of("fox").reasons)


def test_one_of_several_that_disagrees_only_raises_doubt():
    apart = mostly_right(0.3)
    two, three = {"a": apart, "b": TRUTH}, {"a": apart, "b": TRUTH, "c": TRUTH}
    assert level_of(good(extractors=two), None) == "low"
    assert level_of(good(extractors=three), None) == "moderate"
    found = [one for one in reasons_for(good(extractors=three), None, NAMES) if one.against == "a"]
    assert found[0].standing == "doubtful"
    assert found[0].text.endswith("the others are better")


def test_what_holds_for_all_concepts_lowers_each():
    trust = weighed(reasons_for(good(), (finding("fail", 0.5, "0.50 is above 0.2"),), NAMES), NAMES)
    assert {trust.of(name).level for name in NAMES} == {"low"}
    assert trust.reasons[0] == (
        "bad: sanity check randomised_weights: mean rank correlation 0.5, at most 0.2 allowed; 0.50 is above 0.2"
    )


def test_few_images_leave_it_in_doubt():
    few = torch.arange(8) % 4
    found = reasons_for(Answers(concept=few, named=few, judges={"cnn": few}, ece=0.0), (finding(),), NAMES)
    assert weighed(found, NAMES).of("cat").level == "moderate"
    text = next(one.text for one in found if one.concept == "cat")
    assert text.endswith("bad below 43.8 %), but so few images cannot rule out a bad one")


def test_a_concept_without_test_images_is_unknown():
    only = torch.zeros(40, dtype=torch.long)
    trust = weighed(reasons_for(Answers(concept=only, named=only), (finding(),), NAMES), NAMES)
    assert trust.of("owl").level == "unknown"
    assert trust.of("owl").reasons[0] == "not known: no test image shows owl"
    with pytest.raises(DataError, match="0 test images say nothing of trust"):
        reasons_for(Answers(concept=only[:0], named=only[:0]), None, NAMES)


def test_what_is_not_known_is_said():
    reasons = [
        one.text for one in reasons_for(good(judges={}, why_no_judges="it cannot decode", ece=None), None, NAMES)
    ]
    assert "whether judges agree with the extractor: it cannot decode" in reasons
    assert "whether extractors agree with the extractor: the study has no other extractor" in reasons
    assert "the extractor's calibration was not measured" in reasons
    assert "the sanity checks were not done" in reasons
    assert weighed([], NAMES).level == "unknown"


def test_maps_count_for_a_concept_that_has_enough_of_them():
    rho = torch.tensor([0.0] * 8 + [0.9] * 32, dtype=torch.float64)
    mapped = torch.tensor([1] * 8 + [0] * 29 + [2] * 3)
    maps = {"one and two": RankAgreement(rho, torch.zeros(40, dtype=torch.bool))}
    found = reasons_for(good(maps=maps, mapped=mapped), (finding(),), NAMES)
    assert {one.concept: one.standing for one in found if one.subject == "maps"} == {
        "all": "fine", "cat": "fine", "dog": "bad",
    }  # fmt: skip


def test_bounds_can_be_chosen():
    strict = reasons_for(good(ece=0.02), (finding(),), NAMES, Bounds(fine_ece=0.01, bad_ece=0.015))
    assert weighed(strict, NAMES).level == "low"


def test_tables_hold_the_verdicts_and_give_them_back():
    reasons = reasons_for(good(named=mostly_right(0.2, shown=2)), (finding(),), NAMES)
    trust = weighed(reasons, NAMES)
    verdicts, figures = trust_tables(trust, reasons)
    assert read_trust(verdicts) == trust
    assert [row["concept"] for row in verdicts.rows] == ["all", *NAMES]
    assert figures.where(concept="owl", subject="accuracy")[0]["value"] == 0.2
