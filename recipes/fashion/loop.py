"""One resumable training loop for every network of this recipe.

The order of the images belongs to (seed, job, epoch), random changes to (seed, job, step), the learning rate to the
step: a run killed anywhere and started again ends with the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vqcortex.seeds import generator_for
from vqcortex.weights import save_training_state

CHECKPOINT_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train and for how long.

    Args:
        name: Names the checkpoint and the random draws.
        modules: What the checkpoint holds; those with parameters are trained.
        loss: From image numbers (b,) and a generator to a scalar; called once a step.
        after: Called after each optimiser step with the step's number; EMA updates live here.
        images: Training images, numbered 0..images-1.
        epochs: Passes over them.
        batch: Images per step.
        rate: Peak learning rate; 5 % warm-up, then cosine to zero.
        decay: AdamW weight decay.
        seed: Of the order and of the draws.
    """

    name: str
    modules: Mapping[str, nn.Module]
    loss: Callable[[Tensor, torch.Generator], Tensor]
    images: int
    epochs: int
    batch: int
    rate: float
    decay: float
    seed: int
    after: Callable[[int], None] | None = None


def rate_at(progress: float, peak: float) -> float:
    """Learning rate at `progress` in [0, 1]."""
    warm = 0.05
    if progress < warm:
        return peak * (progress + 1e-3) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


def train(job: Job, folder: Path) -> float:
    """Train to the end, from the checkpoint if there is one; return seconds of training, restarts included."""
    parameters = [p for module in job.modules.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=job.rate, weight_decay=job.decay, betas=(0.9, 0.98))
    per_epoch = job.images // job.batch
    total, step, spent = per_epoch * job.epochs, 0, 0.0
    path = folder / f"{job.name}.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        for name, module in job.modules.items():
            module.load_state_dict(saved["modules"][name])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["spent"]
        print(f"{job.name}: resumed at step {step} of {total}", flush=True)
    began, smooth, order = time.monotonic() - spent, None, torch.empty(0)
    for module in job.modules.values():
        module.train()
    while step < total:
        epoch, within = divmod(step, per_epoch)
        if within == 0 or not len(order):
            order = torch.randperm(job.images, generator=generator_for(job.seed, job.name, "order", epoch))
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step / total, job.rate)
        rows = order[within * job.batch : (within + 1) * job.batch]
        loss = job.loss(rows, generator_for(job.seed, job.name, "step", step))
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{job.name}: loss is {loss.item()} at step {step}; {path} holds the last good step"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if job.after is not None:
            job.after(step)
        step += 1
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if step % CHECKPOINT_EVERY == 0 or step == total:
            spent = time.monotonic() - began
            modules = {name: module.state_dict() for name, module in job.modules.items()}
            save_training_state(
                {"modules": modules, "optimizer": optimizer.state_dict(), "step": step, "spent": spent}, path
            )
            print(f"{job.name}: step {step}/{total} loss {smooth:.5f} {spent:.0f} s", flush=True)
    for module in job.modules.values():
        module.eval()
    return spent
