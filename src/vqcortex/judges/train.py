"""Train judges on a study's own pictures, where none lie with the model.

They learn from pictures alone: never a token, a code or the extractor. Training pictures fit them, validation pictures
choose the epoch and the temperature, test pictures say how good they are. One loop for every architecture; the order
of the pictures, their shifts and what dropout drops belong to (seed, judge, epoch), so a run that was killed and
started again ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.calibration import expected_calibration_error, fit_temperature
from vqcortex.errors import DataError, ModelError
from vqcortex.files import hash_of_bytes
from vqcortex.judges.cnn import CNN, CNNSettings
from vqcortex.judges.patch import PatchAttention, PatchSettings
from vqcortex.judges.quality import Quality
from vqcortex.seeds import generator_for, number_for
from vqcortex.weights import save_training_state, save_weights

JUDGES = ("cnn", "patch")
SMALLEST = 8  # pixels of a side: two poolings leave something to see
PATCHES = 8  # per side, or a few fewer
STEPS = 16  # optimiser steps per epoch at least, as far as minibatches of 8 allow
SMOOTHING, DECAY, WARM = 0.05, 0.05, 0.05


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeTraining:
    """How judges are trained.

    Args:
        epochs: Passes over the training pictures at most, at least 1.
        rate: AdamW's peak learning rate, above 0; 5 % of the steps warm up to it, then a cosine falls to 0.
        minibatch: Pictures per step at most; few pictures are cut into smaller ones, so that an epoch has some steps.
        patience: Epochs without a better validation loss before training stops; 0: never.
        seed: Of initial weights, order, shifts and dropout.
        device: Where they are trained.
    """

    epochs: int = 20
    rate: float = 1.5e-3
    minibatch: int = 64
    patience: int = 6
    seed: int = 0
    device: str = "cpu"


@final
class Pictures:
    """Labelled pictures in blocks, which may be memory-mapped files: only what is looked at is read.

    Args:
        blocks: uint8 arrays (n, 3, H, W).
        places: Block and row of each picture.
        labels: Its concept, 0..c-1.
    Raises:
        DataError: There are none.
    """

    def __init__(
        self, blocks: Sequence[NDArray[np.uint8]], places: Int[Tensor, "n 2"], labels: Int[Tensor, " n"]
    ) -> None:
        if not len(labels):
            raise DataError("there are no pictures to train or measure judges with; make a larger store")
        self.blocks, self.places, self.labels = tuple(blocks), places, labels

    def __len__(self) -> int:
        """How many there are."""
        return len(self.labels)

    def take(self, rows: Int[Tensor, " b"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures in [0, 1]."""
        arrays = [self.blocks[block][row] for block, row in self.places[rows].tolist()]
        return torch.from_numpy(np.stack(arrays)).float() / 255

    def parts(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(pictures, labels), at most `size` at a time, in order."""
        for rows in torch.arange(len(self)).split(size):
            yield self.take(rows), self.labels[rows]

    @property
    def has_colour(self) -> bool:
        """Whether any picture has."""
        return any(bool((part[:, :1] != part).any()) for part, _ in self.parts(256))

    @property
    def chance(self) -> float:
        """Share of the commonest concept, 0 to 1."""
        return float(self.labels.bincount().max()) / len(self)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeEpoch:
    """What one epoch did: mean training loss (smoothed), mean validation loss (not), both nats, and accuracy."""

    train_loss: float
    validation_loss: float
    validation_accuracy: float


@final
@dataclass(slots=True)
class State:
    """What a run knows between epochs, besides weights and optimiser."""

    history: list[JudgeEpoch] = field(default_factory=list)
    best: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def is_over(self, training: JudgeTraining) -> bool:
        """Whether no epoch is left to do."""
        waited = len(self.history) - self.best
        return len(self.history) >= training.epochs or bool(training.patience and waited >= training.patience)

    def note(self, epoch: JudgeEpoch, network: nn.Module) -> None:
        """Add an epoch, and keep its weights if it is the best."""
        best = self.history[self.best - 1].validation_loss if self.best else math.inf
        self.history.append(epoch)
        if epoch.validation_loss < best:
            self.best = len(self.history)
            self.best_weights = {key: one.detach().cpu().clone() for key, one in network.state_dict().items()}


def sight(size: tuple[int, int], most: int) -> tuple[int, int]:
    """How judges look at images.

    Args:
        size: Height and width of the images in pixels.
        most: Pixels per side that a judge looks at.
    Returns:
        Side of the square that images are brought to, and side of its patches, which divides it.

    Example:
        >>> sight((28, 28), 64), sight((256, 256), 64), sight((16, 9), 64)
        ((28, 4), (64, 8), (16, 2))
    """
    side = max(SMALLEST, min(most, max(size)))
    patch = max(2, math.ceil(side / PATCHES))
    return patch * math.ceil(side / patch), patch


def fresh_judge(name: str, *, side: int, patch: int, channels: int, concepts: int, seed: int) -> nn.Module:
    """A network before training; its weights depend on the arguments alone.

    Args:
        name: One of JUDGES.
        side: From `sight`.
        patch: Likewise.
        channels: 1 where no picture has colour, else 3.
        concepts: At least 2.
        seed: Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number_for(seed, "judge", name))
        if name == "cnn":
            return CNN(CNNSettings(channels=channels, concepts=concepts, side=side, width=24))
        return PatchAttention(PatchSettings(channels=channels, concepts=concepts, side=side, patch=patch, width=64))


def train_judge(
    name: str,
    network: nn.Module,
    training_pictures: Pictures,
    validation_pictures: Pictures,
    training: JudgeTraining,
    checkpoint: Path | None = None,
    on_epoch: Callable[[], None] = lambda: None,
) -> State:
    """Train a network in place; it ends with the weights of its best epoch, in eval mode, on the CPU.

    Args:
        name: Of the judge; its random draws belong to it.
        network: Fresh.
        training_pictures: What it learns from.
        validation_pictures: What stops it and chooses the epoch.
        training: How.
        checkpoint: File for the state after every epoch; a run finds it and goes on from it. None: keep nothing.
        on_epoch: Called after every epoch, those before a resume included.

    Raises:
        ModelError: The loss stopped being a number.
        DataError: Fewer than two training pictures.
    """
    if len(training_pictures) < 2:
        raise DataError(f"{len(training_pictures)} training picture is too few for a judge; at least 2 are needed")
    network.to(training.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.rate, weight_decay=DECAY, betas=(0.9, 0.98))
    run = hash_of_bytes(f"{name} {asdict(training)} {len(training_pictures)} {len(validation_pictures)}".encode())
    state = resumed(checkpoint, run, network, optimizer)
    for _ in state.history:
        on_epoch()
    while not state.is_over(training):
        epoch = len(state.history)
        loss = train_epoch(name, network, optimizer, training_pictures, training, epoch)
        state.note(JudgeEpoch(train_loss=loss, **validated(network, validation_pictures, training)), network)
        check_finite(name, state.history[-1], epoch, training)
        if checkpoint is not None:
            save_state(checkpoint, run, network, optimizer, state)
        on_epoch()
    network.load_state_dict(state.best_weights)
    network.to("cpu").eval()
    return state


def train_epoch(
    name: str,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    pictures: Pictures,
    training: JudgeTraining,
    epoch: int,
) -> float:
    """One pass over the training pictures; returns the mean loss."""
    rng = generator_for(training.seed, name, "epoch", epoch)
    steps = minibatches(len(pictures), training.minibatch, rng)
    losses, total = [], len(steps) * training.epochs
    network.train()
    devices = [torch.device(training.device)] if training.device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(number_for(training.seed, name, "dropout", epoch))
        for step, rows in enumerate(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at((epoch * len(steps) + step) / total, training.rate)
            pixels = shifted(pictures.take(rows).to(training.device), rng)
            labels = pictures.labels[rows].to(training.device)
            loss = F.cross_entropy(network(pixels), labels, label_smoothing=SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def check_finite(name: str, epoch: JudgeEpoch, number: int, training: JudgeTraining) -> None:
    """Raise when a loss of an epoch, numbered from 0, is no number."""
    for what, loss in (("training", epoch.train_loss), ("validation", epoch.validation_loss)):
        if not math.isfinite(loss):
            raise ModelError(
                f"judge {name!r}: the {what} loss became {loss} in epoch {number + 1}; "
                f"lower --judge-rate, which is {training.rate:g}, and run again"
            )


def minibatches(pictures: int, most: int, rng: torch.Generator) -> list[Tensor]:
    """Row numbers of each step: a fresh order, cut into parts that differ by one picture at most, none single."""
    size = min(most, max(8, pictures // STEPS))
    parts = max(1, min(-(-pictures // size), pictures // 2))
    return list(torch.randperm(pictures, generator=rng).tensor_split(parts))


def rate_at(progress: float, peak: float) -> float:
    """Learning rate at `progress` in [0, 1]: a short rise, then half a cosine."""
    if progress < WARM:
        return peak * (progress + 1e-3) / WARM
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - WARM) / (1 - WARM)))


def shifted(pixels: Float[Tensor, "b 3 H W"], rng: torch.Generator) -> Float[Tensor, "b 3 H W"]:
    """The pictures moved together by up to a sixteenth of their side; edges are drawn out."""
    h, w = pixels.shape[-2:]
    most = max(1, h // 16)
    down, right = torch.randint(0, 2 * most + 1, (2,), generator=rng).tolist()
    return F.pad(pixels, (most,) * 4, mode="replicate")[..., down : down + h, right : right + w]


def validated(network: nn.Module, pictures: Pictures, training: JudgeTraining) -> dict[str, float]:
    """Mean cross entropy in nats, and accuracy."""
    logits, labels = logits_of(network, pictures, training.device)
    return {
        "validation_loss": float(F.cross_entropy(logits, labels)),
        "validation_accuracy": float((logits.argmax(1) == labels).double().mean()),
    }


@torch.no_grad()
def logits_of(
    network: nn.Module, pictures: Pictures, device: str = "cpu", size: int = 250
) -> tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]:
    """Logits in float64, and labels, both on the CPU.

    Args:
        network: On the device; put into eval mode.
        pictures: To look at.
        device: Where the network is.
        size: Pictures at once.
    """
    network.eval()
    parts = [network(pixels.to(device)).cpu().double() for pixels, _ in pictures.parts(size)]
    return torch.cat(parts), pictures.labels


def measured(network: nn.Module, temperature: float, pictures: Pictures) -> Quality:
    """How good a judge is on pictures that neither trained nor chose it.

    Args:
        network: Trained, on the CPU.
        temperature: Fitted on other pictures.
        pictures: Of the test split.
    """
    logits, labels = logits_of(network, pictures)
    return Quality(
        right=int((logits.argmax(1) == labels).sum()),
        images=len(pictures),
        chance=pictures.chance,
        ece=expected_calibration_error((logits / temperature).softmax(1), labels),
    )


def write_judge(
    folder: Path, name: str, network: nn.Module, state: State, validation: Pictures, test: Pictures
) -> dict[str, Any]:
    """Write a trained judge's weights; returns its entry of judges.json.

    Args:
        folder: Where judges.json will lie.
        name: One of JUDGES.
        network: Trained, on the CPU.
        state: Of its training.
        validation: Pictures that its temperature is fitted on.
        test: Pictures that say how good it is.
    """
    temperature = fit_temperature(*logits_of(network, validation))
    settings: Any = network.settings
    file = f"judge_{name}.safetensors"
    return {
        "name": name,
        "architecture": name,
        "settings": asdict(settings),
        "file": file,
        "sha256": save_weights(network.state_dict(), folder / file),
        "temperature": temperature,
        "measured": measured(network, temperature, test).values,
        "training": {"best_epoch": state.best, "epochs": [asdict(one) for one in state.history]},
    }


# -- checkpoint --------------------------------------------------------------------------------------------------------


def save_state(path: Path, run: str, network: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Write the whole state in place of the one before, at once or not at all."""
    content = {
        "run": run,
        "weights": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [asdict(one) for one in state.history],
        "best": state.best,
        "best_weights": state.best_weights,
    }
    save_training_state(content, path)


def resumed(checkpoint: Path | None, run: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Take up what a checkpoint of the same run holds, or start."""
    if checkpoint is None or not checkpoint.is_file():
        return State()
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        is_ours = content["run"] == run
    except Exception:  # torch raises half a dozen kinds for torn files; to begin again costs one judge
        is_ours = False
    if not is_ours:
        return State()
    network.load_state_dict(content["weights"])
    optimizer.load_state_dict(content["optimizer"])
    history = [JudgeEpoch(**one) for one in content["history"]]
    return State(history, content["best"], content["best_weights"])
