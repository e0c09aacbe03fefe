from __future__ import annotations

import pytest
import torch

from vqcortex.errors import ConfigError, UnknownName
from vqcortex.evaluation.choose import arms_for, fills_for


def test_fills_are_built_with_what_they_need():
    black, drawn = fills_for(["black", "resampled_codes"], frequency=torch.ones(8), seed=5)
    assert (black.name, black.where) == ("black", "pixels")
    assert (drawn.name, drawn.where, drawn.seed) == ("resampled_codes", "tokens", 5)


def test_arms_are_built_with_what_they_need():
    chosen = arms_for(["centre", "token_frequency"], counts=torch.zeros(2, 8, dtype=torch.int64))
    assert [arm.name for arm in chosen] == ["centre", "token_frequency"]
    assert arms_for(["random"], seed=4)[0].seed == 4


def test_what_is_needed_and_missing_is_named():
    with pytest.raises(ConfigError, match="'mean_code' needs frequency, which was not given"):
        fills_for(["mean_code"])
    with pytest.raises(ConfigError, match="'token_frequency' needs counts"):
        arms_for(["token_frequency"])


def test_an_unknown_name_gets_a_hint():
    with pytest.raises(UnknownName, match=r"no fill named 'gray'.*Did you mean 'grey'"):
        fills_for(["gray"])
    with pytest.raises(UnknownName, match=r"no control arm named 'center'.*Did you mean 'centre'"):
        arms_for(["center"])
