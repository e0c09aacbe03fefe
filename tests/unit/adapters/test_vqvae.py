"""The VQ-VAE family."""

import torch

from vqcortex.adapters import vqvae
from vqcortex.adapters.vqvae import VQVAE, VQVAESettings


def small(seed: int = 0) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE(VQVAESettings(side=8, codes=16, width=4, narrow=4, wide=8, blocks=1)).eval()


def images(n: int = 12) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_shapes_follow_the_settings():
    model = small()
    tokens = model.tokens_of(images())
    assert tokens.shape == (12, 2, 2)
    assert model.embed(tokens).shape == (12, 4, 2, 2)
    assert model.decoder(model.embed(tokens)).shape == (12, 1, 8, 8)


def test_tokens_are_the_nearest_codes_by_the_naive_formula():
    model = small()
    latent = model.encoder(images())
    for image, grid in zip(latent, model.tokens_of(images()), strict=True):
        for row in range(2):
            for column in range(2):
                away = (model.codes - image[:, row, column]).square().sum(1)
                assert away.argmin() == grid[row, column]


def test_doubtful_images_are_encoded_in_double_precision(monkeypatch):
    model = small()
    expected = model.tokens_of(images())
    asked = []
    plain = VQVAE.distances
    monkeypatch.setattr(VQVAE, "distances", lambda self, latent: asked.append(latent.dtype) or plain(self, latent))
    monkeypatch.setattr(vqvae, "DOUBTFUL_GAP", 1e9)
    assert torch.equal(model.tokens_of(images()), expected)
    assert asked == [torch.float32, torch.float64]


def test_company_changes_no_token():
    model = small()
    together = model.tokens_of(images())
    alone = torch.cat([model.tokens_of(one[None]) for one in images()])
    assert torch.equal(together, alone)
