from __future__ import annotations

import pytest
import torch

from vqcortex.errors import ConfigError
from vqcortex.evaluation.choose import fills_for
from vqcortex.evaluation.fills import Black
from vqcortex.evaluation.oracle import fair_pairs, greedy_on_judge, oracle_arm
from vqcortex.judges.toy import toy_judges


def test_the_oracle_removes_what_the_judge_counts(toy, share, images):
    tokens, concept, ids = images
    asked = greedy_on_judge(toy, share, tokens, concept, ids, Black(), 3)
    of_concept = (tokens == concept[:, None, None]).flatten(1)
    for score, mine in zip(asked.flatten(1), of_concept, strict=True):
        want = min(3, int(mine.sum()))
        assert mine[score.argsort(descending=True)[:want]].all()
    assert asked.flatten(1).sort(1).values.tolist() == [list(range(1, 13))] * 6


def test_equal_positions_go_in_reading_order(toy, share, images):
    tokens, concept, ids = images
    red = torch.full_like(tokens, 4)
    score = greedy_on_judge(toy, share, red, torch.full_like(concept, 4), ids, Black(), 2)
    assert score.flatten(1).tolist() == [list(range(12, 0, -1))] * 6


@pytest.mark.parametrize("fill", ["black", "mean_code", "resampled_codes"])
def test_the_size_of_a_step_and_company_change_no_order(toy, images, fill):
    tokens, concept, ids = images
    (filling,), judge = fills_for([fill], frequency=torch.ones(8)), toy_judges()[0]
    whole = greedy_on_judge(toy, judge, tokens, concept, ids, filling, 3)
    assert torch.equal(greedy_on_judge(toy, judge, tokens, concept, ids, filling, 3, batch=5), whole)
    for i in (3, 0):
        assert torch.equal(greedy_on_judge(toy, judge, tokens[[i]], concept[[i]], [ids[i]], filling, 3)[0], whole[i])


def test_fewer_candidates_ask_less_and_all_of_them_change_nothing(toy, share, images):
    asked = []

    class Counting:
        name = "counting"

        def __call__(self, pixels):
            asked.append(len(pixels))
            return share(pixels)

    def search(candidates):
        asked.clear()
        return greedy_on_judge(toy, Counting(), *images, Black(), 4, candidates=candidates), sum(asked)

    exact, pictures = search(None)
    same, as_many = search(12)
    few, fewer = search(3)
    assert torch.equal(same, exact)
    assert (pictures, as_many, fewer) == (6 * (12 + 11 + 10 + 9), 6 * (12 + 11 + 10 + 9), 6 * (12 + 3 + 3 + 3))
    assert torch.equal(few == 12, exact == 12)  # the first is chosen among all
    assert few.flatten(1).sort(1).values.tolist() == [list(range(1, 13))] * 6


def test_at_least_one_candidate_is_tried(toy, share, images):
    with pytest.raises(ConfigError, match="candidates=0 must be at least 1, or None"):
        greedy_on_judge(toy, share, *images, Black(), 1, candidates=0)


def test_a_judge_may_not_score_the_oracle_that_asked_it():
    arms = ["tis", oracle_arm("cnn"), oracle_arm("patch")]
    assert fair_pairs(arms, ["cnn", "patch"]).tolist() == [[True, True], [False, True], [True, False]]


def test_an_oracle_with_one_judge_is_refused():
    with pytest.raises(ConfigError, match="'oracle:cnn' asked the only judge, cnn, so none is left to score it"):
        fair_pairs(["tis", "oracle:cnn"], ["cnn"])


@pytest.mark.parametrize("removals", [0, 13])
def test_removals_fit_the_grid(toy, share, images, removals):
    with pytest.raises(ConfigError, match=f"removals={removals} must be 1 to 12"):
        greedy_on_judge(toy, share, *images, Black(), removals)


def test_a_concept_the_judge_does_not_know_is_refused(toy, share, images):
    tokens, concept, ids = images
    with pytest.raises(ConfigError, match=r"concepts span \[8, 8\] but this judge knows 0 to 7"):
        greedy_on_judge(toy, share, tokens, torch.full_like(concept, 8), ids, Black(), 1)
