"""Verdicts in words say what the numbers say, and warn where they cannot."""

import re

import pytest
import torch

from vqcortex.audit.rates import estimate_rates
from vqcortex.audit.verdict import (
    composition_notes,
    confounding_notes,
    correction_notes,
    cramers_v,
    judge_rates,
    misfit_notes,
    overall,
    thin_notes,
)
from vqcortex.errors import DataError

EVEN = torch.tensor([0.5, 0.5], dtype=torch.float64)
PERFECT = torch.tensor([[400, 0], [0, 400]])


def verdicts(first, second):
    return judge_rates(estimate_rates(PERFECT, torch.tensor([first, second])), ("a", "b"), EVEN, 0.05, 0.05)


@pytest.mark.parametrize(
    ("said", "word", "words"),
    [
        ((700, 300), "biased", "70% .* are 'a' where 50% would be even: that is more than 5 points too many"),
        ((2505, 2495), "even", "No bias beyond the tolerance"),
        ((56, 44), "undecided", "the interval reaches across the 5 points tolerated"),
    ],
)
def test_a_verdict_says_what_the_numbers_say(said, word, words):
    found, sentence = overall(verdicts(*said))
    assert found == word
    assert re.search(words, sentence)


def test_the_group_with_too_many_is_the_one_told_of():
    assert "'b'" in overall(verdicts(200, 800))[1]


def test_thin_statistics_are_told():
    notes = list(thin_notes(torch.tensor([[20, 1], [2, 80]]), 40, ("a", "b"), (0.99, 0.7)))
    assert len(notes) == 3
    assert "only 22 held-out images of 'a'" in notes[0]
    assert "only 40 neutral images" in notes[1]
    assert "less sure of neutral images (0.70) than of held-out ones (0.99)" in notes[2]
    assert not list(thin_notes(PERFECT, 1000, ("a", "b"), (0.99, 0.98)))


def test_a_correction_that_makes_a_difference_is_told_and_a_small_one_is_not():
    often, hardly = torch.tensor([[350, 50], [50, 350]]), torch.tensor([[396, 4], [4, 396]])
    said = torch.tensor([800, 200])
    (note,) = correction_notes(estimate_rates(often, said), ("a", "b"), 0.05)
    assert "calls 80% of the neutral images 'a'" in note
    assert "turn that into 90%" in note
    assert not list(correction_notes(estimate_rates(hardly, said), ("a", "b"), 0.05))
    assert not list(correction_notes(estimate_rates(often, said), ("a", "b"), 0.2))


def test_neutral_images_that_look_otherwise_are_told_where_errors_matter():
    known, odd = torch.tensor([[90, 5], [60, 45], [45, 60], [5, 90]]), torch.tensor([450, 50, 50, 450])
    found = estimate_rates(known, odd)
    (note,) = misfit_notes(found, ("a", "b"), 0.05)
    low, high = found.ends(0, 0.95, dispersion=found.misfit()[0])
    assert "no mixture of its answers to held-out ones (p = " in note
    assert f"{low:.0%} to {high:.0%} are 'a'" in note
    assert not list(misfit_notes(found, ("a", "b"), 0.6))
    assert not list(misfit_notes(estimate_rates(known, torch.tensor([240, 260, 260, 240])), ("a", "b"), 0.05))


def test_a_perfect_confounder_is_refused_by_name():
    with pytest.raises(DataError, match=r"perfectly confounded .*'with': Coat; 'without': Bag, Dress"):
        list(confounding_notes({"with": ["Coat"] * 3, "without": ["Bag", "Dress", "Bag"]}))


def test_a_strong_confounder_is_told_and_a_balanced_one_is_not():
    assert "Cramer's V 0.80" in next(confounding_notes({"a": ["x"] * 9 + ["y"], "b": ["x"] + ["y"] * 9}))
    assert not list(confounding_notes({"a": ["x", "y"], "b": ["y", "x"]}))
    assert not list(confounding_notes({"a": ["x", "x"], "b": ["x"]}))


def test_cramers_v_does_not_depend_on_the_number_of_images():
    table = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    assert cramers_v(table) == pytest.approx(cramers_v(100 * table))


def test_groups_of_more_concepts_than_the_neutral_images_are_told():
    assert "also hold Coat, which" in next(composition_notes({"a": ["Coat", "Dress"], "b": ["Dress"]}, ["Dress"]))
    assert not list(composition_notes({"a": ["Dress"], "b": ["Dress"]}, ["Dress"]))
    assert not list(composition_notes({"a": ["marked"], "b": ["plain"]}, ["Dress"]))
