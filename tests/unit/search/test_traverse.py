from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.errors import ConfigError, ModelError, ShapeError, TokenError
from vqcortex.results import Traversal
from vqcortex.search.traverse import (
    best_cells,
    linear_error,
    sampled_cells,
    swap_effects,
    swap_sum,
    traverse,
    verify_cells,
)

K, D, H, W, CONCEPTS = 8, 3, 3, 4, 5


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(D * H * W, CONCEPTS)

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        return self.out(embedded.flatten(1))


class Curved(Linear):
    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        return self.out(embedded.flatten(1).sin())


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(K, D, generator=rng), torch.randint(0, K, (5, H, W), generator=rng)


@pytest.fixture
def extractor() -> nn.Module:
    torch.manual_seed(1)
    return Linear()


def embed(tokens: Tensor, codebook: Tensor) -> Tensor:
    return codebook[tokens].permute(0, 3, 1, 2)


def every_cell() -> Tensor:
    return torch.cartesian_prod(torch.arange(K), torch.arange(H), torch.arange(W))


def test_effects_are_exact_for_a_linear_extractor(extractor, drawn):
    codebook, tokens = drawn
    traversal = traverse(extractor, [tokens], codebook, 2, count=12, distinct="position")
    torch.testing.assert_close(traversal.estimated, traversal.measured, atol=1e-5, rtol=0)
    everywhere, _ = verify_cells(extractor, [tokens], codebook, 2, every_cell())
    torch.testing.assert_close(traversal.effect.flatten(), everywhere, atol=1e-5, rtol=0)
    assert linear_error(traversal)["slope"] == pytest.approx(1, abs=1e-4)


def test_a_token_that_stands_there_already_has_no_effect(extractor, drawn):
    codebook, tokens = drawn
    effect = swap_effects(extractor, embed(tokens[:1], codebook), tokens[:1], codebook, 0)
    assert effect.gather(0, tokens[:1]).abs().max() < 1e-6
    assert effect.abs().max() > 0.01


def test_batches_and_their_order_change_nothing(drawn):
    codebook, tokens = drawn
    torch.manual_seed(2)
    curved = Curved()
    whole = traverse(curved, [tokens], codebook, 1, count=6)
    parts = traverse(curved, [tokens[3:], tokens[:1], tokens[1:3]], codebook, 1, count=6, batch=2)
    torch.testing.assert_close(whole.effect, parts.effect, atol=1e-6, rtol=0)
    torch.testing.assert_close(whole.measured, parts.measured, atol=1e-6, rtol=0)
    torch.testing.assert_close(whole.measured_error, parts.measured_error, atol=1e-6, rtol=1e-4)
    assert torch.equal(whole.cells, parts.cells)
    assert whole.images == parts.images == 5


def test_each_image_may_have_its_own_concept(extractor, drawn):
    codebook, tokens = drawn
    embedded, concepts = embed(tokens, codebook), torch.tensor([0, 1, 2, 3, 4])
    mixed = swap_effects(extractor, embedded, tokens, codebook, concepts)
    single = [swap_effects(extractor, embedded[[i]], tokens[[i]], codebook, i) for i in range(5)]
    torch.testing.assert_close(mixed, torch.stack(single).sum(0), atol=1e-5, rtol=0)


def test_many_codes_are_multiplied_in_pieces(extractor, drawn, monkeypatch):
    codebook, tokens = drawn
    total = swap_sum(extractor, embed(tokens, codebook), tokens, codebook, 0)
    whole = total.effects(codebook)
    monkeypatch.setattr("vqcortex.search.traverse.CODES_AT_ONCE", 3)
    assert torch.equal(total.effects(codebook), whole)


def test_sums_of_different_models_do_not_add_up(extractor, drawn):
    codebook, tokens = drawn
    total = swap_sum(extractor, embed(tokens, codebook), tokens, codebook, 0)
    other = type(total)(gradient=total.gradient[:2], standing=total.standing, images=1)
    with pytest.raises(ShapeError, match=r"sums of shape \(3, 3, 4\) and \(2, 3, 4\) do not add up"):
        total + other


def test_best_cells_come_in_order_and_ties_go_to_the_first():
    effect = torch.tensor([[[1.0, 5.0]], [[5.0, 2.0]], [[0.0, 5.0]]])
    assert best_cells(effect, 4).tolist() == [[0, 0, 1], [1, 0, 0], [2, 0, 1], [1, 0, 1]]
    assert best_cells(effect, 2).tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("distinct", "expected"),
    [
        ("position", [[0, 0, 1], [1, 0, 0]]),
        ("code", [[0, 0, 1], [1, 0, 0], [2, 0, 1]]),
    ],
)
def test_at_most_one_cell_per_position_or_code(distinct, expected):
    effect = torch.tensor([[[1.0, 5.0]], [[5.0, 2.0]], [[0.0, 5.0]]])
    assert best_cells(effect, 9, distinct=distinct).tolist() == expected


def test_best_cells_use_live_codes_only():
    effect = torch.tensor([[[1.0, 5.0]], [[5.0, 2.0]], [[0.0, 5.0]]])
    alive = torch.tensor([False, True, True])
    assert best_cells(effect, 2, alive).tolist() == [[1, 0, 0], [2, 0, 1]]


def test_sampled_cells_are_live_and_repeatable():
    effect, alive = torch.zeros(K, H, W), torch.arange(K) % 2 == 1
    cells = sampled_cells(effect, 50, alive, seed=3)
    assert (cells[:, 0] % 2 == 1).all()
    assert (cells.amax(0) == torch.tensor([7, 2, 3])).all()
    assert torch.equal(cells, sampled_cells(effect, 50, alive, seed=3))
    assert not torch.equal(cells, sampled_cells(effect, 50, alive, seed=4))


def test_verified_cells_are_best_first_and_no_cell_twice(extractor, drawn):
    codebook, tokens = drawn
    traversal = traverse(extractor, [tokens], codebook, 0, count=5, sampled=200)
    assert len(traversal.cells) > 5
    assert len(traversal.cells.unique(dim=0)) == len(traversal.cells)
    assert (traversal.estimated.diff() <= 0).all()


def test_standard_error_is_that_of_the_mean_over_images(drawn):
    codebook, tokens = drawn
    torch.manual_seed(2)
    curved, cells = Curved(), torch.tensor([[1, 0, 0], [7, 2, 3]])
    single = torch.stack([verify_cells(curved, [one[None]], codebook, 0, cells)[0] for one in tokens])
    mean, error = verify_cells(curved, [tokens], codebook, 0, cells)
    torch.testing.assert_close(mean, single.mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(error, single.std(0) / math.sqrt(5), atol=1e-6, rtol=1e-3)


def test_one_image_has_no_standard_error(extractor, drawn):
    codebook, tokens = drawn
    _, error = verify_cells(extractor, [tokens[:1]], codebook, 0, torch.tensor([[1, 0, 0]]))
    assert error.isnan().all()


def test_the_extractor_keeps_its_flags(extractor, drawn):
    codebook, tokens = drawn
    extractor.train()
    extractor.out.bias.requires_grad_(False)
    traverse(extractor, [tokens], codebook, 0, count=2)
    assert extractor.training
    assert [weight.requires_grad for weight in extractor.parameters()] == [True, False]
    assert all(weight.grad is None for weight in extractor.parameters())


def traversal_of(estimated: list[float], measured: list[float]) -> Traversal:
    count = len(estimated)
    return Traversal(
        concept=0,
        effect=torch.zeros(2, 1, 1),
        images=1,
        cells=torch.zeros(count, 3, dtype=torch.long),
        estimated=torch.tensor(estimated),
        measured=torch.tensor(measured),
        measured_error=torch.zeros(count),
    )


def test_linear_error_in_closed_form():
    found = linear_error(traversal_of([0.0, 1.0, 2.0, 3.0], [1.0, 1.5, 2.0, 2.5]))
    assert found == pytest.approx({"pearson": 1, "spearman": 1, "mean_absolute_error": 0.5, "slope": 0.5})
    bent = linear_error(traversal_of([0.0, 1.0, 2.0], [0.0, 1.0, 100.0]))
    assert bent["spearman"] == pytest.approx(1)
    assert bent["pearson"] < 0.9
    tied = linear_error(traversal_of([0.0, 0.0, 1.0], [0.0, 1.0, 2.0]))
    assert tied["spearman"] == pytest.approx(math.sqrt(3) / 2)


def test_linear_error_is_none_where_nothing_varies():
    found = linear_error(traversal_of([1.0, 1.0], [0.0, 1.0]))
    assert found["pearson"] is None
    assert found["slope"] is None


@pytest.mark.parametrize(
    ("cells", "error", "message"),
    [
        ([[8, 0, 0]], TokenError, r"tokens span \[8, 8\] but this codebook holds indices \[0, 7\]"),
        ([[0, 3, 0]], ConfigError, r"position \(3, 0\) lies outside the grid of 3 rows and 4 columns"),
        ([[0, 0, -1]], ConfigError, r"position \(0, -1\) lies outside"),
    ],
)
def test_cells_outside_are_refused(extractor, drawn, cells, error, message):
    codebook, tokens = drawn
    with pytest.raises(error, match=message):
        verify_cells(extractor, [tokens], codebook, 0, torch.tensor(cells))


def test_mistakes_are_named(extractor, drawn):
    codebook, tokens = drawn
    with pytest.raises(ConfigError, match="read only once"):
        traverse(extractor, iter([tokens]), codebook, 0)
    with pytest.raises(ConfigError, match="no image was given"):
        traverse(extractor, [], codebook, 0)
    with pytest.raises(ConfigError, match="no image was given"):
        verify_cells(extractor, [], codebook, 0, every_cell())
    with pytest.raises(ConfigError, match="concept 5 is not one of the extractor's 5 concepts, 0 to 4"):
        traverse(extractor, [tokens], codebook, 5)
    with pytest.raises(TokenError, match=r"tokens span \[\d, 9\]"):
        traverse(extractor, [tokens + 2], codebook, 0)
    with pytest.raises(ConfigError, match="0 cells were asked for"):
        traverse(extractor, [tokens], codebook, 0, count=0)
    with pytest.raises(ConfigError, match="batch=0"):
        traverse(extractor, [tokens], codebook, 0, batch=0)
    with pytest.raises(ShapeError, match="the mask of live codes has 3 entries but the codebook 8"):
        best_cells(torch.zeros(K, H, W), 1, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ConfigError, match="none of the 8 codes is live"):
        best_cells(torch.zeros(K, H, W), 1, torch.zeros(K, dtype=torch.bool))


def test_an_extractor_with_nan_weights_is_named(extractor, drawn):
    codebook, tokens = drawn
    with torch.no_grad():
        extractor.out.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="gives NaN logits for 5 of 5 images"):
        traverse(extractor, [tokens], codebook, 0)


class Root(Linear):
    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        return self.out((embedded.flatten(1) * 0).sqrt())


def test_a_gradient_that_is_not_finite_is_named(drawn):
    codebook, tokens = drawn
    with pytest.raises(ModelError, match="gives NaN gradients for 5 of 5 images"):
        traverse(Root(), [tokens], codebook, 0)


def test_cells_that_are_not_allowed_are_never_chosen():
    effect = torch.arange(24.0).view(4, 2, 3)
    allowed = torch.zeros(4, 2, 3, dtype=torch.bool)
    allowed[0, 0], allowed[1, 1] = True, True
    found = best_cells(effect, 99, None, "cell", allowed)
    assert found.tolist() == [[1, 1, 2], [1, 1, 1], [1, 1, 0], [0, 0, 2], [0, 0, 1], [0, 0, 0]]
    drawn = sampled_cells(effect, 50, torch.tensor([True, True, False, True]), 0, allowed)
    assert len(drawn) == 50
    assert all(allowed[code, row, column] for code, row, column in drawn.tolist())
    assert {code for code, _, _ in drawn.tolist()} == {0, 1}


def test_no_allowed_cell_is_an_error():
    effect = torch.zeros(2, 1, 1)
    with pytest.raises(ConfigError, match="none of the live codes may stand anywhere"):
        best_cells(effect, 1, torch.tensor([True, False]), "cell", torch.tensor([False, True])[:, None, None])
