import copy

import pytest
import torch

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, ModelError
from vqcortex.extractors.checkpoint import weights_of
from vqcortex.extractors.protocol import build_extractor, see_with


def net_for(decode, **sizes):
    return see_with(build_extractor("pictures", 3, (4, 4), 8, seed=0, **sizes), decode).eval()


def codes(count=2, seed=0):
    toy = ToyAdapter()
    return toy.embed(torch.randint(8, (count, *toy.grid), generator=torch.Generator().manual_seed(seed)))


def test_it_says_that_it_needs_a_decoder():
    with pytest.raises(ModelError, match="no decoder to look through; call look_through"):
        build_extractor("pictures", 3, (4, 4), 8, seed=0)(torch.zeros(2, 3, 4, 4))


def test_only_what_the_decoder_shows_can_matter():
    toy = ToyAdapter()
    grey = net_for(lambda embedded: toy.decode(embedded).mean(1, keepdim=True).expand(-1, 3, -1, -1))
    first = codes()
    assert torch.equal(grey(first), grey(first.flip(1)))  # the channels are the colours
    seen = net_for(toy.decode)
    assert not torch.equal(seen(first), seen(first.flip(1)))


def test_gradients_reach_the_codes_through_the_decoder():
    embedded = (0.1 + 0.8 * codes()).requires_grad_()  # a clamp at 0 and 1 passes no gradient on
    (gradient,) = torch.autograd.grad(net_for(ToyAdapter().decode)(embedded).sum(), embedded)
    assert (gradient != 0).any(1).all()


def test_large_pictures_are_reduced_and_keep_their_shape():
    seen = []

    def large(embedded):
        return embedded.repeat_interleave(10, 2).repeat_interleave(30, 3)

    net = net_for(large, side=24)
    net.stages[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    net(codes())
    assert seen == [(2, 3, 8, 24)]


def test_the_decoder_is_neither_saved_nor_copied():
    toy = ToyAdapter()
    net = net_for(toy.decode, width=4)
    assert all(name.startswith(("stages", "head")) for name in weights_of(net))
    twin = copy.deepcopy(net)
    assert twin.window is net.window
    assert torch.equal(twin(codes()), net(codes()))


def test_an_extractor_that_needs_no_decoder_is_left_alone():
    plain = build_extractor("conv8", 3, (4, 4), 8, seed=0, width=8)
    assert see_with(plain, ToyAdapter().decode) is plain


def test_bad_sizes_are_all_named():
    with pytest.raises(ConfigError, match=r"(?s)width=0.*side=4"):
        build_extractor("pictures", 3, (4, 4), 8, seed=0, width=0, side=4)
