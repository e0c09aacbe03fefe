"""What the one adapter class adds to a family's forward path."""

import pytest
import torch
from torch import nn

from vqcortex.adapters.codes import Choice, TableCodes
from vqcortex.adapters.network import Network, NetworkAdapter, exact_kernels, identity_of
from vqcortex.adapters.protocol import DECODE, ENCODE, LOGITS, Adapter, Level
from vqcortex.errors import ConfigError, ModelError, ShapeError, TokenError

CODES = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0]])


class Blocks(nn.Module):
    """A token is the mean colour of 4x4 pixels; `drift` moves latents when there is company, as kernels do."""

    def __init__(self, abilities=(ENCODE, DECODE), drift=0.0) -> None:
        super().__init__()
        self.codes = TableCodes(4, 3)
        self.codes.weight.data = CODES.clone()
        self.gain = nn.Parameter(torch.ones(()))
        self.drift, self.abilities, self.batches = drift, frozenset(abilities), []

    def prepare(self, pixels):
        return 2 * pixels - 1

    def choose(self, images) -> Choice:
        self.batches.append(len(images))
        latent = nn.functional.avg_pool2d((images + 1) / 2 * self.gain, 4)
        latent = latent + (self.drift if len(images) > 1 else 0)
        found = self.codes.nearest(latent)
        away = (latent[:, None] - self.codes.weight[None, :, :, None, None]).square().sum(2)
        return Choice(found.tokens, found.doubtful, -away if LOGITS in self.abilities else None)

    def decode(self, embedded):
        return nn.functional.interpolate(embedded * 2 - 1, scale_factor=4)

    def finish(self, decoded):
        return ((decoded + 1) / 2).clamp(0, 1)


def adapter(size=(8, 12), stride=4, levels=None, network=None, name="blocks") -> NetworkAdapter:
    return NetworkAdapter(
        name=name, family="blocks", network=network or Blocks(), size=size, stride=stride, levels=levels
    )


def pixels_of(n=5, size=(8, 12)):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(0))


def test_it_is_an_adapter_of_a_network():
    model = adapter()
    assert isinstance(model.network, Network)
    assert isinstance(model, Adapter)
    assert (model.grid, model.size, model.k, model.d) == ((2, 3), (8, 12), 4, 3)
    assert (model.concepts, model.abilities, model.family) == ((), frozenset({ENCODE, DECODE}), "blocks")
    assert model.device == torch.device("cpu")
    assert torch.equal(model.codebook, CODES)


def test_tokens_and_pixels_come_back():
    model = adapter()
    tokens = torch.randint(0, 4, (3, 2, 3), generator=torch.Generator().manual_seed(0))
    pixels = model.decode(model.embed(tokens))
    assert pixels.shape == (3, 3, 8, 12)
    assert torch.equal(model.encode(pixels), tokens)
    assert torch.equal(model.nearest(model.embed(tokens)), tokens)


def test_the_network_is_held_still():
    network = Blocks().train()
    adapter(network=network)
    assert not network.training
    assert not network.gain.requires_grad


def test_doubtful_images_are_encoded_alone(monkeypatch):
    """Where two codes are equally near, and rounding differs with the batch, the batch must not decide."""
    monkeypatch.setattr("vqcortex.adapters.network.encodes_alone", lambda device: False)
    pixels = pixels_of()
    pixels[2, :, :4, :4] = 0.5  # as far from black as from white
    shaky = adapter(network=Blocks(drift=1e-7))
    together = shaky.encode(pixels)
    assert shaky.network.batches == [5, 1]
    alone = torch.cat([shaky.encode(one[None]) for one in pixels])
    assert torch.equal(together, alone)
    # Without the doubt the batch would have decided.
    assert shaky.network.choose(2 * pixels - 1).tokens[2, 0, 0] != alone[2, 0, 0]


def test_images_without_a_doubt_are_encoded_together(monkeypatch):
    monkeypatch.setattr("vqcortex.adapters.network.encodes_alone", lambda device: False)
    model = adapter()
    model.encode(pixels_of())
    assert model.network.batches == [5]


def test_an_empty_batch_is_empty_all_the_way():
    model = adapter()
    tokens = model.encode(torch.zeros(0, 3, 8, 12))
    assert tokens.shape == (0, 2, 3)
    assert tokens.dtype == torch.int64
    embedded = model.embed(tokens)
    assert embedded.shape == (0, 3, 2, 3)
    assert model.nearest(embedded).shape == (0, 2, 3)
    assert model.decode(embedded).shape == (0, 3, 8, 12)
    assert model.network.batches == []


def test_an_empty_batch_of_another_size_keeps_its_size():
    model = adapter()
    assert model.encode(torch.zeros(0, 3, 16, 4)).shape == (0, 4, 1)
    assert model.decode(torch.zeros(0, 3, 4, 1)).shape == (0, 3, 16, 4)


def test_other_sizes_that_are_multiples_will_do():
    model = adapter()
    pixels = pixels_of(2, (16, 4))
    assert model.encode(pixels).shape == (2, 4, 1)
    assert model.decode(torch.zeros(2, 3, 4, 1)).shape == (2, 3, 16, 4)


@pytest.mark.parametrize("size", [(8, 10), (7, 12), (2, 4)])
def test_images_that_are_no_multiples_are_refused(size):
    message = rf"images are \({size[0]}, {size[1]}\) but sides must be multiples of 4 for 'blocks'; resize or crop"
    with pytest.raises(ShapeError, match=message):
        adapter().encode(torch.zeros(1, 3, *size))


def test_a_size_that_is_no_multiple_is_refused_with_one_that_is():
    with pytest.raises(ConfigError, match=r"size=10x10 is not a multiple of the 4 pixels .*; write \?size=8 after"):
        adapter(size=(10, 10))
    with pytest.raises(ConfigError, match=r"size=2x2 is not a multiple .*; write \?size=4 after"):
        adapter(size=(2, 2))


def test_a_model_needs_a_stride_or_levels():
    with pytest.raises(ConfigError, match="'blocks' needs a stride or levels; give the pixels per token side"):
        adapter(stride=None)


def test_a_model_of_one_size_refuses_others():
    levels = (Level(name="tokens", grid=(2, 3), codes=(0, 4)),)
    model = adapter(stride=None, levels=levels)
    assert model.encode(pixels_of()).shape == (5, 2, 3)
    assert model.encode(torch.zeros(0, 3, 8, 12)).shape == (0, 2, 3)
    assert model.decode(torch.zeros(0, 3, 2, 3)).shape == (0, 3, 8, 12)
    with pytest.raises(ShapeError, match=r"images are \(8, 8\) but 'blocks' takes \(8, 12\) only; resize them"):
        model.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ShapeError, match=r"codes have grid \(3, 2\) but 'blocks' decodes \(2, 3\) only"):
        model.decode(torch.zeros(1, 3, 3, 2))


def test_several_levels_make_one_row():
    levels = tuple(Level(name=name, grid=grid, codes=(0, 4)) for name, grid in (("top", (1, 1)), ("bottom", (2, 3))))
    assert adapter(stride=None, levels=levels).grid == (1, 7)


def test_tokens_outside_the_codebook_are_refused():
    with pytest.raises(TokenError, match=r"tokens span \[0, 4\] but this codebook holds indices \[0, 3\]"):
        adapter().embed(torch.tensor([[[0, 4]]]))


def test_half_a_model_says_which_half_it_lacks():
    reader, painter = (adapter(network=Blocks(abilities=[one])) for one in (ENCODE, DECODE))
    with pytest.raises(ModelError, match="'blocks' cannot decode, its files hold no such half; it can: encode"):
        reader.decode(torch.zeros(1, 3, 2, 3))
    with pytest.raises(ModelError, match="'blocks' cannot encode, its files hold no such half; it can: decode"):
        painter.encode(pixels_of())
    with pytest.raises(ModelError, match=r"'blocks' cannot logits.*this family chooses codes by distance: use encode"):
        reader.logits(pixels_of())


def test_logits_are_the_networks_own():
    model = adapter(network=Blocks(abilities=[ENCODE, LOGITS]))
    logits = model.logits(pixels_of())
    assert logits.shape == (5, 4, 2, 3)
    assert torch.equal(logits.argmax(1), model.encode(pixels_of()))
    assert model.logits(torch.zeros(0, 3, 8, 12)).shape == (0, 4, 2, 3)


def test_pixels_carry_gradients_to_the_codes():
    embedded = (torch.rand(2, 3, 2, 3) * 0.5 + 0.2).requires_grad_()
    adapter().decode(embedded).sum().backward()
    assert (embedded.grad == 16).all()


def test_identity_follows_weights_and_size_and_nothing_else():
    same = {adapter().identity, adapter(name="another").identity}
    assert len(same) == 1
    assert len(adapter().identity) == 64
    network = Blocks()
    network.gain.data += 1e-6
    other = {
        adapter(network=network).identity,
        adapter(size=(8, 8)).identity,
        adapter(network=Blocks().bfloat16()).identity,
        adapter(stride=None, levels=(Level(name="row", grid=(2, 3), codes=(0, 4)),)).identity,
    }
    assert len(other) == 4
    assert not same & other


def test_identity_sees_names_shapes_and_types():
    def module(**tensors):
        found = nn.Module()
        for name, tensor in tensors.items():
            found.register_buffer(name, tensor)
        return found

    zeros = torch.zeros(2, 2)
    found = [
        identity_of(module(**tensors), facts)
        for tensors, facts in [
            ({"a": zeros}, ""), ({"b": zeros}, ""), ({"a": zeros[0]}, ""), ({"a": zeros.view(4)}, ""),
            ({"a": zeros.int()}, ""), ({"a": zeros}, "more"), ({"a": zeros, "c": torch.zeros(0)}, ""),
            ({"a": zeros > 0}, ""), ({"a": zeros.bfloat16()}, ""),
        ]
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert identity_of(module(a=torch.arange(4.0).view(2, 2).T), "") == identity_of(
        module(a=torch.tensor([[0.0, 2], [1, 3]])), ""
    )


def test_in_half_precision_floats_stay_float32_outside():
    model = adapter(network=Blocks().bfloat16())
    assert model.dtype == torch.bfloat16
    tokens = model.encode(pixels_of())
    assert torch.equal(tokens, torch.cat([model.encode(one[None]) for one in pixels_of()]))
    embedded = model.embed(tokens)
    assert {embedded.dtype, model.codebook.dtype, model.decode(embedded).dtype} == {torch.float32}
    assert torch.equal(model.nearest(embedded), tokens)


def test_products_are_exact_inside_and_as_before_outside():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with exact_kernels():
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_moving_returns_the_model():
    model = adapter()
    assert model.to("cpu") is model


def test_a_processor_encodes_images_one_by_one():
    model = adapter()
    model.encode(pixels_of())
    assert model.network.batches == [1, 1, 1, 1, 1]
