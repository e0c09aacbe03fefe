import pytest
import torch

from vqcortex.adapters.hf import wrap


@pytest.fixture(scope="module")
def official():
    from transformers import JanusVQVAE, JanusVQVAEConfig

    torch.manual_seed(0)
    config = JanusVQVAEConfig(base_channels=32, channel_multiplier=[1, 1, 2], num_res_blocks=1, latent_channels=6,
                              embed_dim=5, num_embeddings=40, num_patches=6)  # fmt: skip
    model = JanusVQVAE(config)
    with torch.no_grad():
        model.quantize.embedding.weight.normal_().mul_(torch.linspace(0.2, 3, 40)[:, None])
    return model


@torch.no_grad()
def test_a_tokenizer_of_other_sizes_gives_the_library_s_numbers(official):
    model = wrap(official)
    assert (model.k, model.d, model.size, model.grid) == (40, 5, (24, 24), (6, 6))
    pixels = torch.rand(2, 3, 24, 24)
    tokens = official.encode(2 * pixels - 1).image_tokens.view(2, 6, 6)
    assert torch.equal(model.encode(pixels), tokens)
    found = (official.decode(tokens.flatten(1)) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(model.decode(model.embed(tokens)), found)


def test_codes_are_looked_up_at_unit_length_and_found_again(official):
    model = wrap(official)
    torch.testing.assert_close(model.codebook.norm(dim=1), torch.ones(40))
    tokens = torch.arange(40).view(1, 5, 8)
    assert torch.equal(model.nearest(model.embed(tokens)), tokens)
    assert torch.equal(model.nearest(7 * model.embed(tokens)), tokens)
