import pytest
import torch

from vqcortex.adapters.hf import wrap
from vqcortex.adapters.hf_emu3 import CLIP_MEAN, CLIP_SPREAD


@pytest.fixture(scope="module")
def make():
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    def make(**changed):
        torch.manual_seed(0)
        sizes = {"base_channels": 32, "channel_multiplier": [1, 1, 2], "num_res_blocks": 1, "codebook_size": 40}
        widths = {"latent_channels": 5, "embed_dim": 5, "attn_resolutions": [2], "hidden_size": 64}
        config = Emu3VQVAEConfig(**sizes, **widths, **changed)
        return Emu3VQVAE(config)

    return make


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_a_tokenizer_of_other_sizes_gives_the_library_s_numbers(make, frames):
    official = make(temporal_downsample_factor=frames)
    model = wrap(official)
    assert (model.k, model.d, model.grid) == (40, 5, (64, 64))
    pixels = torch.rand(2, 3, 16, 24)
    mean, spread = (torch.tensor(one)[:, None, None] for one in (CLIP_MEAN, CLIP_SPREAD))
    sizes = torch.tensor([[16, 24]] * 2)
    tokens = torch.stack(list(official.encode((pixels - mean) / spread, image_sizes=sizes).image_tokens))
    assert torch.equal(model.encode(pixels), tokens)
    found = (official.decode(tokens) * spread + mean).clamp(0, 1)
    torch.testing.assert_close(model.decode(model.embed(tokens)), found)


def test_the_number_of_heads_is_part_of_the_identity(make):
    one, two = wrap(make()), wrap(make(num_attention_heads=2))
    same = {name: tensor for name, tensor in one.module.state_dict().items() if name != "settings"}
    assert all(torch.equal(tensor, two.module.state_dict()[name]) for name, tensor in same.items())
    assert one.identity != two.identity


def test_every_frame_s_way_back_to_the_codes_is_open(make):
    model = wrap(make())
    embedded = torch.randn(1, 5, 3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.network.decode(embedded).square().sum(), embedded)
    assert gradient.abs().amax(1).gt(0).all()
