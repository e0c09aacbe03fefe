from __future__ import annotations

import math

import torch

from vqcortex.adapters.toy import PAINTED, ToyAdapter
from vqcortex.search.likelihood import IMPOSSIBLE, GeneratorLikelihood
from vqcortex.search.protocol import Regulariser

TOY = ToyAdapter(grid=(1, 3))
TOKENS = torch.tensor([[[2, 2, 5]], [[0, 1, 2]]])
TARGET = torch.tensor([2, 7])
OTHER = (1 - PAINTED) / 8
OWN = OTHER + PAINTED


def test_the_likelihood_of_a_grid_is_that_of_its_tokens():
    found = GeneratorLikelihood(TOY, batch=1)
    assert isinstance(found, Regulariser)
    assert found.codes == 8
    expected = torch.tensor([2 * math.log(OWN) + math.log(OTHER), 3 * math.log(OTHER)])
    torch.testing.assert_close(found(TOKENS, TARGET), expected)


def test_where_positions_are_independent_a_swap_is_known_exactly():
    found = GeneratorLikelihood(TOY)
    places = (torch.tensor([0, 0]), torch.tensor([0, 2]))
    change = found.swaps(TOKENS, TARGET, places, torch.tensor([2, 4]))
    assert change.shape == (2, 2, 2)
    ratio = math.log(OWN / OTHER)
    torch.testing.assert_close(change[0], torch.tensor([[0.0, -ratio], [ratio, 0.0]]))
    assert not change[1].any()


def test_what_is_never_drawn_is_very_unlikely_and_not_infinitely_so():
    class Never(ToyAdapter):
        def log_probabilities(self, tokens, concept):
            return torch.full((len(tokens), 8, *self.grid), -torch.inf)

    assert GeneratorLikelihood(Never(grid=(1, 3)))(TOKENS, TARGET).tolist() == [3 * IMPOSSIBLE] * 2
