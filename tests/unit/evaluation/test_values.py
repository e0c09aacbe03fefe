from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqcortex.errors import ConfigError, DataError, ShapeError, TokenError
from vqcortex.evaluation.values import (
    Condition,
    Evidence,
    check_images,
    check_names,
    join_evidence,
    slices,
)


def evidence(ids=("a",)):
    b = len(ids)
    return Evidence(
        level="image",
        conditions=(Condition(arm="x", masking="positions", fill="black", chosen=1),),
        judges=("j",),
        image_ids=tuple(ids),
        concept=torch.zeros(b, dtype=torch.int64),
        positions=4,
        before=torch.rand(1, b),
        metrics={"probability_drop": torch.rand(1, 1, b)},
        touched=torch.ones(1, b),
    )


def test_joining_lays_the_images_side_by_side():
    one, two = evidence(("a", "b")), evidence(("c",))
    both = join_evidence([one, two])
    assert both.image_ids == ("a", "b", "c")
    assert torch.equal(both.before, torch.cat([one.before, two.before], 1))
    drops = [part.metrics["probability_drop"] for part in (one, two)]
    assert torch.equal(both.metrics["probability_drop"], torch.cat(drops, 2))
    assert both.touched.shape == (1, 3)
    assert both.source is None


def test_sources_are_joined_where_there_are_any():
    one = replace(evidence(), source=torch.tensor([3]))
    assert join_evidence([one, one]).source.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"judges": ("k",)}, "evidence with judges"),
        ({"positions": 9}, "evidence with positions 9 cannot be joined to 4"),
        ({"source": torch.tensor([1])}, "different metrics"),
    ],
)
def test_evidence_measured_otherwise_is_not_joined(change, words):
    with pytest.raises(ConfigError, match=words):
        join_evidence([evidence(), replace(evidence(), **change)])


def test_nothing_cannot_be_joined():
    with pytest.raises(DataError, match="no images to measure"):
        join_evidence([])


def test_slices_cover_everything_once():
    assert [list(range(7))[one] for one in slices(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="batch=0 must be at least 1"):
        slices(7, 0)


def test_images_are_checked_at_the_door():
    tokens = torch.tensor([[[0, 7]]])
    check_images(tokens, ["a"], 8, concept=torch.tensor([0]))
    with pytest.raises(TokenError, match=r"tokens span \[0, 7\] but this codebook holds indices \[0, 6\]"):
        check_images(tokens, ["a"], 7)
    with pytest.raises(ShapeError, match="image_ids has 2 entries for 1 grids"):
        check_images(tokens, ["a", "b"], 8)
    with pytest.raises(ShapeError, match="concept has 3 entries for 1 grids"):
        check_images(tokens, ["a"], 8, concept=torch.zeros(3))
    with pytest.raises(DataError, match="no images to measure"):
        check_images(tokens[:0], [], 8)


def test_names_are_given_once():
    check_names("arm", ["a", "b"])
    with pytest.raises(ConfigError, match="arm 'a' is given twice"):
        check_names("arm", ["a", "b", "a"])
    with pytest.raises(ConfigError, match="there is no arm to measure"):
        check_names("arm", [])
