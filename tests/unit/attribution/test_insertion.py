from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.insertion import inserted_values, insertion_synergy, typical_places
from vqcortex.errors import ConfigError, ShapeError

CODES = torch.eye(4)
BACKGROUND = CODES[torch.tensor([[[2, 3], [3, 2]], [[3, 3], [3, 3]], [[2, 2], [2, 2]]])].permute(0, 3, 1, 2)
CONCEPT, IDS = torch.tensor([1, 1, 1]), list("xyz")
AT_A, AT_B = torch.tensor([[True, False], [False, False]]), torch.tensor([[False, True], [False, True]])


class Rule(nn.Module):
    """A logit that is a function of which codes an image holds."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, embedded):
        logit = self.rule(*(embedded.flatten(2) > 0.5).any(2).to(embedded).T)
        return torch.stack([0 * logit, logit], 1)


def put(rule):
    return insertion_synergy(Rule(rule), BACKGROUND, CONCEPT, IDS, CODES[0], CODES[1], AT_A, AT_B).tolist()


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (lambda a, b, *_: 2 * a + 3 * b, 0),
        (lambda a, b, *_: 5 * a * b, 5),
        (lambda a, b, *_: 5 * (a + b - a * b), -5),
        (lambda a, b, *_: 5 * (a + b - 2 * a * b), -10),
    ],
    ids=["adds up", "both needed", "either does", "exactly one"],
)
def test_two_codes_that_never_meet_show_their_rule(rule, value):
    assert put(rule) == [value] * 3


def test_several_codes_are_put_in_at_once_and_the_rest_of_the_image_stays():
    places = torch.stack([AT_A, AT_B, torch.tensor([[False, False], [True, False]])])
    net = Rule(lambda a, b, c, d: a + 10 * b + 100 * c + 1000 * d)
    asked = torch.arange(8).expand(3, -1)
    found = inserted_values(net, BACKGROUND, CONCEPT, IDS, CODES[[0, 1, 2]], places, asked)
    assert found[1].tolist() == [1000, 1001, 1010, 1011, 1100, 1101, 1110, 111]
    assert found[2].tolist() == [100, 101, 110, 111, 100, 101, 110, 111]
    alone = inserted_values(net, BACKGROUND[1:2], CONCEPT[:1], IDS[1:2], CODES[[0, 1, 2]], places, asked[:1], at_once=1)
    assert torch.equal(alone, found[1:2])


def test_typical_places_are_the_most_frequent_ones_that_are_free():
    counts = torch.tensor([[[9, 5], [1, 0]], [[8, 7], [0, 2]], [[0, 0], [1, 0]]])
    assert typical_places(counts, [2, 2, 1]).int().tolist() == [[[1, 0], [1, 0]], [[0, 1], [0, 1]], [[0, 0], [0, 0]]]


def test_a_code_never_goes_where_it_never_stood():
    found = typical_places(torch.tensor([[[2, 0]], [[1, 0]]]), [5, 5])
    assert found.int().tolist() == [[[1, 0]], [[0, 0]]]


def test_places_that_make_no_pair_are_refused():
    net = Rule(lambda a, *_: a)
    two = (BACKGROUND, CONCEPT, IDS, CODES[0], CODES[1])
    with pytest.raises(ConfigError, match="code number 1 goes to 0 positions; at least 1 is needed"):
        insertion_synergy(net, *two, AT_A, torch.zeros(2, 2).bool())
    with pytest.raises(ConfigError, match=r"1 position\(s\) would hold two codes"):
        insertion_synergy(net, *two, AT_A, AT_A)
    with pytest.raises(ShapeError, match="3 images came with 3 concepts and 2 ids"):
        insertion_synergy(net, *two[:2], IDS[:2], *two[3:], AT_A, AT_B)
