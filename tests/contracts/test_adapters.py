"""What every model owes its caller."""

import pytest
import torch

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import Adapter, Generator
from vqcortex.adapters.zoo import zoo_names

NAMES = ["toy", "toy:3x2", *(f"zoo:{name}" for name in zoo_names())]


@pytest.fixture(params=NAMES)
def model(request) -> Adapter:
    return load_model(request.param)


def grids(model: Adapter, n: int = 6) -> torch.Tensor:
    return torch.randint(0, len(model.codebook), (n, *model.grid), generator=torch.Generator().manual_seed(0))


def test_the_zoo_is_not_empty():
    assert zoo_names()


def test_tokens_survive_the_codebook(model):
    tokens = grids(model)
    assert torch.equal(model.nearest(model.embed(tokens)), tokens)


def test_embedding_is_the_codebook_row(model):
    tokens = grids(model)
    embedded = model.embed(tokens)
    assert torch.equal(embedded[1, :, 0, 1], model.codebook[tokens[1, 0, 1]])


def test_pixels_are_colour_images_in_the_unit_range(model):
    pixels = model.decode(model.embed(grids(model)))
    assert pixels.shape == (6, 3, *model.size)
    assert 0 <= pixels.min() < pixels.max() <= 1


def test_gradients_reach_every_position_of_the_embedding(model):
    embedded = model.embed(grids(model)) * 0.5 + 0.2
    embedded.requires_grad_()
    model.decode(embedded).sum().backward()
    assert (embedded.grad.abs().sum(1) > 0).all()


def test_company_changes_no_token(model):
    pixels = model.decode(model.embed(grids(model))).detach()
    alone = torch.cat([model.encode(one[None]) for one in pixels])
    assert torch.equal(model.encode(pixels), alone)


def test_drawing_belongs_to_the_image_and_the_seed(model):
    assert isinstance(model, Generator)
    ids = [f"x/{i}" for i in range(5)]
    concept = torch.arange(5) % len(model.concepts)
    together = model.generate(concept, ids, 3)
    alone = torch.cat([model.generate(concept[[i]], [ids[i]], 3) for i in range(5)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, model.generate(concept, ids, 4))
    assert together.shape == (5, *model.grid)
    assert 0 <= together.min() <= together.max() < len(model.codebook)


def test_identity_is_stable_and_a_hash(model):
    assert len(model.identity) == 64
    assert load_model(model.name).identity == model.identity
