"""One resumable training loop for every network of this recipe, on one CPU or several GPUs.

The order of the images belongs to (seed, job, epoch), every other draw to (seed, job, step), the learning rate to the
step: a run killed anywhere and started again ends with the same weights and the same curve.

Source:
    Lightning Fabric starts the processes, names the devices, adds up over them, and computes in bfloat16 where asked
    to. The moving average of the weights is torch.optim.swa_utils.AveragedModel.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vqcortex.files import write_json
from vqcortex.seeds import generator_for, number_for
from vqcortex.weights import save_training_state

NOTE_EVERY = 50  # steps between two points of the curve
SAVE_EVERY = 200  # steps between checkpoints
WARM = 0.05  # share of the steps over which the learning rate rises


@dataclass(frozen=True, kw_only=True)
class Player:
    """What is trained by one loss: a classifier, or one side of a game between generator and discriminator.

    Args:
        name: Names its curve.
        module: Whose parameters its loss moves.
        loss: From rows (b,), a generator and the step to a scalar; None where it sits this step out.
        rate: Peak learning rate; 5 % warm-up, then cosine to zero.
        decay: AdamW weight decay.
        betas: Of AdamW.
    """

    name: str
    module: nn.Module
    loss: Callable[[Tensor, torch.Generator, int], Tensor | None]
    rate: float
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train and for how long.

    Args:
        name: Names the checkpoint and the random draws.
        players: Trained in turn, each step.
        images: Training images, numbered 0..images-1.
        epochs: Passes over them; a fraction is rounded to whole steps.
        batch: Images per optimiser step, over all devices.
        accumulate: Parts that a batch is cut into, so that less memory is needed; the gradients are added up.
        seed: Of the order and of the draws.
        held: Further modules that the checkpoint holds.
        after: Called after each optimiser step with the step's number.
        average: Decay per step of the moving average of the first player's weights, in (0, 1); None: there is none.
    """

    name: str
    players: Sequence[Player]
    images: int
    epochs: float
    batch: int
    seed: int
    accumulate: int = 1
    held: Mapping[str, nn.Module] = field(default_factory=dict)
    after: Callable[[int], None] | None = None
    average: float | None = None

    @property
    def per_epoch(self) -> int:
        """Steps per pass; what is left over waits for the next."""
        return self.images // self.batch

    @property
    def steps(self) -> int:
        return max(1, round(self.per_epoch * self.epochs))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of a job.

    Args:
        weights: Of the first player, averaged if the job says so.
        seconds: Of training, restarts included.
        steps: Optimiser steps.
    """

    weights: dict[str, Tensor]
    seconds: float
    steps: int


def rate_at(progress: float, peak: float) -> float:
    """Learning rate at `progress` in [0, 1]."""
    if progress < WARM:
        return peak * (progress + 1e-3) / WARM
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - WARM) / (1 - WARM)))


def train(job: Job, folder: Path, fabric: Fabric) -> Trained:
    """Train to the end, from the checkpoint NAME.pt in `folder` if there is one; the curve goes to NAME.curve.json.

    Raises:
        FloatingPointError: A loss is NaN or infinite; the checkpoint still holds the last good step.
    """
    state = _State(job, fabric, folder / f"{job.name}.pt")
    began = time.monotonic() - state.spent
    with _curves(fabric, job, folder) as draw:
        while state.step < job.steps:
            told = _one_step(job, state, fabric)
            if state.step % NOTE_EVERY == 0 or state.step == job.steps:
                state.note(told, draw)
            if state.step % SAVE_EVERY == 0 or state.step == job.steps:
                state.spent = time.monotonic() - began
                state.save()
    write_json(folder / f"{job.name}.curve.json", state.curve)
    return Trained(weights=state.averaged(), seconds=state.spent, steps=job.steps)


def finished(name: str, folder: Path) -> dict[str, Tensor]:
    """The weights that a job ended with.

    Raises:
        FileNotFoundError: It has not ended, or never began.
    """
    path = folder / f"{name}.pt"
    saved = torch.load(path, weights_only=True) if path.exists() else {"step": 0, "steps": 1}
    if saved["step"] < saved["steps"]:
        raise FileNotFoundError(f"{path} is not a finished training; run the step before this one first")
    return saved["average"] or saved["modules"][saved["first"]]


def _one_step(job: Job, state: _State, fabric: Fabric) -> dict[str, float]:
    """Move every player once; return their losses."""
    epoch, within = divmod(state.step, job.per_epoch)
    order = state.order(epoch)
    rows = order[within * job.batch : (within + 1) * job.batch][fabric.global_rank :: fabric.world_size]
    # Dropout draws from the global generator, which no checkpoint needs to hold this way.
    torch.manual_seed(number_for(job.seed, job.name, "step", state.step, fabric.global_rank))
    told: dict[str, float] = {}
    for player, optimizer in zip(job.players, state.optimizers, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(state.step / job.steps, player.rate)
        optimizer.zero_grad(set_to_none=True)
        parts = rows.chunk(job.accumulate)
        for number, part in enumerate(parts):
            rng = generator_for(job.seed, job.name, player.name, state.step, fabric.global_rank, number)
            with fabric.autocast():
                loss = player.loss(part.to(fabric.device), rng, state.step)
            if loss is None:
                break
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"{job.name}: the loss of {player.name} is {loss.item()} at step {state.step}; "
                    f"{state.path} holds the last good step: lower the rate, or go on from there with another seed"
                )
            (loss / len(parts)).backward()
            told[player.name] = told.get(player.name, 0.0) + loss.item() / len(parts)
        else:
            _share_gradients(player.module, fabric)
            nn.utils.clip_grad_norm_(player.module.parameters(), 1.0)
            optimizer.step()
    if state.average is not None:
        state.average.update_parameters(job.players[0].module)
    if job.after is not None:
        job.after(state.step)
    state.step += 1
    return told


def _share_gradients(module: nn.Module, fabric: Fabric) -> None:
    """Average the gradients over all processes, in one message.

    By hand, because the hooks that usually do it do not survive a game in which one player's loss asks for gradients
    through the other.
    """
    if fabric.world_size == 1:
        return
    moved = [one for one in module.parameters() if one.grad is not None]
    flat = fabric.all_reduce(torch.cat([one.grad.flatten() for one in moved]), reduce_op="mean")
    for one, part in zip(moved, flat.split([one.numel() for one in moved]), strict=True):
        one.grad.copy_(part.view_as(one))


class _State:
    """What a checkpoint holds, alive."""

    def __init__(self, job: Job, fabric: Fabric, path: Path) -> None:
        self.job, self.fabric, self.path = job, fabric, path
        self.step, self.spent, self.curve = 0, 0.0, []  # type: ignore[var-annotated]
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        self.modules = {one.name: one.module for one in job.players} | dict(job.held)
        for module in self.modules.values():
            module.to(fabric.device)
        self.average = None
        if job.average is not None:
            self.average = AveragedModel(job.players[0].module, multi_avg_fn=get_ema_multi_avg_fn(job.average))
        self.optimizers = [
            torch.optim.AdamW(one.module.parameters(), lr=one.rate, weight_decay=one.decay, betas=one.betas)
            for one in job.players
        ]
        if path.exists():
            self._resume()
        for one in job.players:
            one.module.train()

    def order(self, epoch: int) -> Tensor:
        """Numbers of all images as this epoch takes them."""
        if self._order[0] != epoch:
            rng = generator_for(self.job.seed, self.job.name, "order", epoch)
            self._order = epoch, torch.randperm(self.job.images, generator=rng)
        return self._order[1]

    def note(self, told: Mapping[str, float], draw: Callable[[dict[str, float], int], None]) -> None:
        """Add a point to the curve."""
        self.curve.append({"step": self.step, **told})
        draw(dict(told), self.step)
        losses = ", ".join(f"{name} {value:.4f}" for name, value in told.items())
        self.fabric.print(f"{self.job.name}: step {self.step}/{self.job.steps} {losses}", flush=True)

    def averaged(self) -> dict[str, Tensor]:
        """The first player's weights, averaged if they are, on the CPU."""
        module = self.job.players[0].module if self.average is None else self.average.module
        return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}

    def save(self) -> None:
        """Write the checkpoint, whole or not at all, from one process."""
        if self.fabric.global_rank == 0:
            state = {
                "modules": {name: module.state_dict() for name, module in self.modules.items()},
                "optimizers": [one.state_dict() for one in self.optimizers],
                "average": None if self.average is None else self.averaged(),
                "averages": None if self.average is None else self.average.state_dict(),
                "first": self.job.players[0].name,
                "step": self.step, "steps": self.job.steps, "spent": self.spent, "curve": self.curve,
            }  # fmt: skip
            save_training_state(state, self.path)
        self.fabric.barrier()

    def _resume(self) -> None:
        saved = torch.load(self.path, weights_only=True, map_location="cpu")
        if saved["steps"] != self.job.steps:
            raise ValueError(
                f"{self.path} is of a training of {saved['steps']} steps and this one has {self.job.steps}; "
                "remove the file, or train with the same settings"
            )
        for name, module in self.modules.items():
            module.load_state_dict(saved["modules"][name])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        if self.average is not None:
            self.average.load_state_dict(saved["averages"])
        self.step, self.spent, self.curve = saved["step"], saved["spent"], saved["curve"]
        self.fabric.print(f"{self.job.name}: resumed at step {self.step} of {self.job.steps}", flush=True)


@contextmanager
def _curves(fabric: Fabric, job: Job, folder: Path) -> Iterator[Callable[[dict[str, float], int], None]]:
    """A function that draws losses in TensorBoard, where that is installed."""
    try:
        from lightning.fabric.loggers import TensorBoardLogger

        logger: Any = TensorBoardLogger(folder, name="tensorboard", version=job.name)
    except ModuleNotFoundError:
        yield lambda told, step: None
        return
    try:
        yield lambda told, step: logger.log_metrics(told, step) if fabric.global_rank == 0 else None
    finally:
        logger.finalize("done")
