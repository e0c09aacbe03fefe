"""The class-conditional transformer over the VQGAN's tokens, in the form that taming-transformers gives it.

Source:
    Esser et al. 2021, arXiv:2012.09841, section 3.2: the class stands in front of the tokens and shares their table;
    some tokens of the input are replaced at random (`pkeep` of the official code). Ho & Salimans 2022,
    arXiv:2207.12598: some images are trained with the empty class, so that the draws can be guided.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from first_stage import scaled
from lightning.fabric import Fabric
from loop import Job, Player, Trained, train
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.adapters.net2net import Transformer, TransformerSizes
from vqcortex.adapters.taming import TamingNetwork


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """Sizes and training of the transformer.

    Args:
        width: Channels of a position.
        layers: Blocks.
        heads: Attention heads.
        epochs: Passes over the training images, each time mirrored or not.
        batch: Images per step.
        rate: Peak learning rate.
        keep: Share of the input tokens that are left as they are.
        drop_class: Share of the images trained with the empty class.
        decay: AdamW weight decay.
        average: Decay per step of the moving average of the weights.
    """

    width: int
    layers: int
    heads: int
    epochs: float
    batch: int
    rate: float
    keep: float = 0.95
    drop_class: float = 0.1
    decay: float = 0.02
    average: float = 0.995


def new_transformer(settings: PriorSettings, *, codes: int, positions: int, seed: int) -> Transformer:
    """An untrained transformer, initialised as minGPT's."""
    torch.manual_seed(seed + 3)
    sizes = TransformerSizes(
        vocabulary=codes, positions=positions, width=settings.width, layers=settings.layers, heads=settings.heads
    )
    module = Transformer(sizes)
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
    nn.init.normal_(module.pos_emb, std=0.02)
    return module


@torch.no_grad()
def tokenize(network: TamingNetwork, images: Tensor, device: torch.device, batch: int = 250) -> Tensor:
    """Tokens (n, 2, h * w) of images (n, 3, H, W), bytes, and of their mirror images."""
    found = []
    for part in images.split(batch):
        x = scaled(part).to(device)
        both = [network.choose(one).tokens.flatten(1).cpu() for one in (x, x.flip(-1))]
        found.append(torch.stack(both, 1))
    return torch.cat(found)


def train_transformer(
    settings: PriorSettings,
    tokens: Tensor,
    labels: Tensor,
    folder: Path,
    fabric: Fabric,
    *,
    codes: int,
    empty: int,
    seed: int,
) -> Trained:
    """Train on `tokens` (n, 2, t) and `labels` (n,); `empty` is the number of the class that is none."""
    module = new_transformer(settings, codes=codes, positions=tokens.shape[2], seed=seed)

    def loss(rows: Tensor, rng: torch.Generator, step: int) -> Tensor:
        rows = rows.cpu()
        b, t = len(rows), tokens.shape[2]
        wanted = tokens[rows, torch.randint(2, (b,), generator=rng)]
        first = labels[rows].masked_fill(torch.rand(b, generator=rng) < settings.drop_class, empty)
        noisy = torch.rand(b, t - 1, generator=rng) >= settings.keep
        fed = torch.where(noisy, torch.randint(codes, (b, t - 1), generator=rng), wanted[:, :-1])
        fed = torch.cat([first[:, None], fed], 1).to(fabric.device)
        logits = module(fed).float()
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten().to(fabric.device))

    player = Player(
        name="transformer", module=module, loss=loss, rate=settings.rate, decay=settings.decay, betas=(0.9, 0.95)
    )
    job = Job(
        name="transformer", players=[player], images=len(tokens), epochs=settings.epochs, batch=settings.batch,
        seed=seed, average=settings.average,
    )  # fmt: skip
    return train(job, folder, fabric)
