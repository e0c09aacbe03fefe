"""Fixed biases check themselves, add up, and are told apart from one another."""

import pytest
import torch

from vqcortex.adapters.steering import FixedBias, Steering, Steerings
from vqcortex.errors import ConfigError, ShapeError

NOTHING = torch.zeros(2, 0, dtype=torch.int64)
NOWHERE = torch.zeros(0, dtype=torch.int64)


class Echo:
    """Pushes towards the code drawn last, by one nat."""

    identity = "echo"
    shape = (3, 1, 2)

    def bias(self, drawn, places, place):
        found = torch.zeros(len(drawn), 3, dtype=torch.float64)
        return found.scatter_(1, drawn[:, -1:], 1.0) if drawn.shape[1] else found


def test_a_fixed_bias_is_the_same_for_all_images():
    bias = FixedBias(torch.arange(6.0).view(3, 1, 2))
    assert isinstance(bias, Steering)
    assert bias.shape == (3, 1, 2)
    assert bias.bias(NOTHING, NOWHERE, 1).tolist() == [[1, 3, 5]]


def test_identity_follows_the_numbers():
    one, other = FixedBias(torch.zeros(3, 1, 2)), FixedBias(torch.ones(3, 1, 2))
    assert one.identity == FixedBias(torch.zeros(3, 1, 2, dtype=torch.float16)).identity != other.identity
    assert Steerings((one,)).identity != Steerings((one, other)).identity != Steerings((other, one)).identity


def test_fixed_ones_that_follow_each_other_are_one():
    held = Steerings().plus(FixedBias(torch.ones(3, 1, 2)), 3, (1, 2)).plus(FixedBias(-torch.ones(3, 1, 2)), 3, (1, 2))
    assert len(held.parts) == 1
    assert (held.bias(NOTHING, NOWHERE, 0) == 0).all()
    assert not Steerings()
    assert held


def test_what_looks_at_the_image_and_what_does_not_add_up():
    held = Steerings().plus(Echo(), 3, (1, 2)).plus(FixedBias(torch.full((3, 1, 2), 0.5)), 3, (1, 2))
    drawn = torch.tensor([[2], [0]])
    assert held.bias(drawn, torch.tensor([0]), 1).tolist() == [[0.5, 0.5, 1.5], [1.5, 0.5, 0.5]]
    along = held.along(torch.tensor([[2, 1], [0, 1]]), torch.tensor([0, 1]))
    assert along.tolist() == [[[0.5] * 3, [0.5, 0.5, 1.5]], [[0.5] * 3, [1.5, 0.5, 0.5]]]


@pytest.mark.parametrize(
    ("table", "error", "why"),
    [
        (torch.zeros(3, 2), ShapeError, r"shape \(3, 2\); give one number per code and position"),
        (torch.full((3, 1, 2), torch.nan), ConfigError, "NaN or plus infinity"),
        (torch.full((3, 1, 2), torch.inf), ConfigError, "NaN or plus infinity"),
    ],
)
def test_a_bias_that_is_none_is_refused(table, error, why):
    with pytest.raises(error, match=why):
        FixedBias(table)


def test_a_bias_of_another_shape_or_that_leaves_nothing_is_refused():
    with pytest.raises(ShapeError, match=r"shape \(3, 1, 2\) but this model needs \(4, 1, 2\)"):
        Steerings().plus(Echo(), 4, (1, 2))
    half, rest = torch.zeros(3, 1, 2), torch.zeros(3, 1, 2)
    half[:2, 0, 1], rest[2, 0, 1] = -torch.inf, -torch.inf
    held = Steerings().plus(FixedBias(half), 3, (1, 2))
    with pytest.raises(ConfigError, match=r"leaves no code at position \(0, 1\)"):
        held.plus(FixedBias(rest), 3, (1, 2))
    with pytest.raises(ConfigError, match=r"leaves no code at position \(0, 1\)"):
        Steerings().plus(FixedBias(half), 3, (1, 2), torch.tensor([0, 1]))
