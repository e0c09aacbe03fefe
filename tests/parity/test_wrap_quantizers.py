"""Quantizers of vector-quantize-pytorch inside a model of one's own: the library's ids and the library's output."""

import pytest
import torch
from torch import nn

library = pytest.importorskip("vector_quantize_pytorch", reason="needs vector-quantize-pytorch")

from vqcortex.adapters.protocol import split_levels  # noqa: E402
from vqcortex.adapters.quantizers import BESIDE, LibraryQuantizer  # noqa: E402
from vqcortex.adapters.wrap import wrap_model  # noqa: E402

SIZE = (16, 24)
MAKERS = {
    "VectorQuantize": lambda: library.VectorQuantize(8, 32),
    "VectorQuantize, learnable": lambda: library.VectorQuantize(8, 32, learnable_codebook=True, ema_update=False),
    "VectorQuantize, cosine": lambda: library.VectorQuantize(8, 32, use_cosine_sim=True),
    "VectorQuantize, projected": lambda: library.VectorQuantize(8, 32, codebook_dim=4),
    "VectorQuantize, projected, normed, cosine": lambda: library.VectorQuantize(
        8, 32, codebook_dim=4, layernorm_after_project_in=True, use_cosine_sim=True
    ),
    "VectorQuantize, image": lambda: library.VectorQuantize(8, 32, accept_image_fmap=True),
    "VectorQuantize, channel first": lambda: library.VectorQuantize(8, 32, channel_last=False),
    "VectorQuantize, heads": lambda: library.VectorQuantize(8, 32, heads=2, codebook_dim=4),
    "VectorQuantize, heads apart": lambda: library.VectorQuantize(
        8, 32, heads=4, codebook_dim=3, separate_codebook_per_head=True, accept_image_fmap=True
    ),
    "ResidualVQ": lambda: library.ResidualVQ(dim=8, num_quantizers=3, codebook_size=32),
    "ResidualVQ, shared": lambda: library.ResidualVQ(dim=8, num_quantizers=3, codebook_size=32, shared_codebook=True),
    "ResidualVQ, sizes": lambda: library.ResidualVQ(dim=8, codebook_size=(32, 16, 5)),
    "ResidualVQ, projected": lambda: library.ResidualVQ(dim=8, num_quantizers=3, codebook_size=32, codebook_dim=4),
    "ResidualVQ, cosine": lambda: library.ResidualVQ(dim=8, num_quantizers=2, codebook_size=32, use_cosine_sim=True),
    "ResidualVQ, dropout": lambda: library.ResidualVQ(dim=8, num_quantizers=3, codebook_size=32, quantize_dropout=True),
    "FSQ": lambda: library.FSQ([8, 5, 4], dim=8),
    "FSQ, bare": lambda: library.FSQ([8, 5, 4, 3, 3, 6, 7, 5]),
    "FSQ, symmetric": lambda: library.FSQ([8, 5, 2], dim=8, preserve_symmetry=True),
    "FSQ, clamped": lambda: library.FSQ([8, 5, 4], dim=8, bound_hard_clamp=True),
    "FSQ, symmetric, clamped": lambda: library.FSQ([4, 5], dim=8, preserve_symmetry=True, bound_hard_clamp=True),
    "FSQ, codebooks": lambda: library.FSQ([8, 5], dim=8, num_codebooks=3),
    "FSQ, channel first": lambda: library.FSQ([8, 5, 4], dim=8, channel_first=True),
    "FSQ, turned": lambda: library.FSQ([5, 5, 5], dim=8, num_codebooks=2, orthogonal_rotation=True),
    "LFQ": lambda: library.LFQ(dim=8, codebook_size=256),
    "LFQ, projected": lambda: library.LFQ(dim=8, codebook_size=64),
    "LFQ, codebooks": lambda: library.LFQ(dim=8, codebook_size=16, num_codebooks=2),
    "LFQ, spherical": lambda: library.LFQ(dim=8, codebook_size=64, spherical=True),
    "LFQ, scaled, clamped": lambda: library.LFQ(dim=8, codebook_scale=0.5, soft_clamp_input_value=3.0),
    "LFQ, cosine in": lambda: library.LFQ(dim=8, codebook_size=16, cosine_sim_project_in=True),
    "LFQ, channel first": lambda: library.LFQ(dim=8, codebook_size=64, channel_first=True),
    "LFQ, turned": lambda: library.LFQ(dim=8, codebook_size=64, orthogonal_rotation=True),
    "SimVQ": lambda: library.SimVQ(dim=8, codebook_size=32),
    "SimVQ, channel first": lambda: library.SimVQ(
        dim=8, codebook_size=32, channel_first=True, rotation_trick=False, frozen_codebook_dim=4
    ),
    "ResidualFSQ": lambda: library.ResidualFSQ(levels=[5, 3, 4], num_quantizers=3, dim=8),
    "ResidualFSQ, channel first": lambda: library.ResidualFSQ(
        levels=[5, 3, 4], num_quantizers=2, dim=8, is_channel_first=True
    ),
    "ResidualFSQ, soft": lambda: library.ResidualFSQ(
        levels=[5, 3, 4], num_quantizers=2, dim=8, bound_hard_clamp=False, soft_clamp_input_value=2.0
    ),
    "ResidualLFQ": lambda: library.ResidualLFQ(dim=8, num_quantizers=3, codebook_size=16),
    "ResidualSimVQ": lambda: library.ResidualSimVQ(dim=8, num_quantizers=2, codebook_size=32, channel_first=True),
}


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 4, stride=4)
        self.decoder = nn.ConvTranspose2d(8, 3, 4, stride=4)


@pytest.fixture(scope="module", params=MAKERS)
def case(request):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        halves, quantizer = Halves().eval(), MAKERS[request.param]().eval()
        # Codes as spread out as the latents, so that many are used.
        for name, tensor in quantizer.state_dict().items():
            if name.endswith(("embed", "frozen_codebook")) and "cosine" not in request.param:
                tensor.normal_()
        pixels = torch.rand(5, 3, *SIZE)
    encoder = nn.Sequential(halves.encoder, nn.InstanceNorm2d(8))
    model = wrap_model(encoder, quantizer, halves.decoder, size=SIZE, name=request.param)
    with torch.no_grad():
        latent = encoder(2 * pixels - 1)
        rows = latent.flatten(2).transpose(1, 2)
        kind = request.param.split(",")[0]
        first = "channel first" in request.param or request.param == "ResidualSimVQ"
        if "image" in request.param or "apart" in request.param:
            quantized, ids = quantizer(latent)[:2]
        else:
            quantized, ids = quantizer(latent.flatten(2) if first else rows)[:2]
            quantized = quantized if first else quantized.transpose(1, 2)
        if kind == "ResidualFSQ" and first:
            ids = ids.transpose(1, 2)
        quantized = quantized.reshape(latent.shape)
        ids = ids.reshape(5, 4, 6, -1).movedim(-1, 0).long()
    return model, pixels, latent, quantized, ids


def in_levels(model, tokens):
    if len(model.levels) == 1:
        return [tokens]
    return [part - level.codes[0] for part, level in zip(split_levels(tokens, model.levels), model.levels, strict=True)]


def test_the_ids_are_the_librarys(case):
    model, pixels, _, _, ids = case
    ours = in_levels(model, model.encode(pixels))
    assert len(ours) == len(ids)
    for stage, one in enumerate(ours):
        assert torch.equal(one, ids[stage])
    assert len(ids.unique()) > 3


def test_our_own_rule_chooses_the_same(case):
    """`choose` asks the library; this asks the codes, which `nearest` and the doubts rely on."""
    model, _, latent, _, ids = case
    for stage, choice in enumerate(model.network.quantizer.choose(latent)):
        assert torch.equal(choice.tokens, ids[stage])
        assert not choice.doubtful.any()


def test_codes_joined_are_the_librarys_output(case):
    model, pixels, _, quantized, _ = case
    embedded = model.embed(model.encode(pixels))
    grids = [embedded] if len(model.levels) == 1 else split_levels(embedded, model.levels)
    torch.testing.assert_close(model.network.quantizer.joined(grids), quantized, atol=1e-5, rtol=1e-5)
    decoder = next(one for one in model.network.used if isinstance(one, nn.ConvTranspose2d))
    torch.testing.assert_close(model.network.decode(embedded), decoder(quantized), atol=1e-5, rtol=1e-5)


def test_tokens_survive_the_codes(case):
    model, pixels, _, _, _ = case
    tokens = model.encode(pixels)
    assert torch.equal(model.nearest(model.embed(tokens)), tokens)
    assert model.codebook.shape == (model.k, model.d)
    assert torch.equal(model.embed(tokens)[1, :, 0, 2], model.codebook[tokens[1, 0, 2]])


def test_gradients_reach_every_code(case):
    model, pixels, _, _, _ = case
    embedded = model.embed(model.encode(pixels)).requires_grad_()
    model.network.decode(embedded).square().sum().backward()
    assert (embedded.grad.abs().sum(1) > 0).all()


def test_company_changes_no_token(case):
    model, pixels, _, _, _ = case
    assert torch.equal(model.encode(pixels), torch.cat([model.encode(one[None]) for one in pixels]))


def test_the_grid_was_found(case):
    model, _, _, _, ids = case
    if len(ids) == 1:
        assert (model.grid, model.stride) == ((4, 6), 4)
    else:
        assert model.grid == (1, 24 * len(ids))
        assert {level.grid for level in model.levels} == {(4, 6)}
        kind = model.levels[0].name.split()[0]
        assert kind == ("head" if model.network.quantizer.joins == BESIDE else "stage")


def test_stages_that_share_a_codebook_share_its_tokens():
    quantizer = library.ResidualVQ(dim=8, num_quantizers=3, codebook_size=32, shared_codebook=True)
    model = wrap_model(nn.Conv2d(3, 8, 4, 4), quantizer, nn.ConvTranspose2d(8, 3, 4, 4), size=SIZE)
    assert [level.codes for level in model.levels] == [(0, 32)] * 3
    assert model.k == 32
    apart = library.ResidualVQ(dim=8, codebook_size=(32, 16, 5))
    model = wrap_model(nn.Conv2d(3, 8, 4, 4), apart, nn.ConvTranspose2d(8, 3, 4, 4), size=SIZE)
    assert [level.codes for level in model.levels] == [(0, 32), (32, 48), (48, 53)]
    assert model.k == 53


def test_a_dry_run_teaches_the_quantizer_nothing():
    quantizer = library.VectorQuantize(8, 32, decay=0.1).train()
    before = quantizer.codebook.clone()
    model = wrap_model(nn.Conv2d(3, 8, 4, 4), quantizer, nn.ConvTranspose2d(8, 3, 4, 4), size=SIZE)
    model.encode(torch.rand(2, 3, *SIZE))
    assert torch.equal(quantizer.codebook, before)
    assert not quantizer.training


def test_a_big_look_up_free_codebook_is_never_written_down():
    quantizer = library.LFQ(dim=18)
    model = wrap_model(nn.Conv2d(3, 18, 4, 4), quantizer, nn.ConvTranspose2d(18, 3, 4, 4), size=SIZE)
    assert model.k == 2**18
    assert isinstance(model.network.quantizer, LibraryQuantizer)
    tokens = model.encode(torch.rand(2, 3, *SIZE))
    assert torch.equal(model.nearest(model.embed(tokens)), tokens)
