"""The VQ-VAE: reconstruction, commitment, and a codebook kept by exponential moving average.

Source:
    Razavi et al. 2019, arXiv:1906.00446, section 3 (EMA); dead codes are put back on encoder outputs of the current
    batch, as in Zeghidour et al. 2021, arXiv:2107.03312, section III.C.
"""

from __future__ import annotations

from pathlib import Path

import torch
from loop import Job, train
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.adapters.vqvae import VQVAE, VQVAESettings
from vqcortex.seeds import generator_for

COMMITMENT = 0.25
DECAY = 0.99
REVIVE_EVERY = 25
ALIVE = 1.0  # images' positions per step, on average, under which a code counts as dead


class EMACodebook(nn.Module):
    """How often each code was used lately, and the sum of the latents it stood for."""

    count: Tensor
    total: Tensor

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.full((codes,), 2 * ALIVE))
        self.register_buffer("total", torch.zeros(codes, width))

    @torch.no_grad()
    def update(self, model: VQVAE, latent: Tensor, tokens: Tensor) -> None:
        """Move every code towards the mean of the latents that chose it; `latent` is (n, d), `tokens` (n,)."""
        hits = F.one_hot(tokens, len(self.count)).to(latent)
        self.count.lerp_(hits.sum(0), 1 - DECAY)
        self.total.lerp_(hits.T @ latent, 1 - DECAY)
        used = self.count > 1e-3
        model.codes[used] = (self.total / self.count.clamp(min=1e-3)[:, None])[used]

    @torch.no_grad()
    def revive(self, model: VQVAE, latent: Tensor, rng: torch.Generator) -> None:
        """Put codes that nobody chooses onto random latents of this batch."""
        dead = (self.count < ALIVE).nonzero().flatten()
        picked = latent[torch.randperm(len(latent), generator=rng)[: len(dead)].to(latent.device)]
        model.codes[dead] = picked
        self.total[dead] = picked * 2 * ALIVE
        self.count[dead] = 2 * ALIVE


def train_first_stage(images: Tensor, folder: Path, *, seed: int, epochs: int) -> tuple[VQVAE, float]:
    """Train on `images` (n, 1, 28, 28) in [-1, 1]; return the model and the seconds it took."""
    torch.manual_seed(seed)
    model = VQVAE(VQVAESettings()).to(images.device, memory_format=torch.channels_last)
    ema = EMACodebook(model.settings.codes, model.settings.width).to(images.device)
    last: dict[str, Tensor] = {}
    with torch.no_grad():  # start on the data, or most codes are never the nearest
        flat = model.encoder(images[:: len(images) // 64][:64]).permute(0, 2, 3, 1).flatten(0, 2)
        model.codes.copy_(flat[torch.randperm(len(flat), generator=generator_for(seed, "codes"))[: len(model.codes)]])
        ema.total.copy_(model.codes * 2 * ALIVE)

    def loss(rows: Tensor, rng: torch.Generator) -> Tensor:
        x = images[rows]
        if torch.rand((), generator=rng) < 0.5:
            x = x.flip(-1)
        latent = model.encoder(x.contiguous(memory_format=torch.channels_last))
        with torch.no_grad():
            tokens = model.distances(latent).argmin(1)
            last["latent"], last["tokens"] = latent.permute(0, 2, 3, 1).flatten(0, 2), tokens.flatten()
        code = model.embed(tokens)
        rebuilt = model.decoder(latent + (code - latent).detach())
        return F.mse_loss(rebuilt, x) + COMMITMENT * F.mse_loss(latent, code)

    def after(step: int) -> None:
        ema.update(model, last["latent"].detach(), last["tokens"])
        if step % REVIVE_EVERY == REVIVE_EVERY - 1 and step < 0.8 * epochs * (len(images) // 128):
            ema.revive(model, last["latent"].detach(), generator_for(seed, "revive", step))

    job = Job(
        name="vqvae", modules={"model": model, "ema": ema}, loss=loss, after=after,
        images=len(images), epochs=epochs, batch=128, rate=2e-3, decay=0.0, seed=seed,
    )  # fmt: skip
    return model, train(job, folder)
