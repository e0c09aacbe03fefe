"""The VQGAN, and the plain VQ-VAE of the same sizes that it is compared with.

The network is the one of the `taming` adapter itself, so what is trained is what is opened later.

Source:
    Esser et al. 2021, arXiv:2012.09841, section 3.1 (equations 4 to 7): reconstruction and perceptual loss, adversary
    with a late start and an adaptive weight. The codebook follows van den Oord et al. 2017, arXiv:1711.00937,
    appendix A.1 (moving averages); dead codes are put back on latents of the current batch, as in Zeghidour et al.
    2021, arXiv:2107.03312, section III.C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from loop import Job, Player, Trained, train
from networks import Eye, PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.adapters.taming import ModelSizes, Sizes, TamingNetwork
from vqcortex.seeds import generator_for

COMMITMENT = 0.25
DECAY = 0.99
REVIVE_EVERY = 20
ALIVE = 1.0  # uses per step, on average, under which a code counts as dead
REVIVE_UNTIL = 0.8  # of the training; later the decoder would not get to know what a new code means
MOST_WEIGHT = 10.0  # of the adversary; the official code allows 10,000, about 0.1 is usual
ALONE = 0.05  # share of the steps in which the adversary learns before it is listened to


@dataclass(frozen=True, kw_only=True)
class FirstStageSettings:
    """Sizes and losses of a first stage.

    Args:
        widths: Channels per level, full resolution first, multiples of 32; each level halves the resolution.
        blocks: Residual blocks per level.
        z_channels: Channels of the latent.
        d: Numbers per code.
        codes: k.
        epochs: Passes over the training images.
        batch: Images per step.
        rate: Peak learning rate of the generator.
        perceptual: Weight of the perceptual loss beside the absolute difference.
        adversary: Factor on the adaptive weight of the adversary; 0: there is none.
        adversary_rate: Peak learning rate of the adversary.
        adversary_from: Share of the steps after which the adversary learns; a twentieth later it is listened to.
        average: Decay per step of the moving average of the weights.
    """

    widths: tuple[int, ...]
    blocks: int
    z_channels: int = 64
    d: int = 32
    codes: int = 1024
    epochs: float
    batch: int
    rate: float
    perceptual: float = 1.0
    adversary: float = 0.2
    adversary_rate: float = 2e-4
    adversary_from: float = 0.6
    average: float = 0.995


def new_network(settings: FirstStageSettings) -> TamingNetwork:
    """An untrained first stage, channels last."""
    sizes = Sizes(
        widths=settings.widths, blocks=settings.blocks, attention=(False,) * len(settings.widths),
        z_channels=settings.z_channels,
    )  # fmt: skip
    network = TamingNetwork(ModelSizes(encoder=sizes, decoder=sizes, k=settings.codes, d=settings.d))
    network.codes.weight.requires_grad_(False)  # moved by averages, not by gradients
    return network.to(memory_format=torch.channels_last)


class MovingCodebook(nn.Module):
    """How often each code was used lately, and the sum of the latents it stood for."""

    count: Tensor
    total: Tensor

    def __init__(self, codes: int, d: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.full((codes,), 2 * ALIVE))
        self.register_buffer("total", torch.zeros(codes, d))

    @torch.no_grad()
    def start(self, table: Tensor, latents: Tensor, rng: torch.Generator) -> None:
        """Put the codes on latents (n, d), or most codes are never the nearest."""
        picked = torch.randint(len(latents), (len(table),), generator=rng)
        table.copy_(latents[picked.to(latents.device)])
        self.total.copy_(table * 2 * ALIVE)

    @torch.no_grad()
    def update(self, table: Tensor, latents: Tensor, tokens: Tensor, fabric: Fabric) -> None:
        """Move every code towards the mean of the latents (n, d) that chose it."""
        count = torch.zeros_like(self.count).index_add_(0, tokens, torch.ones_like(latents[:, 0]))
        total = torch.zeros_like(self.total).index_add_(0, tokens, latents)
        count, total = fabric.all_reduce(count, reduce_op="sum"), fabric.all_reduce(total, reduce_op="sum")
        self.count.lerp_(count, 1 - DECAY)
        self.total.lerp_(total, 1 - DECAY)
        used = self.count > 1e-3
        table[used] = (self.total / self.count.clamp(min=1e-3)[:, None])[used]

    @torch.no_grad()
    def revive(self, table: Tensor, latents: Tensor, rng: torch.Generator) -> None:
        """Put codes that nobody chooses onto random latents of this batch."""
        dead = (self.count < ALIVE).nonzero()[:, 0]
        picked = latents[torch.randint(len(latents), (len(dead),), generator=rng).to(latents.device)]
        table[dead] = picked
        self.total[dead] = picked * 2 * ALIVE
        self.count[dead] = 2 * ALIVE


def train_first_stage(
    name: str,
    settings: FirstStageSettings,
    images: Tensor,
    eye: Eye | None,
    folder: Path,
    fabric: Fabric,
    *,
    seed: int,
    compiled: bool = False,
) -> Trained:
    """Train on `images` (n, 3, H, W), bytes; `eye` sees for the perceptual loss, None leaves that out.

    `compiled` fuses operations first, which is faster and gives other last bits.
    """
    torch.manual_seed(seed)
    network = new_network(settings).to(fabric.device)
    table = network.codes.weight.data
    codebook = MovingCodebook(settings.codes, settings.d).to(fabric.device)
    adversary = PatchDiscriminator().to(fabric.device, memory_format=torch.channels_last)
    if eye is not None:
        eye.to(fabric.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    fused: Callable[[Any], Any] = torch.compile if compiled else lambda function: function
    parts = (network.encode, network.decode, None if eye is None else eye.difference)
    faster = tuple(one and fused(one) for one in parts)
    rng = generator_for(seed, name, "start")
    with torch.no_grad():
        first = torch.randperm(len(images), generator=rng)[:256]
        codebook.start(table, _rows(network.encode(scaled(images[first]).to(fabric.device))), rng)
    last: dict[str, Tensor] = {}

    def generator_loss(rows: Tensor, rng: torch.Generator, step: int) -> Tensor:
        x = mirrored(scaled(images[rows.cpu()]).to(fabric.device), rng).contiguous(memory_format=torch.channels_last)
        # The adaptive weight runs backwards twice, and a fused graph then gives other gradients, which wreck a decoder.
        encode, decode, difference = parts if plays(step, ALONE) else faster
        latent = encode(x).float()
        flat = _rows(latent)
        with torch.no_grad():
            tokens = (table.square().sum(1) - 2 * flat @ table.T).argmin(1)
        code = table[tokens].view(len(x), *latent.shape[2:], -1).permute(0, 3, 1, 2)
        rebuilt = decode(latent + (code - latent).detach())
        last.update(images=x, rebuilt=rebuilt.detach(), latents=flat.detach(), tokens=tokens)
        loss = (rebuilt - x).abs().mean()
        if difference is not None:
            loss = loss + settings.perceptual * difference(rebuilt, x)
        if plays(step, ALONE):
            with torch.autocast(x.device.type, enabled=False):
                fooled = -adversary(rebuilt.float()).mean()
            weight = adaptive_weight(loss, fooled, network.decoder.conv_out.weight)
            loss = loss + settings.adversary * weight * fooled
        return loss + COMMITMENT * F.mse_loss(latent, code)

    def adversary_loss(rows: Tensor, rng: torch.Generator, step: int) -> Tensor | None:
        if not plays(step):
            return None
        with torch.autocast(rows.device.type, enabled=False):
            real, made = adversary(last["images"]), adversary(last["rebuilt"].float())
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())

    def after(step: int) -> None:
        codebook.update(table, last["latents"], last["tokens"], fabric)
        if step % REVIVE_EVERY == REVIVE_EVERY - 1 and step < REVIVE_UNTIL * job.steps:
            codebook.revive(table, last["latents"], generator_for(seed, name, "revive", step))
            # A revived code is another code on every device alike.
            table.copy_(fabric.broadcast(table))

    def plays(step: int, later: float = 0.0) -> bool:
        return settings.adversary > 0 and step >= (settings.adversary_from + later) * job.steps

    players = [Player(name="generator", module=network, loss=generator_loss, rate=settings.rate, betas=(0.5, 0.9))]
    if settings.adversary:
        players.append(
            Player(
                name="adversary", module=adversary, loss=adversary_loss, rate=settings.adversary_rate, betas=(0.5, 0.9)
            )
        )
    job = Job(
        name=name, players=players, images=len(images), epochs=settings.epochs, batch=settings.batch, seed=seed,
        held={"codebook": codebook}, after=after, average=settings.average,
    )  # fmt: skip
    return train(job, folder, fabric)


def adaptive_weight(loss: Tensor, fooled: Tensor, last_layer: Tensor) -> Tensor:
    """How much the adversary counts: the two losses pull at the last layer equally hard."""
    ours = torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
    theirs = torch.autograd.grad(fooled, last_layer, retain_graph=True)[0].norm()
    return (ours / (theirs + 1e-4)).clamp(0, MOST_WEIGHT).detach()


def scaled(images: Tensor) -> Tensor:
    """Bytes to [-1, 1]."""
    return images.float() / 127.5 - 1


def mirrored(x: Tensor, rng: torch.Generator) -> Tensor:
    """Half of the images, left and right exchanged."""
    flips = torch.rand(len(x), generator=rng) < 0.5
    return torch.where(flips[:, None, None, None].to(x.device), x.flip(-1), x)


def _rows(latent: Tensor) -> Tensor:
    """(b, d, h, w) to (b * h * w, d)."""
    return latent.permute(0, 2, 3, 1).flatten(0, 2)
