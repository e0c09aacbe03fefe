from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vqcortex.search.ascent import (
    Variables,
    ascend,
    drawn_choice,
    perturbation,
    probability_of,
    rows_at_once,
    start_choice,
    traced,
)
from vqcortex.search.embedding import EmbeddingOptimisation
from vqcortex.search.problem import Problem, pose

CODEBOOK = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
TOKENS = torch.tensor([[[0, 1, 2]], [[3, 2, 1]]])
FREE = torch.tensor([[True, False, True]])
TARGET = torch.tensor([1, 0])


def problem(**more) -> Problem:
    return pose(CODEBOOK, TOKENS, FREE, TARGET, ["a", "b"], **more)


class Watched:
    """Variables that remember what they were asked, and always stand for the last code."""

    def __init__(self, rows: int) -> None:
        self.rows, self.steps, self.gradients = rows, [], []

    def propose(self, step: int) -> Tensor:
        self.steps.append(step)
        return torch.full((self.rows, 2, 2), float(step))

    def improve(self, gradient: Tensor) -> None:
        self.gradients.append(gradient)

    def decode(self) -> Tensor:
        return torch.full((self.rows, 2), 3)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 2))


def test_every_step_is_taken_once_and_sees_the_free_positions_only(net):
    made: list[Watched] = []

    def variables(part: Problem) -> Variables:
        made.append(Watched(len(part.keys)))
        return made[-1]

    settings = EmbeddingOptimisation(steps=5, record_every=2, batch=1)
    trace = ascend("watched", settings, variables, net, problem())
    assert [one.steps for one in made] == [[0, 1, 2, 3, 4]] * 2
    assert trace.steps == (0, 2, 4, 5)
    assert trace.probability.shape == (4, 2, 1)
    assert trace.tokens.tolist() == [[[[3, 1, 3]]], [[[3, 2, 3]]]]
    weight = net[1].weight.detach().view(2, 2, 1, 3)  # (c, d, h, w)
    for one, target in zip(made, TARGET, strict=True):
        torch.testing.assert_close(one.gradients[0][0], weight[target, :, 0, [0, 2]].T)


def test_what_is_not_free_keeps_its_embedding_while_searching():
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, embedded: Tensor) -> Tensor:
            seen.append(embedded.detach().clone())
            return embedded.sum((2, 3))

    ascend("watched", EmbeddingOptimisation(steps=2), lambda part: Watched(2), Spy(), problem())
    for step, embedded in enumerate(seen[1:3]):
        assert embedded[:, :, 0, 1].tolist() == CODEBOOK[[1, 2]].tolist()
        assert (embedded[:, :, 0, [0, 2]] == step).all()


def test_traces_fold_rows_into_images_and_restarts():
    rows = problem(restarts=3)
    grids = torch.arange(6)[:, None, None].expand(6, 1, 3).contiguous()
    trace = traced("x", rows, grids, (0, 1), torch.arange(12.0).view(2, 6))
    assert trace.tokens[:, :, 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert trace.probability[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert trace.start.tolist() == TOKENS.tolist()
    assert trace.free.tolist() == FREE.tolist()
    assert trace.target.tolist() == TARGET.tolist()


def test_probability_is_the_softmax_of_the_targets_logit(net):
    found = probability_of(net, problem(), TOKENS)
    logits = net(CODEBOOK[TOKENS].permute(0, 3, 1, 2))
    torch.testing.assert_close(found, logits.softmax(1)[[0, 1], TARGET])


def test_a_search_from_the_image_starts_at_its_tokens_or_the_nearest_live_code():
    settings = EmbeddingOptimisation(start="image")
    assert start_choice(settings, problem()).tolist() == [[0, 2], [3, 1]]
    alive = torch.tensor([False, True, True, False])
    assert start_choice(settings, problem(alive=alive)).tolist() == [[0, 1], [0, 0]]


def test_equal_codes_keep_their_own_ids_at_the_start():
    twins = CODEBOOK[[0, 1, 1, 3]]
    rows = pose(twins, TOKENS, FREE, TARGET, ["a", "b"])
    assert start_choice(EmbeddingOptimisation(), rows).tolist() == [[0, 2], [3, 1]]


def test_a_search_from_the_mean_starts_at_no_code():
    assert start_choice(EmbeddingOptimisation(start="mean"), problem()) is None


def test_draws_belong_to_image_restart_seed_and_purpose():
    rows = pose(torch.randn(500, 2), TOKENS, FREE, TARGET, ["a", "b"], restarts=2)
    draws = drawn_choice(0, rows, "here")
    assert len(draws.unique(dim=0)) == 4
    assert torch.equal(torch.cat([drawn_choice(0, part, "here") for part in rows.parts(1)]), draws)
    assert not torch.equal(drawn_choice(0, rows, "there"), draws)
    assert not torch.equal(drawn_choice(1, rows, "here"), draws)


def test_the_perturbation_has_the_wanted_spread():
    rows = pose(torch.randn(5000, 2), TOKENS, FREE, TARGET, ["a", "b"])
    moved = perturbation(EmbeddingOptimisation(spread=0.5), rows)
    assert moved.shape == (2, 2, 5000)
    assert moved.std().item() == pytest.approx(0.5, rel=0.02)
    assert not perturbation(EmbeddingOptimisation(spread=0.0), rows).any()


def test_fewer_rows_run_at_once_when_they_would_not_fit(monkeypatch):
    assert rows_at_once(32, problem()) == 32
    for most, rows in ((24, 3), (8, 1), (7, 1)):  # two positions and four codes make eight logits a row
        monkeypatch.setattr("vqcortex.search.ascent.LOGITS_AT_ONCE", most)
        assert rows_at_once(32, problem()) == rows
        assert rows_at_once(2, problem()) == min(rows, 2)
