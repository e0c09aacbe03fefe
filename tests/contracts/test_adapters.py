"""What every model owes its caller, asked of the embedded ones and of one made by the official code of each family."""

import pytest
import torch
from parity.golden import CASES

from vqcortex.adapters import FAMILIES, load_model
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.protocol import DECODE, ENCODE, GENERATE, LOGITS, Adapter, Generator, Likely, Steerable
from vqcortex.adapters.zoo import zoo_names
from vqcortex.editing.footprint import derivative_along
from vqcortex.errors import ConfigError, ModelError, ShapeError, TokenError
from vqcortex.evaluation.doctor import random_grids, smooth_patterns

NAMES = {
    **{name: name for name in ["toy", "toy:3x2", *(f"zoo:{name}" for name in zoo_names())]},
    **{case.folder: case.name() for case in CASES},
}


@pytest.fixture(params=NAMES, scope="module")
def model(request) -> Adapter:
    return load_model(NAMES[request.param])


def able(model: Adapter, *abilities: str) -> None:
    if not set(abilities) <= model.abilities:
        pytest.skip(f"{model.family} cannot {' and '.join(abilities)}")


def grids(model: Adapter, n: int = 6) -> torch.Tensor:
    return random_grids(model, n, 0)


def shrunk(model: Adapter, n: int = 2) -> torch.Tensor:
    """Codes drawn towards their mean: pictures of random codes are clipped, and clipped pixels pass no gradient on."""
    embedded = model.embed(grids(model, n))
    return embedded.mean((2, 3), keepdim=True) + 0.3 * (embedded - embedded.mean((2, 3), keepdim=True))


def test_every_family_is_asked():
    asked = {load_model(name).family for name in ("toy", "zoo:fashion")} | {case.family for case in CASES}
    assert asked == set(FAMILIES)


def test_it_is_an_adapter_and_says_what_it_can(model):
    assert isinstance(model, Adapter)
    assert model.abilities <= {ENCODE, DECODE, GENERATE, LOGITS}
    assert model.abilities & {ENCODE, DECODE}
    assert isinstance(model, Generator) == (GENERATE in model.abilities)
    assert model.name.partition(":")[0] in (model.family, "zoo")


def test_the_levels_fill_the_grid_and_the_codebook(model):
    h, w = model.grid
    assert sum(level.length for level in model.levels) == h * w
    assert all(0 <= level.codes[0] < level.codes[1] <= model.k for level in model.levels)
    assert len({level.name for level in model.levels}) == len(model.levels)
    assert model.codebook.shape == (model.k, model.d)
    assert torch.isfinite(model.codebook).all()


def test_tokens_survive_the_codebook(model):
    tokens = grids(model)
    assert torch.equal(model.nearest(model.embed(tokens)), tokens)


def test_embedding_is_the_codebook_row(model):
    tokens = grids(model)
    embedded = model.embed(tokens)
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded[1, :, 0, 1], model.codebook[tokens[1, 0, 1]], rtol=0, atol=0)


def test_tokens_outside_the_codebook_are_refused(model):
    if model.family in ("toy", "zoo"):
        pytest.skip("their tokens are checked at the store's door")
    with pytest.raises(TokenError, match=rf"tokens span \[0, {model.k}\]"):
        model.embed(torch.tensor([[[0, model.k]]]))


@pytest.mark.parametrize("n", [1, 3, 7])
def test_pixels_are_colour_images_in_the_unit_range(model, n):
    able(model, DECODE)
    pixels = model.decode(model.embed(grids(model, n)))
    assert pixels.shape == (n, 3, *model.size)
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() < pixels.max() <= 1


@pytest.mark.parametrize("n", [1, 3, 7])
def test_tokens_of_any_number_of_images_are_legal_grids(model, n):
    able(model, ENCODE)
    tokens = model.encode(smooth_patterns(model.size, n, 0))
    assert tokens.shape == (n, *model.grid)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < model.k


def test_an_empty_batch_is_an_empty_result(model):
    empty = torch.zeros(0, *model.grid, dtype=torch.int64)
    embedded = model.embed(empty)
    assert embedded.shape == (0, model.d, *model.grid)
    assert model.nearest(embedded).shape == empty.shape
    if DECODE in model.abilities:
        assert model.decode(embedded).shape == (0, 3, *model.size)
    if ENCODE in model.abilities:
        assert model.encode(torch.zeros(0, 3, *model.size)).shape == empty.shape


def test_gradients_reach_every_position_of_the_embedding(model):
    able(model, DECODE)
    embedded = shrunk(model).requires_grad_()
    model.decode(embedded).square().sum().backward()
    assert (embedded.grad.abs().sum(1) > 0).all()


def test_weights_want_no_gradient_and_nothing_is_in_training_mode(model):
    module = getattr(model, "module", None)
    if module is None:
        pytest.skip("it has no network")
    assert not any(weight.requires_grad for weight in module.parameters())
    assert not any(part.training for part in module.modules())


def test_company_changes_no_token(model):
    able(model, ENCODE)
    pixels = smooth_patterns(model.size, 7, 0)
    alone = torch.cat([model.encode(one[None]) for one in pixels])
    assert torch.equal(model.encode(pixels), alone)
    assert torch.equal(model.encode(pixels.flip(0)), alone.flip(0))


def test_company_hardly_changes_a_picture(model):
    able(model, DECODE)
    embedded = model.embed(grids(model))
    alone = torch.cat([model.decode(one[None]) for one in embedded])
    torch.testing.assert_close(model.decode(embedded), alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("tall", "wide"), [(1, 3), (3, 2), (5, 5)])
def test_other_sizes_work_where_the_network_is_convolutional(model, tall, wide):
    if not isinstance(model, NetworkAdapter) or model.stride is None:
        pytest.skip("it has images of one size")
    able(model, ENCODE, DECODE)
    # A multiple of the stride that every decoder with attention or global norms still takes.
    size = (tall * model.stride, wide * model.stride)
    tokens = model.encode(smooth_patterns(size, 2, 0))
    assert tokens.shape == (2, tall, wide)
    assert model.decode(model.embed(tokens)).shape == (2, 3, *size)


def test_images_of_a_wrong_size_are_refused(model):
    if model.family in ("toy", "zoo"):
        pytest.skip("their pictures are resized at the source's door")
    able(model, ENCODE)
    with pytest.raises(ShapeError, match=r"images are \(\d+, \d+\) but"):
        model.encode(torch.zeros(1, 3, model.size[0] + 1, model.size[1]))


def test_logits_agree_with_the_tokens(model):
    able(model, LOGITS)
    pixels = smooth_patterns(model.size, 3, 0)
    logits = model.logits(pixels)
    assert logits.shape == (3, model.k, *model.grid)
    assert torch.equal(logits.argmax(1), model.encode(pixels))


def test_what_it_cannot_do_is_said(model):
    if ENCODE not in model.abilities:
        with pytest.raises(ModelError, match="cannot encode"):
            model.encode(torch.zeros(1, 3, *model.size))
    elif DECODE not in model.abilities:
        with pytest.raises(ModelError, match="cannot decode"):
            model.decode(model.embed(grids(model)))
    else:
        pytest.skip("it can do both")


def test_drawing_belongs_to_the_image_and_the_seed(model):
    able(model, GENERATE)
    ids = [f"x/{i}" for i in range(5)]
    concept = torch.arange(5) % len(model.concepts)
    together = model.generate(concept, ids, 3)
    alone = torch.cat([model.generate(concept[[i]], [ids[i]], 3) for i in range(5)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, model.generate(concept, ids, 4))
    assert together.shape == (5, *model.grid)
    assert 0 <= together.min() <= together.max() < model.k


def test_a_bias_steers_draws_and_nothing_else(model):
    able(model, GENERATE)
    if not isinstance(model, Steerable):
        pytest.skip(f"{model.family} takes no bias on its codes")
    concept, ids = torch.arange(3) % len(model.concepts), ["a", "b", "c"]
    before, identity = model.generate(concept, ids, 0), model.identity
    row, column = model.grid[0] - 1, model.grid[1] // 2
    forbidden = before[0, row, column]
    bias = torch.zeros(model.k, *model.grid)
    bias[forbidden, row, column] = -torch.inf
    steered = model.with_code_bias(bias)
    assert isinstance(steered, Steerable)
    after = steered.generate(concept, ids, 0)
    assert (after[:, row, column] != forbidden).all()
    # What was drawn before that position is drawn still.
    assert torch.equal(after[:, :row], before[:, :row])
    assert torch.equal(model.generate(concept, ids, 0), before)
    assert torch.equal(model.with_code_bias(torch.zeros_like(bias)).generate(concept, ids, 0), before)
    assert model.identity == identity != steered.identity
    assert torch.equal(steered.decode(steered.embed(before)), model.decode(model.embed(before)))
    if isinstance(model, Likely):
        logs, plain = (one.log_probabilities(before, concept) for one in (steered, model))
        assert (logs[:, forbidden, row, column] == -torch.inf).all()
        torch.testing.assert_close(logs.exp().sum(1), torch.ones(3, *model.grid))
        elsewhere = torch.ones(model.grid, dtype=torch.bool)
        elsewhere[row, column] = False
        torch.testing.assert_close(logs[..., elsewhere], plain[..., elsewhere])


def test_a_bias_alone_decides_where_it_leaves_one_code(model):
    able(model, GENERATE)
    if not isinstance(model, Steerable):
        pytest.skip(f"{model.family} takes no bias on its codes")
    concept, ids = torch.arange(2) % len(model.concepts), ["a", "b"]
    wanted = model.generate(concept, ids, 5)
    bias = torch.full((model.k, *model.grid), -torch.inf).scatter_(0, wanted[:1], 0.0)
    assert torch.equal(model.with_code_bias(bias).generate(concept, ids, 6), wanted[:1].expand_as(wanted))


class Repeat:
    """Forbids all but the code drawn first, once there is one; says what it was told."""

    identity = "repeat"

    def __init__(self, model):
        self.shape, self.told = (model.k, *model.grid), []

    def bias(self, drawn, places, place):
        self.told.append((drawn.shape[1], places.tolist(), place))
        found = torch.zeros(len(drawn), self.shape[0], dtype=torch.float64, device=drawn.device)
        if not drawn.shape[1]:
            return found
        return torch.full_like(found, -torch.inf).scatter_(1, drawn[:, :1], 0.0)


def test_a_steering_is_told_what_was_drawn_and_where(model):
    able(model, GENERATE)
    if not isinstance(model, Steerable):
        pytest.skip(f"{model.family} takes no bias on its codes")
    concept, ids = torch.arange(3) % len(model.concepts), ["a", "b", "c"]
    steering = Repeat(model)
    steered = model.with_steering(steering)
    drawn = steered.generate(concept, ids, 0).flatten(1)
    assert (drawn == drawn[:, :1]).all()
    assert steered.identity != model.identity
    n = drawn.shape[1]
    order = [place for _, _, place in steering.told[:n]]
    assert sorted(order) == list(range(n))
    assert [(count, places) for count, places, _ in steering.told[:n]] == [(at, order[:at]) for at in range(n)]
    if isinstance(model, Likely):
        logs = steered.log_probabilities(drawn.view(-1, *model.grid), concept).flatten(2)
        # One code is left everywhere but where the first was drawn.
        assert (logs.gather(1, drawn[:, None]).squeeze(1)[:, order[1:]].abs() < 1e-5).all()


def test_a_bias_that_cannot_be_added_is_refused(model):
    able(model, GENERATE)
    if not isinstance(model, Steerable):
        pytest.skip(f"{model.family} takes no bias on its codes")
    with pytest.raises(ShapeError, match=r"this model needs"):
        model.with_code_bias(torch.zeros(model.k + 1, *model.grid))
    with pytest.raises(ConfigError, match="NaN or plus infinity"):
        model.with_code_bias(torch.full((model.k, *model.grid), torch.inf))
    forbidden = torch.zeros(model.k, *model.grid)
    forbidden[:, 0, -1] = -torch.inf
    with pytest.raises(ConfigError, match=rf"leaves no code at position \(0, {model.grid[1] - 1}\)"):
        model.with_code_bias(forbidden)


def test_the_decoder_has_a_footprint(model):
    able(model, DECODE)
    count = model.grid[0] * model.grid[1]
    tokens = torch.randint(model.k, (1, *model.grid), generator=torch.Generator().manual_seed(0))
    embedded = model.embed(tokens).detach()
    ways = torch.randn(2, model.d, generator=torch.Generator().manual_seed(1)).to(embedded)
    found = derivative_along(model.decode, embedded, torch.tensor([0, count - 1]), ways)
    assert found.shape == (2, *model.size)
    assert found.isfinite().all()
    assert not embedded.requires_grad


def test_identity_is_stable_and_a_hash(model):
    assert len(model.identity) == 64
    assert load_model(model.name).identity == model.identity


def test_it_moves_and_comes_back(model):
    if not torch.cuda.is_available():
        assert model.to("cpu") is model
        return
    pixels = smooth_patterns(model.size, 3, 0)
    before = model.encode(pixels) if ENCODE in model.abilities else None
    model.to("cuda")
    assert model.device.type == "cuda"
    if before is not None:
        assert (model.encode(pixels.cuda()).cpu() == before).double().mean() > 0.99
    model.to("cpu")


@pytest.mark.parametrize("folder", [case.folder for case in CASES])
def test_a_plain_path_is_recognised(folder):
    case = next(case for case in CASES if case.folder == folder)
    options = f"?{case.options}" if case.options else ""
    found = load_model(f"{case.path}{options}")
    assert found.family == case.family
    assert found.identity == load_model(case.name()).identity
