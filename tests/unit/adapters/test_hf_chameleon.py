import pytest
import torch

from vqcortex.adapters.hf import wrap
from vqcortex.adapters.hf_chameleon import KIND
from vqcortex.errors import ModelError


@pytest.fixture(scope="module")
def official():
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    torch.manual_seed(0)
    config = ChameleonVQVAEConfig(base_channels=32, channel_multiplier=[1, 1, 2], num_res_blocks=1, latent_channels=6,
                                  embed_dim=5, num_embeddings=40, resolution=24)  # fmt: skip
    return ChameleonVQVAE(config)


@torch.no_grad()
def test_a_tokenizer_of_other_sizes_gives_the_library_s_tokens(official):
    model = wrap(official)
    assert (model.k, model.d, model.size, model.grid) == (40, 5, (24, 24), (6, 6))
    pixels = torch.rand(3, 3, 24, 16)
    found = official.encode(pixels * 255 * 0.0078 - 1).image_tokens
    assert torch.equal(model.encode(pixels), found.view(3, 6, 4))


def test_there_is_no_decoder(official):
    model = wrap(official)
    with pytest.raises(ModelError, match="'Chameleon' cannot decode, its files hold no such half"):
        model.network.decode(torch.zeros(1, 5, 2, 2))


def test_the_decoder_of_the_original_checkpoint_is_left_out():
    assert KIND.left_out == ("decoder.", "loss.")
