"""A model over a first stage answers as that does in all but drawing."""

import pytest
import torch

from vqcortex.adapters import load_model
from vqcortex.adapters.first_stage import OverFirstStage
from vqcortex.errors import ModelError


def test_everything_but_drawing_is_the_first_stages():
    first = load_model("zoo:cifar10").first
    over = OverFirstStage(first)
    for name in ("grid", "size", "stride", "levels", "k", "d", "device", "dtype", "recognised"):
        assert getattr(over, name) == getattr(first, name), name
    assert over.codebook is first.codebook or torch.equal(over.codebook, first.codebook)
    pixels = torch.rand(2, 3, *over.size, generator=torch.Generator().manual_seed(0))
    tokens = over.encode(pixels)
    assert tokens.shape == (2, *over.grid)
    assert torch.equal(tokens, first.encode(pixels))
    embedded = over.embed(tokens)
    assert torch.equal(over.nearest(embedded), tokens)
    assert torch.equal(over.decode(embedded), first.decode(embedded))
    with pytest.raises(ModelError, match="cannot logits"):  # as the first stage, which chooses codes by distance
        over.logits(pixels)
