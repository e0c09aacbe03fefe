from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.baselines import (
    DrawnCodes,
    baseline_grid,
    chosen_baseline,
    completeness_gap,
    draws_of,
    expected,
)
from vqcortex.errors import ConfigError, ShapeError

CODEBOOK = torch.tensor([[0.0, 1.0], [2.0, 3.0], [5.0, 5.0]])
FREQUENCY = torch.tensor([1.0, 0.0, 3.0])
EMBEDDED = torch.zeros(2, 2, 20, 20)
DRAWN = DrawnCodes(codebook=CODEBOOK, frequency=FREQUENCY, draws=3)


def test_codes_are_drawn_as_often_as_they_are_used():
    tokens = DRAWN.tokens(0, (200, 200), ["a"])
    share = tokens.flatten().bincount(minlength=3) / tokens.numel()
    assert share[1] == 0
    assert share.tolist() == pytest.approx([0.25, 0, 0.75], abs=0.02)


def test_a_draw_belongs_to_seed_image_and_number():
    both = baseline_grid(DRAWN, 1, EMBEDDED, ["a", "b"])
    assert torch.equal(baseline_grid(DRAWN, 1, EMBEDDED[:1], ["b"])[0], both[1])
    others = [
        baseline_grid(DRAWN, 1, EMBEDDED[:1], ["c"]),
        baseline_grid(DRAWN, 2, EMBEDDED[:1], ["b"]),
        baseline_grid(DrawnCodes(codebook=CODEBOOK, frequency=FREQUENCY, seed=1), 1, EMBEDDED[:1], ["b"]),
    ]
    assert not any(torch.equal(one[0], both[1]) for one in others)


def test_drawn_grids_hold_codes_of_the_codebook():
    grid = baseline_grid(DRAWN, 0, EMBEDDED, ["a", "b"]).permute(0, 2, 3, 1).reshape(-1, 2)
    assert {tuple(code) for code in grid.tolist()} == {(0.0, 1.0), (5.0, 5.0)}


def test_one_code_and_none_fill_the_grid():
    assert baseline_grid(CODEBOOK[1], 0, EMBEDDED, ["a", "b"])[1, :, 3, 4].tolist() == [2.0, 3.0]
    assert not baseline_grid(None, 0, EMBEDDED, ["a", "b"]).any()
    assert [draws_of(one) for one in (None, CODEBOOK[1], DRAWN)] == [1, 1, 3]


def test_the_expected_code_of_drawn_codes_is_their_mean_by_use():
    assert expected(DRAWN).tolist() == [3.75, 4.0]
    assert expected(CODEBOOK[1]) is not None
    assert expected(None) is None


def test_the_gap_is_what_is_missing_from_the_difference_of_logits():
    class Sum(nn.Module):
        def forward(self, embedded):
            return embedded.sum((1, 2, 3))[:, None] * torch.tensor([1.0, 2.0])

    embedded, concept = torch.ones(2, 2, 2, 2), torch.tensor([0, 1])
    gap = completeness_gap(torch.ones(2, 2, 2), Sum(), embedded, concept, ["a", "b"], baseline=None)
    assert gap.tolist() == [-4.0, -12.0]
    fallen = Sum()(baseline_grid(DRAWN, 0, embedded, ["a", "b"])).gather(1, concept[:, None])[:, 0]
    other = Sum()(baseline_grid(DRAWN, 2, embedded, ["a", "b"])).gather(1, concept[:, None])[:, 0]
    given = {"baseline": DRAWN, "draws": [0, 2, 0]}
    gap = completeness_gap(torch.zeros(2, 2, 2), Sum(), embedded, concept, ["a", "b"], **given)
    torch.testing.assert_close(gap, (2 * fallen + other) / 3 - torch.tensor([8.0, 16.0]))


def test_baselines_by_name():
    assert chosen_baseline("mean", CODEBOOK, None, 8, 0).tolist() == CODEBOOK.mean(0).tolist()
    assert chosen_baseline("mean", CODEBOOK, FREQUENCY, 8, 0).tolist() == [3.75, 4.0]
    assert chosen_baseline("frequent", CODEBOOK, FREQUENCY, 8, 0).tolist() == [5.0, 5.0]
    assert chosen_baseline("resampled", CODEBOOK, FREQUENCY, 4, 2) == DrawnCodes(
        codebook=CODEBOOK, frequency=FREQUENCY, draws=4, seed=2
    )
    assert chosen_baseline("zero", CODEBOOK, FREQUENCY, 8, 0) is None
    assert chosen_baseline(DRAWN, None, None, 8, 0) is DRAWN


@pytest.mark.parametrize("wanted", ["frequent", "resampled"])
def test_codes_by_use_need_codebook_and_frequency(wanted):
    with pytest.raises(
        ConfigError,
        match=f"2 settings wrong: baseline='{wanted}' needs a codebook.*pass frequency=, one count per code",
    ):
        chosen_baseline(wanted, None, None, 8, 0)


def test_a_frequency_of_another_codebook_is_an_error():
    with pytest.raises(ShapeError, match=r"frequency has shape \(2,\) but \(3,\) is needed"):
        chosen_baseline("resampled", CODEBOOK, FREQUENCY[:2], 8, 0)


@pytest.mark.parametrize("wrong", [[0.0, 0.0, 0.0], [1.0, -1.0, 3.0], [1.0, torch.nan, 0.0]])
def test_a_frequency_that_is_none_is_an_error(wrong):
    with pytest.raises(ConfigError, match="frequency must be finite, not negative, and above 0 for some code"):
        DrawnCodes(codebook=CODEBOOK, frequency=torch.tensor(wrong))


def test_no_draws_are_an_error():
    with pytest.raises(ConfigError, match="draws=0 of the baseline must be at least 1"):
        chosen_baseline("resampled", CODEBOOK, FREQUENCY, 0, 0)


def test_codes_of_another_width_are_an_error():
    with pytest.raises(ShapeError, match=r"baseline has shape \(2,\) but codes have 3 channels"):
        baseline_grid(DRAWN, 0, torch.zeros(1, 3, 2, 2), ["a"])
