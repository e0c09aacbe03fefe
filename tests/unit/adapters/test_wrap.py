"""Bring your own model: what is taken, what is found, what is refused."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import Adapter, Level
from vqcortex.adapters.wrap import wrap_model
from vqcortex.errors import ConfigError, ModelError, ShapeError

SIZE = (8, 12)
CODES = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])


def shrink(images):
    return F.avg_pool2d(images, 4)


def paint(codes):
    return F.interpolate(codes, scale_factor=4)


def pixels_of(n=5, size=SIZE):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(0))


def slow_tokens(pixels, codes=CODES):
    """Nearest colours of 4x4 squares, one by one."""
    rows = shrink(pixels).permute(0, 2, 3, 1)
    return (rows[..., None, :] - codes).norm(dim=-1).argmin(-1)


def brightest(latent):
    return latent.argmax(1)


def looked_up(tokens):
    return CODES[tokens].permute(0, 3, 1, 2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 6, 4, stride=4), nn.ConvTranspose2d(6, 3, 4, stride=4)
        self.codes = nn.Embedding(20, 6)

    def encode(self, images):
        return self.down(images)

    def decode(self, codes):
        return self.up(codes)


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


# ---------------------------------------------------------------------------------------------------------------------
# Quantizers


@pytest.mark.parametrize(
    "make", [torch.clone, nn.Parameter, nn.Embedding.from_pretrained], ids=["tensor", "parameter", "embedding"]
)
def test_a_codebook_is_enough(make):
    model = wrap_model(shrink, make(CODES), paint, size=SIZE, pixels="unit")
    assert isinstance(model, Adapter)
    assert (model.grid, model.k, model.d, model.stride, model.family) == ((2, 3), 5, 3, 4, "wrapped")
    pixels = pixels_of()
    assert torch.equal(model.encode(pixels), slow_tokens(pixels))
    assert torch.equal(model.codebook, CODES)
    tokens = model.encode(pixels)
    assert torch.equal(model.decode(model.embed(tokens)), paint(CODES[slow_tokens(pixels)].permute(0, 3, 1, 2)))


def test_a_rule_of_ones_own_is_followed():
    def farthest(latent):
        return (latent[:, None] - CODES[None, :, :, None, None]).norm(dim=2).argmax(1)

    model = wrap_model(shrink, farthest, paint, size=SIZE, pixels="unit", codebook=CODES)
    tokens = model.encode(pixels_of())
    assert torch.equal(tokens, farthest(shrink(pixels_of())))
    assert not torch.equal(tokens, slow_tokens(pixels_of()))


def test_a_rule_may_see_other_channels_than_codes_have():
    model = wrap_model(shrink, brightest, lambda codes: paint(codes[:, :1]), size=SIZE, codebook=torch.eye(3, 7))
    assert (model.k, model.d) == (3, 7)
    assert torch.equal(model.encode(pixels_of()), shrink(pixels_of()).argmax(1))
    assert model.decode(model.embed(model.encode(pixels_of()))).shape == (5, 3, *SIZE)


def test_a_pair_of_functions_says_how_to_choose_and_to_look_up():
    for codebook in (5, CODES):
        model = wrap_model(shrink, (brightest, looked_up), paint, size=SIZE, pixels="unit", codebook=codebook)
        assert torch.equal(model.codebook, CODES)
        assert torch.equal(model.encode(pixels_of()), brightest(shrink(pixels_of())))


def test_an_adapter_is_what_load_model_takes():
    model = wrap_model(shrink, CODES, paint, size=SIZE)
    assert load_model(model) is model


# ---------------------------------------------------------------------------------------------------------------------
# Ranges, grids, levels


@pytest.mark.parametrize(
    ("pixels", "low", "high"), [("signed", -1, 1), ("unit", 0, 1), ((-0.5, 0.5), -0.5, 0.5), ((0, 255), 0, 255)]
)
def test_the_parts_see_their_own_range(pixels, low, high):
    seen = []

    def look(images):
        seen.append(images)
        return shrink(images)

    model = wrap_model(look, low + CODES * (high - low), paint, size=SIZE, pixels=pixels)
    given = pixels_of()
    tokens = model.encode(given)
    torch.testing.assert_close(torch.cat(seen[-len(given) :]), low + given * (high - low))
    assert torch.equal(tokens, slow_tokens(given))
    torch.testing.assert_close(model.decode(model.embed(tokens)), paint(CODES[tokens].permute(0, 3, 1, 2)))


def test_other_multiples_of_the_stride_will_do():
    model = wrap_model(shrink, CODES, paint, size=SIZE, pixels="unit")
    assert model.encode(pixels_of(2, (16, 4))).shape == (2, 4, 1)


def test_a_grid_that_is_no_even_part_of_the_image_is_of_one_size_only():
    model = wrap_model(
        lambda x: F.adaptive_avg_pool2d(x, (3, 5)), CODES, lambda c: F.interpolate(c, SIZE), size=SIZE, pixels="unit"
    )
    assert (model.grid, model.stride) == ((3, 5), None)
    assert model.decode(model.embed(model.encode(pixels_of()))).shape == (5, 3, *SIZE)
    with pytest.raises(ShapeError, match=r"takes .* only"):
        model.encode(pixels_of(1, (16, 24)))


def test_grey_pictures_become_colour():
    model = wrap_model(lambda x: shrink(x)[:, :1], torch.tensor([[0.0], [1.0]]), paint, size=SIZE, pixels="unit")
    assert model.decode(model.embed(model.encode(pixels_of()))).shape == (5, 3, *SIZE)


LEVELS = (Level(name="top", grid=(1, 2), codes=(0, 2)), Level(name="bottom", grid=(2, 2), codes=(2, 5)))


def row(images):
    """Two grids as one row: a coarse one and a fine one."""
    return torch.cat([F.adaptive_avg_pool2d(images, grid.grid).flatten(2) for grid in LEVELS], 2)[:, :, None]


def test_a_row_of_levels_keeps_each_to_its_codes():
    def both(codes):
        return F.interpolate(codes[..., 2:].reshape(len(codes), 3, 2, 2), SIZE)

    model = wrap_model(row, CODES, both, size=SIZE, pixels="unit", levels=LEVELS)
    assert (model.grid, model.levels, model.k) == ((1, 6), LEVELS, 5)
    tokens = model.encode(pixels_of(20))
    assert tokens[..., :2].max() < 2 <= tokens[..., 2:].min()
    assert torch.equal(model.nearest(model.embed(tokens)), tokens)
    assert torch.equal(model.codebook, CODES)
    shared = tuple(Level(name=level.name, grid=level.grid, codes=(0, 5)) for level in LEVELS)
    free = wrap_model(row, CODES, both, size=SIZE, pixels="unit", levels=shared)
    latent = row(pixels_of(20)).permute(0, 2, 3, 1)
    assert torch.equal(free.encode(pixels_of(20)), (latent[..., None, :] - CODES).norm(dim=-1).argmin(-1))


# ---------------------------------------------------------------------------------------------------------------------
# Modules


def test_modules_are_held_still_and_decide_the_identity(net):
    ways = {
        "modules": (net.down, net.up),
        "methods": (net.encode, net.decode),
        "functions": (lambda x: net.down(x), lambda c: net.decode(c)),
        "partial": (functools.partial(net.encode), functools.partial(Net.decode, net)),
    }
    for encoder, decoder in ways.values():
        net.train().requires_grad_(True)
        model = wrap_model(encoder, net.codes, decoder, size=SIZE)
        assert not net.down.training
        assert not net.down.weight.requires_grad
        before = model.identity
        net.down.weight.data += 0.01
        assert wrap_model(encoder, net.codes, decoder, size=SIZE).identity != before
    assert len(model.identity) == 64


def test_a_model_in_half_precision_is_fed_half_precision(net):
    net.bfloat16()
    model = wrap_model(net.encode, net.codes, net.decode, size=SIZE)
    assert model.dtype == torch.bfloat16
    assert model.decode(model.embed(model.encode(pixels_of()))).dtype == torch.float32


def test_company_changes_no_token(net):
    model = wrap_model(net.encode, net.codes, net.decode, size=SIZE)
    assert torch.equal(model.encode(pixels_of()), torch.cat([model.encode(one[None]) for one in pixels_of()]))


def test_gradients_reach_the_codes(net):
    model = wrap_model(net.encode, net.codes, net.decode, size=SIZE, pixels=(-9.0, 9.0))
    embedded = model.embed(model.encode(pixels_of())).requires_grad_()
    model.decode(embedded).square().sum().backward()
    assert (embedded.grad.abs().sum(1) > 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def broken(_):
    raise RuntimeError("out of\nluck")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder": 3}, "encoder is a int, which cannot be called; pass a module or a function"),
        ({"decoder": None}, "decoder is a NoneType, which cannot be called"),
        ({"quantizer": 3}, r"the quantizer is a int; pass a codebook \(k, d\), a quantizer of vector-quantize-pytorch"),
        ({"quantizer": shrink}, "is a function; give its codes too: codebook="),
        ({"quantizer": (shrink, paint)}, "does not say how many codes there are; give codebook=K"),
        ({"codebook": CODES}, "the quantizer brings its codes itself; leave codebook= out"),
        ({"quantizer": CODES[0]}, r"the codebook is a float32 tensor \(3,\); it must be of real numbers \(k, d\)"),
        ({"quantizer": CODES.long()}, r"the codebook is a int64 tensor \(5, 3\); it must be of real numbers"),
        ({"quantizer": CODES / 0}, "the codebook holds numbers that are NaN or infinite"),
        ({"quantizer": (shrink, looked_up), "codebook": CODES + 1}, "holds other codes than embed returns"),
        ({"pixels": "signd"}, "pixels='signd' is no range; write 'signed', 'unit', or"),
        ({"pixels": (1.0, 1.0)}, r"pixels=\(1\.0, 1\.0\) is no range"),
        ({"size": (0, 8)}, r"size=\(0, 8\) is no height and width in pixels"),
        ({"levels": LEVELS}, r"levels= has 6 positions but the latent's grid is \(2, 3\), of 1 stage"),
    ],
    ids=lambda value: None if isinstance(value, dict) else "",
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(changed, message):
    given = {"encoder": shrink, "quantizer": CODES, "decoder": paint, "size": SIZE, **changed}
    with pytest.raises(ConfigError, match=message):
        wrap_model(given.pop("encoder"), given.pop("quantizer"), given.pop("decoder"), **given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder": broken}, r"the encoder of 'mine' fails on images \(2, 3, 8, 12\): out of luck$"),
        ({"encoder": lambda x: (x, x)}, r"the encoder of 'mine' returned a tuple for images .*must return latents"),
        ({"encoder": lambda x: x.mean((2, 3))}, r"returned a float32 tensor \(2, 3\) for images"),
        ({"encoder": lambda x: shrink(x) / 0}, "returned numbers that are NaN or infinite; check its weights"),
        ({"encoder": lambda x: shrink(x)[:, :2]}, "returned latents of 2 channels but the codes have 3 numbers"),
        ({"decoder": broken}, r"the decoder of 'mine' fails on codes \(2, 3, 2, 3\): out of luck$"),
        ({"decoder": lambda c: c}, r"the decoder of 'mine' returned a float32 tensor \(2, 3, 2, 3\); it must return"),
        ({"decoder": lambda c: None}, "the decoder of 'mine' returned a NoneType"),
        ({"quantizer": lambda x: (x, x), "codebook": CODES}, r"rule returned a tuple for latents .*a token per"),
        ({"quantizer": broken, "codebook": CODES}, "the quantizer of 'mine' fails on the encoder's latents: out of"),
        ({"quantizer": lambda x: x[:, 0], "codebook": CODES}, r"returned a float32 tensor \(2, 2, 3\) for latents"),
        ({"quantizer": (shrink, lambda t: CODES[t]), "codebook": 5}, r"embed returned a float32 tensor \(1, 1, 5, 3\)"),
    ],
    ids=lambda value: None if isinstance(value, dict) else "",
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(changed, message):
    given = {"encoder": shrink, "quantizer": CODES, "decoder": paint, "size": SIZE, "name": "mine", **changed}
    with pytest.raises(ModelError, match=message):
        wrap_model(given.pop("encoder"), given.pop("quantizer"), given.pop("decoder"), **given)


@pytest.mark.parametrize(("first", "second"), [((0, 2), (3, 5)), ((0, 2), (2, 4)), ((1, 2), (2, 5))])
def test_levels_whose_codes_leave_a_gap_are_refused(first, second):
    levels = [Level(name="top", grid=(1, 2), codes=first), Level(name="bottom", grid=(2, 2), codes=second)]
    with pytest.raises(ConfigError, match=r"but the codebook has 5; they must be equal to .* or follow one another"):
        wrap_model(row, CODES, paint, size=SIZE, levels=levels)
