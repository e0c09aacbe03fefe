import itertools

import pytest
import torch

from vqcortex.errors import ConfigError, DataError
from vqcortex.significance import false_discovery, holm, sign_flip_p


def test_p_values_are_those_of_every_sign_counted():
    torch.manual_seed(0)
    values = torch.randn(3, 8, dtype=torch.float64) + torch.tensor([[0.0], [0.5], [1.5]])
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)), dtype=torch.float64)
    exact = ((values @ signs.T).abs() >= values.sum(1).abs()[:, None] - 1e-12).double().mean(1)
    torch.testing.assert_close(sign_flip_p(values, draws=40_000), exact, atol=0.01, rtol=0)


def test_differences_without_a_sign_are_never_significant():
    assert sign_flip_p(torch.zeros(1, 5)).item() == 1


def test_draws_belong_to_the_seed():
    values = torch.randn(2, 20, generator=torch.Generator().manual_seed(1))
    found = sign_flip_p(values, draws=100)
    assert torch.equal(found, sign_flip_p(values, draws=100))
    assert not torch.equal(found, sign_flip_p(values, draws=100, seed=1))


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03], [0.5], [0.2, 0.2, 0.001, 0.9]])
def test_corrections_are_those_of_their_definitions(p):
    slow_holm = [max(min(1, (len(p) - sum(q < r for q in p)) * r) for r in p if r <= one) for one in p]
    assert holm(p) == pytest.approx(slow_holm)
    slow_false = [min(len(p) * r / sum(q <= r for q in p) for r in p if r >= one) for one in p]
    assert false_discovery(p) == pytest.approx(slow_false)


def test_nothing_asked_is_nothing_found():
    assert holm([]) == []
    assert false_discovery([]) == []


def test_bad_questions_are_refused():
    with pytest.raises(ConfigError, match="draws=0"):
        sign_flip_p(torch.zeros(1, 3), draws=0)
    with pytest.raises(DataError, match="at least 1 image"):
        sign_flip_p(torch.zeros(1, 0))
    with pytest.raises(DataError, match="finite"):
        sign_flip_p(torch.tensor([[1.0, float("nan")]]))
