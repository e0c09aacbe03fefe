from __future__ import annotations

import pytest
import torch

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, TokenError
from vqcortex.evaluation.concept_level import (
    frequency_lists,
    lengths_of,
    measure_concept_level,
    random_lists,
    ranks_of,
    same_length,
)
from vqcortex.evaluation.fills import Black

COUNTS = torch.tensor([[5, 0, 3, 3, 0, 0, 0, 1], [0, 9, 0, 0, 0, 0, 0, 0]])


def lists_of(**rows):
    return {arm: torch.tensor(codes) for arm, codes in rows.items()}


def hidden_by_hand(share, lists, tokens, **settings):
    toy = ToyAdapter(grid=tuple(tokens.shape[1:]))
    concept = torch.zeros(len(tokens), dtype=torch.int64)
    ids = [str(i) for i in range(len(tokens))]
    return measure_concept_level(toy, [share], tokens, concept, ids, lists, [Black()], **settings)


def test_by_id_hides_all_cells_of_the_list_and_area_matched_the_same_number(share):
    tokens = torch.tensor([[[4, 4, 4, 1, 2, 2]]])
    lists = lists_of(concept_tokens=[[1]], frequency=[[4]])
    found = hidden_by_hand(share, lists, tokens)
    where = [(one.masking, one.arm) for one in found.conditions]
    arms = ("concept_tokens", "frequency")
    assert where == [(masking, arm) for masking in ("by_id", "area_matched") for arm in arms]
    assert found.touched[:, 0].tolist() == [1, 3, 1, 1]
    assert found.level == "concept"


def test_equal_areas_are_capped(share):
    tokens = torch.full((1, 2, 5), 4)
    lists = lists_of(concept_tokens=[[4]], frequency=[[1]])
    found = hidden_by_hand(share, lists, tokens, cap=0.3)
    assert found.touched[:, 0].tolist() == [10, 0, 3, 3]


def test_an_image_without_concept_tokens_hides_nothing_with_equal_areas(share):
    lists = lists_of(concept_tokens=[[6]], frequency=[[4]])
    found = hidden_by_hand(share, lists, torch.full((1, 2, 5), 4))
    assert found.touched[:, 0].tolist() == [0, 10, 0, 0]
    assert found.metrics["probability_drop"][2:].abs().sum() == 0


def test_one_masking_can_be_asked_for(share):
    lists = lists_of(concept_tokens=[[6]])
    found = hidden_by_hand(share, lists, torch.full((1, 2, 5), 4), maskings=("by_id",))
    assert {one.masking for one in found.conditions} == {"by_id"}


def test_the_tokens_of_a_concept_beat_those_of_another(toy, share, images):
    tokens, concept, ids = images
    own = torch.arange(8)[:, None]  # the colour itself
    lists = {"concept_tokens": own, "other": (own + 1) % 8}
    found = measure_concept_level(toy, [share], tokens, concept, ids, lists, [Black()])
    ours, other = found.metrics["probability_drop"][[2, 3]].mean((1, 2)).tolist()
    assert found.conditions[2].masking == "area_matched"
    assert ours > other


def test_ranks_come_from_the_list():
    assert ranks_of(torch.tensor([[3, 0, -1]]), 5).tolist() == [[1, 3, 3, 0, 3]]


def test_the_frequency_list_names_used_codes_only_and_ties_go_by_code():
    assert frequency_lists(COUNTS, 5).tolist() == [[0, 2, 3, 7, -1], [1, -1, -1, -1, -1]]


def test_random_lists_are_drawn_from_used_codes_without_repeats():
    drawn = random_lists(COUNTS, 3, seed=1)
    assert drawn.shape == (2, 3)
    assert set(drawn[0].tolist()) <= {0, 2, 3, 7}
    assert len(set(drawn[0].tolist())) == 3
    assert drawn[1].tolist() == [1, -1, -1]
    assert torch.equal(drawn, random_lists(COUNTS, 3, seed=1))
    assert any(not torch.equal(drawn, random_lists(COUNTS, 3, seed=seed)) for seed in range(2, 8))


def test_a_list_of_no_or_too_many_codes_is_refused():
    with pytest.raises(ConfigError, match="a list of 9 codes cannot be made from a codebook of 8"):
        frequency_lists(COUNTS, 9)
    with pytest.raises(ConfigError, match="a list of 0 codes"):
        random_lists(COUNTS, 0)


def test_lists_are_cut_to_the_shortest():
    cut = same_length(lists_of(a=[[1, 2, 3], [4, 5, -1]], b=[[7, 6], [5, -1]]))
    assert cut["a"].tolist() == [[1, 2], [4, -1]]
    assert cut["b"].tolist() == [[7, 6], [5, -1]]
    assert lengths_of(cut["a"]).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("lists", "settings", "error", "words"),
    [
        ({"frequency": [[1]]}, {}, ConfigError, "no list is called 'concept_tokens'"),
        ({"concept_tokens": [[1]], "f": [[1, 2]]}, {}, ConfigError, "cut them alike with same_length"),
        ({"concept_tokens": [[8]]}, {}, TokenError, r"codes of arm 'concept_tokens' span \[8, 8\]"),
        ({"concept_tokens": [[1, 1]]}, {}, TokenError, "lists a code twice"),
        ({"concept_tokens": [[1]]}, {"cap": 0.0}, ConfigError, "cap=0.0 must be above 0 and at most 1"),
        ({"concept_tokens": [[1]]}, {"maskings": ()}, ConfigError, "there is no masking to measure"),
    ],
)
def test_lists_that_make_no_sense_are_named(share, lists, settings, error, words):
    with pytest.raises(error, match=words):
        hidden_by_hand(share, lists_of(**lists), torch.zeros(1, 1, 6, dtype=torch.int64), **settings)


def test_a_concept_without_a_list_is_refused(toy, share, images):
    tokens, concept, ids = images
    with pytest.raises(ConfigError, match="has lists of 2 concepts but concept 7 is asked for"):
        measure_concept_level(toy, [share], tokens, concept, ids, lists_of(concept_tokens=[[1], [2]]), [Black()])


def test_masking_by_position_belongs_to_another_level(share):
    with pytest.raises(ConfigError, match="masking 'positions' is not for lists of tokens"):
        hidden_by_hand(share, lists_of(concept_tokens=[[1]]), torch.zeros(1, 1, 6).long(), maskings=("positions",))
