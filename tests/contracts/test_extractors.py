"""What every extractor owes its caller, asked of every name in the registry."""

from dataclasses import replace

import pytest
import torch

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.extractors import EXTRACTORS
from vqcortex.extractors.checkpoint import TrainedExtractor, load_trained, settings_of
from vqcortex.extractors.protocol import build_extractor, see_with
from vqcortex.extractors.quality import evaluate_extractor
from vqcortex.extractors.train import TrainData, TrainSettings, train_extractor

NAMES = sorted(EXTRACTORS)
GRIDS = [(1, 1), (2, 3), (5, 5), (7, 7), (16, 16)]
D, CONCEPTS = 4, 3


def small(name, grid, concepts=CONCEPTS, d=D):
    """The default network of a grid, no wider than a test needs."""
    full = EXTRACTORS[name].default_settings(d, grid, concepts)
    hidden = getattr(full, "hidden", None)
    sizes = {"mlp": 32, "hidden": tuple(24 for _ in hidden) if isinstance(hidden, tuple) else 24}
    narrow = {"width": 16} | {key: size for key, size in sizes.items() if hasattr(full, key)}
    return see_with(build_extractor(name, d, grid, concepts, seed=0, **narrow), painted).eval()


def painted(embedded):
    """A decoder: every code is a tile of four pixels, its channels mixed into three colours."""
    mix = torch.linspace(-1, 1, 3 * embedded.shape[1], dtype=embedded.dtype).view(3, -1)
    colours = torch.einsum("cd,bdhw->bchw", mix, embedded).sigmoid()
    return colours.repeat_interleave(2, 2).repeat_interleave(2, 3)


def settled(net, embedded):
    """Give batch-norms the statistics of some images, as training would; fresh ones let signals die out."""
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    net.train()(embedded)
    return net.eval()


def sees(net):
    """True when every image's logits move with the image."""
    settled(net, images((4, 4), count=16))
    first, second = net(images((4, 4), seed=1)), net(images((4, 4), seed=2))
    return bool(((first - second).abs().amax(1) > 1e-3).all())


def images(grid, count=3, seed=0):
    return torch.randn(count, D, *grid, generator=torch.Generator().manual_seed(seed))


def test_all_architectures_are_offered():
    assert NAMES == ["conv10", "conv8", "pictures", "se_resnet", "transformer", "transformer_postnorm"]


@pytest.mark.parametrize("name", NAMES)
def test_none_is_offered_that_attends_over_the_batch(name):
    settings = EXTRACTORS[name].default_settings(D, (4, 4), CONCEPTS)
    assert not getattr(settings, "attends_over_batch", False)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_one_finite_logit_per_concept(name, grid):
    logits = small(name, grid)(images(grid))
    assert logits.shape == (3, CONCEPTS)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_position_moves_some_logit(name, grid):
    embedded = images(grid, count=1).double().requires_grad_()
    logits = small(name, grid).double()(embedded)
    moved = torch.zeros(1, *grid, dtype=torch.bool)
    for concept in range(CONCEPTS):
        (gradient,) = torch.autograd.grad(logits[:, concept].sum(), embedded, retain_graph=True)
        moved |= (gradient != 0).any(1)
    assert moved.all()


@pytest.mark.parametrize("name", NAMES)
def test_logits_change_with_the_image(name):
    assert sees(small(name, (4, 4)))


def test_a_network_that_attends_over_the_batch_would_be_caught():
    blind = build_extractor("transformer_postnorm", D, (4, 4), CONCEPTS, 0, attends_over_batch=True)
    assert not sees(blind)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (7, 7)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_company_and_order_change_nothing(name, grid):
    net, embedded = small(name, grid), images(grid, count=5)
    with torch.no_grad():
        together, order = net(embedded), torch.tensor([3, 0, 4, 1, 2])
        alone = torch.cat([net(one[None]) for one in embedded])
        torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(net(embedded[order]), together[order], rtol=1e-5, atol=1e-5)
        strange = torch.cat([embedded[:1], 100 * torch.ones_like(embedded[:2])])
        torch.testing.assert_close(net(strange)[0], together[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_double_precision_agrees_with_single(name):
    embedded = images((5, 5))
    single = small(name, (5, 5))(embedded)
    double = small(name, (5, 5)).double()(embedded.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_memory_order_of_the_input_changes_nothing(name):
    net, embedded = small(name, (5, 5)), images((5, 5))
    last = embedded.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(last), net(embedded), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_it_survives_saving(name, tmp_path):
    net = small(name, (2, 3))
    identity = TrainedExtractor(
        extractor=name, settings=settings_of(net), concepts=("a", "b", "c"), d=D, grid=(2, 3),
        model_identity="0" * 64, temperature=1.0, metrics={}, module=net,
    ).save_trained(tmp_path)  # fmt: skip
    again = load_trained(tmp_path, "0" * 64)
    assert again.identity == identity
    assert torch.equal(see_with(again.module, painted)(images((2, 3))), net(images((2, 3))))


@pytest.fixture(scope="module")
def toy_data():
    toy, labels = ToyAdapter(), torch.arange(560) % 8
    tokens = toy.generate(labels, [str(i) for i in range(560)], 0).to(torch.uint8)
    data = TrainData(
        tokens=tokens[:320], labels=labels[:320], validation_tokens=tokens[320:400], validation_labels=labels[320:400]
    )
    return toy, data, (tokens[400:], labels[400:])


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_the_concepts_of_the_toy_world(name, toy_data):
    toy, data, held_out = toy_data
    settings = TrainSettings(epochs=6, minibatch=32)
    net = see_with(build_extractor(name, 3, toy.grid, 8, seed=0), toy.decode)
    train_extractor(net, data, settings, toy.codebook)
    found = evaluate_extractor(net, toy.codebook, [held_out])
    assert found["top1"] > 0.4  # chance is 1/8


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_bit_for_bit(name, toy_data, tmp_path):
    toy, data, _ = toy_data
    few = replace(data, tokens=data.tokens[:64], labels=data.labels[:64])
    settings = TrainSettings(epochs=2, minibatch=32)

    def fresh():
        return see_with(build_extractor(name, 3, toy.grid, 8, seed=0, width=16), toy.decode)

    whole, halves = fresh(), fresh()
    train_extractor(whole, few, settings, toy.codebook)
    train_extractor(fresh(), few, replace(settings, epochs=1), toy.codebook, tmp_path / "run.pt")
    train_extractor(halves, few, settings, toy.codebook, tmp_path / "run.pt")
    two = halves.state_dict()
    assert all(torch.equal(value, two[key]) for key, value in whole.state_dict().items())
