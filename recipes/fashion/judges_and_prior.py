"""The two judges, trained on pixels, and the prior, trained on the tokens of the first stage."""

from __future__ import annotations

from pathlib import Path

import torch
from loop import Job, train
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.adapters.prior import PriorSettings, TokenPrior
from vqcortex.adapters.vqvae import VQVAE
from vqcortex.judges.cnn import CNN, CNNSettings
from vqcortex.judges.patch import PatchAttention, PatchSettings


def train_judge(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, folder: Path, *, seed: int, epochs: int, rate: float
) -> float:
    """Train a classifier of `images` (n, 1, 28, 28) in [-1, 1] with flips and one-pixel shifts; return seconds."""

    def loss(rows: Tensor, rng: torch.Generator) -> Tensor:
        x = images[rows]
        if torch.rand((), generator=rng) < 0.5:
            x = x.flip(-1)
        down, right = torch.randint(-1, 2, (2,), generator=rng).tolist()
        x = torch.roll(x, (down, right), (2, 3))
        return F.cross_entropy(model((x.expand(-1, 3, -1, -1) + 1) / 2), labels[rows], label_smoothing=0.05)

    job = Job(
        name=name, modules={"model": model}, loss=loss, images=len(images),
        epochs=epochs, batch=128, rate=rate, decay=0.05, seed=seed,
    )  # fmt: skip
    return train(job, folder)


def cnn_judge(seed: int) -> CNN:
    """Judge A before training."""
    torch.manual_seed(seed + 1)
    return CNN(CNNSettings())


def patch_judge(seed: int) -> PatchAttention:
    """Judge B before training."""
    torch.manual_seed(seed + 2)
    return PatchAttention(PatchSettings(mirrors=True))


@torch.no_grad()
def tokenize(model: VQVAE, images: Tensor, batch: int = 500) -> Tensor:
    """Token grids (n, h, w) of `images` (n, 1, 28, 28) in [-1, 1]."""
    return torch.cat([model.tokens_of(part) for part in images.split(batch)])


def train_prior(grids: Tensor, labels: Tensor, folder: Path, *, seed: int, epochs: int) -> tuple[TokenPrior, float]:
    """Train on token grids (n, h, w) and labels (n,); return the prior and the seconds it took."""
    torch.manual_seed(seed + 3)
    model = TokenPrior(PriorSettings()).to(grids.device)
    flat = grids.flatten(1)

    def loss(rows: Tensor, rng: torch.Generator) -> Tensor:
        return F.cross_entropy(model(labels[rows], flat[rows]).flatten(0, 1), flat[rows].flatten())

    job = Job(
        name="prior", modules={"model": model}, loss=loss, images=len(flat),
        epochs=epochs, batch=96, rate=2e-3, decay=0.02, seed=seed,
    )  # fmt: skip
    return model, train(job, folder)
