from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.errors import ConfigError, ModelError, ShapeError, TokenError
from vqcortex.search.problem import (
    check_concept,
    check_finite,
    check_tokens,
    embed,
    live_codes,
    logits_of,
    nearest,
    pose,
    slope_of,
)

CODEBOOK = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
TOKENS = torch.tensor([[[0, 1, 2]], [[3, 2, 1]]])
FREE = torch.tensor([[True, False, True]])
TARGET = torch.tensor([1, 0])


def test_rows_are_images_times_restarts_with_restarts_side_by_side():
    problem = pose(CODEBOOK, TOKENS, FREE, TARGET, ["a", "b"], restarts=2)
    assert problem.keys == (("a", 0), ("a", 1), ("b", 0), ("b", 1))
    assert problem.target.tolist() == [1, 1, 0, 0]
    assert problem.free_tokens().tolist() == [[0, 2], [0, 2], [3, 1], [3, 1]]
    assert problem.shape == (4, 2, 4)


def test_parts_cover_the_rows_once_in_order():
    problem = pose(CODEBOOK, TOKENS, FREE, TARGET, ["a", "b"], restarts=2)
    parts = list(problem.parts(3))
    assert [len(part.keys) for part in parts] == [3, 1]
    assert torch.equal(torch.cat([part.grids for part in parts]), problem.grids)
    assert sum((part.keys for part in parts), ()) == problem.keys


def test_filling_writes_ids_of_live_codes_at_free_positions():
    alive = torch.tensor([False, True, False, True])
    problem = pose(CODEBOOK, TOKENS, FREE, TARGET, ["a", "b"], alive=alive)
    assert problem.codes.tolist() == [[1, 0], [5, 5]]
    assert problem.filled(torch.tensor([[0, 1], [1, 1]])).tolist() == [[[1, 1, 3]], [[3, 2, 3]]]
    assert problem.grids.tolist() == TOKENS.tolist()


def test_embed_puts_channels_first():
    embedded = embed(TOKENS, CODEBOOK)
    assert embedded.shape == (2, 2, 1, 3)
    assert embedded[1, :, 0, 2].tolist() == [1, 0]
    assert embedded.is_contiguous()


def test_nearest_takes_the_first_of_equals_and_the_same_in_pieces(monkeypatch):
    points = torch.tensor([[[0.5, 0.0], [4.0, 4.0]], [[0.1, 0.9], [0.0, 0.0]]])
    assert nearest(points, CODEBOOK).tolist() == [[0, 3], [2, 0]]
    monkeypatch.setattr("vqcortex.search.problem.NEAREST_CHUNK", 4)
    assert nearest(points, CODEBOOK).tolist() == [[0, 3], [2, 0]]


def test_live_codes_are_all_when_there_is_no_mask():
    assert live_codes(CODEBOOK, None).tolist() == [0, 1, 2, 3]
    assert live_codes(CODEBOOK, torch.tensor([True, False, False, True])).tolist() == [0, 3]


def test_slope_is_the_gradient_of_each_images_own_concept():
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 2, bias=False))
    slope = slope_of(net, embed(TOKENS, CODEBOOK), TARGET)
    torch.testing.assert_close(slope.flatten(1), net[1].weight[TARGET].detach())


def test_a_careful_slope_checks_the_concept():
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(ConfigError, match="concept 2 is not one of the extractor's 2 concepts, 0 to 1"):
        slope_of(net, embed(TOKENS, CODEBOOK), torch.tensor([0, 2]), careful=True)
    with pytest.raises(ConfigError, match="concept -1 is not"):
        logits_of(net, embed(TOKENS, CODEBOOK), torch.tensor([-1, 0]))


def test_checks_are_quiet_about_what_is_right():
    check_concept(torch.tensor([0, 1]), 2)
    check_finite(torch.zeros(2, 3))
    check_tokens(TOKENS, CODEBOOK)
    check_tokens(TOKENS[:0], CODEBOOK)


def test_checks_name_the_kind_of_number():
    with pytest.raises(ModelError, match="gives infinite logits for 1 of 2 images"):
        check_finite(torch.tensor([[1.0, torch.inf], [0.0, 0.0]]))
    with pytest.raises(ModelError, match="gives NaN gradients for 2 of 2 images"):
        check_finite(torch.tensor([[torch.nan], [torch.inf]]), "gradients")
    with pytest.raises(TokenError, match=r"tokens span \[-1, 3\]"):
        check_tokens(torch.tensor([3, -1]), CODEBOOK)


def test_a_mask_of_another_grid_is_refused():
    with pytest.raises(ShapeError, match=r"free region has shape \(2, 1\) but the grids are \(1, 3\)"):
        pose(CODEBOOK, TOKENS, torch.ones(2, 1, dtype=torch.bool), TARGET, ["a", "b"])
