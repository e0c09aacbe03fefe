"""Three classifiers of pixels: two judges of different architecture, and the eye of the perceptual loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from data import Images
from first_stage import mirrored, scaled
from lightning.fabric import Fabric
from loop import Job, Player, Trained, train
from torch import Tensor, nn
from torch.nn import functional as F

SMOOTHING = 0.05
SHIFT = 4  # pixels, at most, in every direction


def shifted(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images (n, 3, H, W), bytes, each moved by up to four pixels; what comes in at the side is mirrored."""
    n, _, h, w = images.shape
    padded = F.pad(images.float(), (SHIFT,) * 4, mode="reflect").to(images.dtype)
    down, right = torch.randint(2 * SHIFT + 1, (2, n), generator=rng)
    rows, columns = torch.arange(h) + down[:, None], torch.arange(w) + right[:, None]
    picked = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (n, h, w, 3)
    return picked.permute(0, 3, 1, 2)


def train_classifier(
    name: str,
    module: nn.Module,
    see: Callable[[Tensor], Tensor],
    images: Images,
    folder: Path,
    fabric: Fabric,
    *,
    seed: int,
    epochs: float,
    batch: int,
    rate: float,
) -> Trained:
    """Train `module`; `see` gives its logits for images in [-1, 1]."""
    labels = images.labels.to(fabric.device)

    def loss(rows: Tensor, rng: torch.Generator, step: int) -> Tensor:
        moved = scaled(shifted(images.pixels[rows.cpu()], rng)).to(fabric.device)
        x = mirrored(moved, rng).contiguous(memory_format=torch.channels_last)
        return F.cross_entropy(see(x).float(), labels[rows], label_smoothing=SMOOTHING)

    player = Player(name=name, module=module, loss=loss, rate=rate, decay=0.05, betas=(0.9, 0.98))
    job = Job(name=name, players=[player], images=len(images), epochs=epochs, batch=batch, seed=seed)
    return train(job, folder, fabric)
