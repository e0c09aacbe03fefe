"""One loop that trains any extractor on token ids; embeddings are looked up on the device, minibatch by minibatch.

The loop neither prints nor draws: progress goes to callbacks. Lightning Fabric places it on one or several devices and
in mixed precision. After every epoch the whole state is written, so that a killed run goes on where it stopped; on the
CPU it ends with the same bits as a run that was never killed.

Source:
    Yang et al. 2025 (CORTEX), arXiv:2506.00698, published code: Adam, schedule, best epoch by validation loss. Where we
    differ: no minibatch is left with a single image, since batch-norm cannot train on one.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Integer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex import errors
from vqcortex.devices import check_device
from vqcortex.errors import ConfigError, DataError, MissingExtra, ModelError, ShapeError, TokenError, VqCortexError
from vqcortex.extractors.checkpoint import settings_of
from vqcortex.extractors.protocol import look_up
from vqcortex.files import hash_of_bytes
from vqcortex.seeds import generator_for, number_for
from vqcortex.weights import save_training_state, save_weights

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
# A loss is looked at on the host only this often: each look waits for an accelerator to catch up.
LOOK_EVERY = 16


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How an extractor is trained; the defaults are the published ones."""

    epochs: int = 80
    """Passes over the training images, at least 1."""
    rate: float = 1e-3
    """Adam's learning rate at the start, above 0."""
    weight_decay: float = 1e-4
    """Adam's L2 penalty, 0 or more."""
    step_every: int = 20
    """Epochs after which the rate is multiplied by `step_factor`, again and again."""
    step_factor: float = 0.1
    """What the rate is multiplied by, above 0 and at most 1."""
    minibatch: int = 512
    """Images per optimiser step, over all devices, at least 2; this one changes results."""
    patience: int | None = None
    """Stop after this many epochs without a better validation loss; None: never."""
    label_smoothing: float = 0.0
    """Share of the target spread over all concepts, in [0, 1)."""
    precision: Precision = "32-true"
    """Arithmetic: 32-true, bf16-mixed, or 16-mixed (CUDA only)."""
    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, mps."""
    devices: int = 1
    """Devices of that kind to spread every minibatch over, at least 1."""
    seed: int = 0
    """Decides the order of images and what dropout drops."""
    tensorboard: bool = False
    """Also write a TensorBoard log into the folder of the checkpoint."""

    def checked(self) -> TrainSettings:
        """Return self, or raise one ConfigError that lists everything wrong."""
        if found := list(self.problems()):
            lines = "\n".join(f"  - {one}" for one in found)
            raise ConfigError(f"{len(found)} training setting(s) wrong:\n{lines}")
        return self

    def problems(self) -> Iterator[str]:
        """What is wrong, one line each."""
        for name, least in {"epochs": 1, "step_every": 1, "minibatch": 2, "devices": 1, "weight_decay": 0}.items():
            if getattr(self, name) < least:
                yield f"{name}={getattr(self, name)} must be at least {least}"
        if not self.rate > 0:
            yield f"rate={self.rate} must be above 0"
        if not 0 < self.step_factor <= 1:
            yield f"step_factor={self.step_factor} must lie in (0, 1]"
        if not 0 <= self.label_smoothing < 1:
            yield f"label_smoothing={self.label_smoothing} must lie in [0, 1)"
        if self.patience is not None and self.patience < 1:
            yield f"patience={self.patience} must be at least 1, or None"
        yield from self.wrong_places()

    def wrong_places(self) -> Iterator[str]:
        """What is wrong about precision and devices."""
        kind, _, index = self.device.partition(":")
        if self.precision not in PRECISIONS:
            yield f"precision={self.precision!r} must be one of {', '.join(PRECISIONS)}"
        if self.precision == "16-mixed" and kind != "cuda":
            yield f"precision='16-mixed' needs device cuda, not {self.device!r}; bf16-mixed works everywhere"
        if kind == "cuda" and torch.cuda.device_count() < self.devices:
            yield f"devices={self.devices}, but this machine has {torch.cuda.device_count()} CUDA devices"
        if index and self.devices > 1:
            yield f"device={self.device!r} names one device but devices={self.devices}; write device='{kind}'"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainData:
    """Token grids and labels, held in memory in the smallest integer type that holds k.

    Args:
        tokens: Training images.
        labels: Their concepts, 0..c-1.
        validation_tokens: Images that choose the best epoch and stop the training.
        validation_labels: Their concepts.
    """

    tokens: Integer[Tensor, "n h w"]
    labels: Integer[Tensor, " n"]
    validation_tokens: Integer[Tensor, "m h w"]
    validation_labels: Integer[Tensor, " m"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """What one epoch did.

    Args:
        epoch: Counted from 1.
        epochs: How many there will be at most.
        rate: Learning rate of the epoch.
        train_loss: Mean over its minibatches, in training mode, with label smoothing; nats.
        validation_loss: Mean over the validation images, without; nats.
        validation_accuracy: Share of validation images whose best concept is the true one, 0 to 1.
        is_best: True when no earlier epoch had a validation loss as low.
    """

    epoch: int
    epochs: int
    rate: float
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    is_best: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a training run did.

    Args:
        epochs: Every epoch, in order, those before a resume included.
        best: The epoch whose weights the module now has, counted from 1.
        stopped: "epochs" when all were done, "patience" when it stopped early.
        resumed_after: Epochs a checkpoint had already done; 0: a fresh start.
    """

    epochs: tuple[EpochReport, ...]
    best: int
    stopped: Literal["epochs", "patience"]
    resumed_after: int


OnEpoch = Callable[[EpochReport], None]
OnStep = Callable[[int, int, int], None]


def train_extractor(
    module: nn.Module,
    data: TrainData,
    settings: TrainSettings,
    codebook: Float[Tensor, "k d"],
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
) -> TrainReport:
    """Train a network in place; it ends with the weights of its best epoch, in eval mode, on the device it came from.

    Args:
        module: Fresh from `build_extractor`; its initial weights are part of the run.
        data: Training and validation images.
        settings: How.
        codebook: Codes the tokens stand for.
        checkpoint: File for the state after every epoch; if it is there, the run goes on from it. None: keep nothing.
        on_epoch: Called after every epoch.
        on_step: Called after every step with (epoch, step, steps in the epoch), counted from 1.

    Raises:
        ConfigError: A setting is wrong, or the checkpoint belongs to another run.
        DataError: Too few images, or a label outside the concepts.
        TokenError: A token outside the codebook.
        ModelError: The loss stopped being a number, or the checkpoint is unreadable.
        MissingExtra: Lightning or TensorBoard is not installed.
    """
    settings = settings.checked()
    check_device(settings.device)
    check_data(data, module, len(codebook))
    check_log(settings, checkpoint)
    home = next(module.parameters()).device
    parts = run_parts(module, data, settings, codebook)
    job = Job(module.to("cpu"), data, settings, codebook.detach().cpu(), checkpoint, parts)
    outcome = launched(job, Callbacks(on_epoch, on_step))
    if isinstance(outcome, VqCortexError):
        raise outcome
    module.load_state_dict(outcome.best_weights)
    module.to(home).eval()
    return outcome.report


@final
@dataclass(frozen=True, slots=True)
class Job:
    """Everything a process needs to take part in a run."""

    module: nn.Module
    data: TrainData
    settings: TrainSettings
    codebook: Tensor
    checkpoint: Path | None
    parts: Mapping[str, str]


@final
@dataclass(frozen=True, slots=True)
class Callbacks:
    """Whom to tell."""

    on_epoch: OnEpoch | None
    on_step: OnStep | None

    def epoch(self, report: EpochReport) -> None:
        if self.on_epoch:
            self.on_epoch(report)

    def step(self, epoch: int, step: int, steps: int) -> None:
        if self.on_step:
            self.on_step(epoch, step, steps)


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What comes back from a run."""

    report: TrainReport
    best_weights: dict[str, Tensor]


@final
@dataclass(slots=True)
class State:
    """What a run knows between epochs, besides weights and optimiser; all of it is in the checkpoint."""

    history: list[EpochReport] = field(default_factory=list)
    best: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Epochs that are finished."""
        return len(self.history)

    @property
    def best_loss(self) -> float:
        """Lowest validation loss so far; infinite before the first epoch."""
        return self.history[self.best - 1].validation_loss if self.best else float("inf")

    def is_over(self, settings: TrainSettings) -> bool:
        """True when there is no epoch left to do."""
        return self.done >= settings.epochs or self.has_lost_patience(settings)

    def has_lost_patience(self, settings: TrainSettings) -> bool:
        """True when the last epochs brought nothing better."""
        return settings.patience is not None and self.done - self.best >= settings.patience


def launched(job: Job, callbacks: Callbacks) -> Outcome | VqCortexError:
    """Run a job in this process, or in one process per device."""
    with quiet():
        fabric = new_fabric(job.settings)
        return worked(fabric, job, callbacks) if job.settings.devices == 1 else spread(fabric, job, callbacks)


def spread(fabric: Any, job: Job, callbacks: Callbacks) -> Outcome:
    """Run a job in one process per device; a thread passes on what the first of them reports.

    Reports are lines of JSON in a pipe and the weights are a safetensors file: nothing that comes back is unpickled.
    What Fabric returns by itself would be, and would have to fit into a pipe that nobody empties before the processes
    have ended.
    """
    receiver, sender = torch.multiprocessing.get_context("spawn").Pipe(duplex=False)
    heard: list[TrainReport | Exception] = []
    listener = threading.Thread(target=listen, args=(receiver, callbacks, heard), daemon=True)
    with tempfile.TemporaryDirectory(prefix="vqcortex-") as folder:
        weights = Path(folder) / "best.safetensors"
        listener.start()
        try:
            fabric.launch(Apart(job, sender, weights))
        finally:
            sender.close()  # the last end of the pipe: the others closed with their processes
            listener.join()
            receiver.close()
        for word in heard:
            if isinstance(word, Exception):
                raise word
            report = word
        return Outcome(report, load_file(weights))


def worked(fabric: Any, job: Job, callbacks: Callbacks) -> Outcome | VqCortexError:
    """Run a job; an error of ours comes back as a value, so that it survives the way out of another process."""
    try:
        return run_epochs(fabric, job, callbacks)
    except VqCortexError as error:
        return error


@final
class Apart:
    """What each of several processes does: a job whose first process reports through a pipe.

    Not a dataclass: Fabric searches what it launches for modules and stumbles over frozen ones.

    Args:
        job: The job.
        pipe: Where to report.
        weights: File for the best weights.
    """

    def __init__(self, job: Job, pipe: Any, weights: Path) -> None:
        self.job, self.pipe, self.weights = job, pipe, weights

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A new process unpickles this before Fabric announces it.
        self.__dict__.update(state)
        for logger in loggers():
            logger.setLevel(logging.ERROR)

    def __call__(self, fabric: Any) -> None:
        told = Callbacks(lambda report: self.tell("epoch", asdict(report)), lambda *step: self.tell("step", step))
        with quiet():
            outcome = worked(fabric, self.job, Callbacks(None, None) if fabric.global_rank else told)
        if fabric.global_rank == 0:
            self.tell(*self.ending(outcome))

    def tell(self, kind: str, value: Any) -> None:
        """Report plain numbers and texts."""
        self.pipe.send_bytes(json.dumps([kind, value]).encode())

    def ending(self, outcome: Outcome | VqCortexError) -> tuple[str, Any]:
        """Keep the weights and return the last report."""
        try:
            if isinstance(outcome, VqCortexError):
                raise outcome
            save_weights(outcome.best_weights, self.weights)
        except VqCortexError as error:
            return "error", [type(error).__name__, str(error)]
        return "end", asdict(outcome.report)


def listen(pipe: Any, callbacks: Callbacks, heard: list[TrainReport | Exception]) -> None:
    """Pass on what another process reports, and keep how it ended, until nobody is left who could report.

    A callback that raises is not called again; the pipe is emptied all the same, or the other process would wait.
    """
    while (line := received(pipe)) is not None:
        try:
            kind, value = json.loads(line)
            if kind == "step":
                callbacks.step(*value)
            elif kind == "epoch":
                callbacks.epoch(EpochReport(**value))
            else:
                heard.append(error_of(*value) if kind == "error" else report_of(**value))
        except Exception as error:
            heard.append(error)
            callbacks = Callbacks(None, None)


def received(pipe: Any) -> bytes | None:
    """The next report; None: every process that could report has ended."""
    try:
        line: bytes = pipe.recv_bytes()
    except (EOFError, OSError):  # the second: in the middle of a report
        return None
    return line


def error_of(name: str, message: str) -> VqCortexError:
    """An error of ours again, from its class's name and its text."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, VqCortexError):
        return kind(message)
    return VqCortexError(message)


def report_of(epochs: list[dict[str, Any]], **other: Any) -> TrainReport:
    """A report again, from plain values."""
    return TrainReport(epochs=tuple(EpochReport(**one) for one in epochs), **other)


def run_epochs(fabric: Any, job: Job, callbacks: Callbacks) -> Outcome:
    """Do the epochs that are left and return the best weights."""
    settings, module = job.settings, job.module
    plain = torch.optim.Adam(module.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)
    wrapped, optimizer = fabric.setup(module, plain)
    codebook = job.codebook.to(fabric.device)
    state = resumed(fabric, job, plain)
    first = state.done
    with log_of(fabric, job, first) as log:
        while not state.is_over(settings):
            epoch = state.done + 1
            loss = train_epoch(fabric, wrapped, optimizer, codebook, job, epoch, callbacks)
            note_epoch(fabric, job, state, codebook, epoch, loss)
            save_state(fabric, job, plain, state)
            log(state.history[-1])
            callbacks.epoch(state.history[-1])
    why: Literal["epochs", "patience"] = "patience" if state.done < settings.epochs else "epochs"
    report = TrainReport(epochs=tuple(state.history), best=state.best, stopped=why, resumed_after=first)
    return Outcome(report, state.best_weights)


def train_epoch(
    fabric: Any, wrapped: Any, optimizer: Any, codebook: Tensor, job: Job, epoch: int, callbacks: Callbacks
) -> float:
    """One pass over the training images; returns the mean loss."""
    settings, losses = job.settings, []
    for group in optimizer.param_groups:
        group["lr"] = rate_of(settings, epoch)
    parts = minibatches(len(job.data.tokens), settings, epoch)
    wrapped.train()
    with own_dropout(fabric, settings.seed, epoch):
        for step, part in enumerate(parts, start=1):
            mine = part[fabric.global_rank :: fabric.world_size]
            embedded = look_up(codebook, job.data.tokens[mine])
            labels = job.data.labels[mine].to(fabric.device).long()
            loss = F.cross_entropy(wrapped(embedded).float(), labels, label_smoothing=settings.label_smoothing)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
            if step % LOOK_EVERY == 0 or step == len(parts):
                check_losses(fabric, losses, epoch, step, job)
            callbacks.step(epoch, step, len(parts))
    return float(fabric.all_reduce(torch.stack(losses).mean(), reduce_op="mean"))


def note_epoch(fabric: Any, job: Job, state: State, codebook: Tensor, epoch: int, train_loss: float) -> None:
    """Validate, and add the epoch to the history."""
    loss, accuracy = validated(fabric, job, codebook)
    if loss != loss or loss == float("inf"):
        raise broken(job, epoch, f"the validation loss became {loss} after epoch {epoch}")
    best = loss < state.best_loss
    state.history.append(
        EpochReport(
            epoch=epoch,
            epochs=job.settings.epochs,
            rate=rate_of(job.settings, epoch),
            train_loss=train_loss,
            validation_loss=loss,
            validation_accuracy=accuracy,
            is_best=best,
        )
    )
    if best:
        state.best = epoch
        state.best_weights = {key: one.detach().cpu().clone() for key, one in job.module.state_dict().items()}


def validated(fabric: Any, job: Job, codebook: Tensor) -> tuple[float, float]:
    """Mean cross entropy and accuracy on the validation images, each process taking its share of them."""
    share_buffers(fabric, job.module)
    job.module.eval()
    tokens = job.data.validation_tokens[fabric.global_rank :: fabric.world_size]
    labels = job.data.validation_labels[fabric.global_rank :: fabric.world_size]
    sums = torch.zeros(3, dtype=torch.float64 if fabric.device.type != "mps" else torch.float32, device=fabric.device)
    with torch.no_grad(), fabric.autocast():
        for part, truth in zip(tokens.split(job.settings.minibatch), labels.split(job.settings.minibatch), strict=True):
            goal = truth.to(fabric.device).long()
            logits = job.module(look_up(codebook, part)).float()
            hits = (logits.argmax(1) == goal).sum()
            sums += torch.stack([F.cross_entropy(logits, goal, reduction="sum"), hits, hits.new_tensor(len(goal))])
    loss, right, images = fabric.all_reduce(sums, reduce_op="sum").tolist()
    return loss / images, right / images


def share_buffers(fabric: Any, module: nn.Module) -> None:
    """Give every process the running statistics of the first, whose weights are the ones kept."""
    if fabric.world_size > 1:
        for buffer in module.buffers():
            buffer.copy_(fabric.broadcast(buffer))


def minibatches(images: int, settings: TrainSettings, epoch: int) -> list[Tensor]:
    """Row numbers of each step: a fresh order, cut into parts that differ by one image at most, none of them single."""
    order = torch.randperm(images, generator=generator_for(settings.seed, "order", epoch))
    parts = min(-(-images // settings.minibatch), images // (2 * settings.devices))
    return list(order.tensor_split(parts))


def rate_of(settings: TrainSettings, epoch: int) -> float:
    """Learning rate of an epoch, counted from 1."""
    return settings.rate * settings.step_factor ** ((epoch - 1) // settings.step_every)


@contextmanager
def own_dropout(fabric: Any, seed: int, epoch: int) -> Iterator[None]:
    """Draws inside depend on (seed, epoch, process) alone; torch's global generators are left as they were."""
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(number_for(seed, "dropout", epoch, fabric.global_rank))
        yield


def check_losses(fabric: Any, losses: list[Tensor], epoch: int, step: int, job: Job) -> None:
    """Raise when one of the last losses, of any process, is not a number."""
    recent = fabric.all_reduce(torch.stack(losses[-LOOK_EVERY:]), reduce_op="sum")
    if not torch.isfinite(recent).all():
        bad = step - len(recent) + 1 + int((~torch.isfinite(recent)).nonzero()[0])
        raise broken(
            job, epoch, f"the training loss became {float(recent[bad - step - 1])} at epoch {epoch}, step {bad}"
        )


def broken(job: Job, epoch: int, what: str) -> ModelError:
    """The error of a run whose loss is no number."""
    kept = f"the state after epoch {epoch - 1} is kept in {str(job.checkpoint)!r}"
    none = "no earlier state was kept" if job.checkpoint is None else "no epoch was finished before"
    return ModelError(
        f"{what}; {kept if job.checkpoint is not None and epoch > 1 else none}; "
        f"lower rate={rate_of(job.settings, epoch):g} or use precision='32-true', then train again"
    )


# -- checkpoint --------------------------------------------------------------------------------------------------------


def run_parts(module: nn.Module, data: TrainData, settings: TrainSettings, codebook: Tensor) -> dict[str, str]:
    """Hashes of what decides a run's numbers, by name; epochs and patience may change between one part and the next."""
    free = {"epochs", "patience", "tensorboard", "device"}
    kept = {key: value for key, value in asdict(settings).items() if key not in free}
    return {
        "training settings": hash_of_bytes(repr(sorted(kept.items())).encode()),
        "sizes of the network": hash_of_bytes(repr(sorted(settings_of(module).items())).encode()),
        "initial weights": hash_of_tensors(*module.state_dict().values()),
        "images": hash_of_tensors(data.tokens, data.labels, data.validation_tokens, data.validation_labels),
        "codebook": hash_of_tensors(codebook),
    }


def hash_of_tensors(*tensors: Tensor) -> str:
    """SHA-256 over the values of tensors; integer types of different width count as different."""
    digests = [hash_of_bytes(one.detach().cpu().contiguous().numpy().tobytes()) for one in tensors]
    return hash_of_bytes(" ".join(digests).encode())


def save_state(fabric: Any, job: Job, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Write the whole state in place of the one before, at once or not at all."""
    if job.checkpoint is None or fabric.global_rank:
        return
    content = {
        "parts": dict(job.parts),
        "weights": job.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "precision": fabric.strategy.precision.state_dict(),
        "history": [asdict(report) for report in state.history],
        "best": state.best,
        "best_weights": state.best_weights,
    }
    save_training_state(content, job.checkpoint)


def resumed(fabric: Any, job: Job, optimizer: torch.optim.Optimizer) -> State:
    """Take up the state a checkpoint holds, or start."""
    if job.checkpoint is None or not job.checkpoint.exists():
        return State()
    content = read_state(job.checkpoint)
    check_parts(content["parts"], job)
    job.module.load_state_dict(content["weights"])
    optimizer.load_state_dict(content["optimizer"])
    fabric.strategy.precision.load_state_dict(content["precision"])
    history = [EpochReport(**{**report, "epochs": job.settings.epochs}) for report in content["history"]]
    return State(history, content["best"], content["best_weights"])


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code it may hold."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {key: content[key] for key in CONTENT}
    except Exception as error:  # torch raises half a dozen kinds for torn files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{str(path)!r} is no readable training checkpoint ({reason}); delete it to train from the start"
        ) from error


CONTENT = ("parts", "weights", "optimizer", "precision", "history", "best", "best_weights")


def check_parts(parts: Mapping[str, str], job: Job) -> None:
    """Refuse the checkpoint of another run."""
    differing = [name for name, value in job.parts.items() if parts.get(name) != value]
    if differing:
        raise ConfigError(
            f"checkpoint {str(job.checkpoint)!r} belongs to another run: {', '.join(differing)} differ; "
            "repeat that run's arguments, or name another file, or delete it to train from the start"
        )


# -- checks and surroundings -------------------------------------------------------------------------------------------


def check_data(data: TrainData, module: nn.Module, codes: int) -> None:
    """Refuse too few images, grids of another size, tokens outside the codebook, labels outside the concepts."""
    settings: Any = module.settings
    for what, tokens, labels, least in (
        ("training", data.tokens, data.labels, 2),
        ("validation", data.validation_tokens, data.validation_labels, 1),
    ):
        if len(tokens) < least or len(tokens) != len(labels):
            raise DataError(
                f"{len(tokens)} {what} grids with {len(labels)} labels; at least {least} are needed, one label each; "
                "add images or change the split"
            )
        if tuple(tokens.shape[1:]) != tuple(settings.grid):
            raise ShapeError(
                f"{what} tokens are {tuple(tokens.shape)} but the extractor reads grids of {settings.grid}"
            )
        low, high = span(tokens)
        if low < 0 or high >= codes:
            raise TokenError(
                f"{what} tokens span [{low}, {high}] but this codebook holds indices [0, {codes - 1}]; "
                "was the store written with another model?"
            )
        low, high = span(labels)
        if low < 0 or high >= settings.concepts:
            raise DataError(
                f"{what} labels span [{low}, {high}] but the extractor has concepts [0, {settings.concepts - 1}]; "
                "build it with the store's number of concepts"
            )


def span(values: Tensor) -> tuple[int, int]:
    """Smallest and largest value of an integer tensor of any type, without a widened copy."""
    array = values.detach().cpu().numpy()  # torch has no min of unsigned types on every platform
    return int(array.min()), int(array.max())


def check_log(settings: TrainSettings, checkpoint: Path | None) -> None:
    """Refuse a log that cannot be written."""
    if not settings.tensorboard:
        return
    if checkpoint is None:
        raise ConfigError("tensorboard=True writes beside the checkpoint, but there is none; name a checkpoint file")
    summary_writer()


def summary_writer() -> Any:
    """TensorBoard's writer class."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it imports is deprecated in turn
            from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra(
            "a TensorBoard log needs tensorboard; install it with: pip install 'vqcortex[tensorboard]'"
        ) from error
    return SummaryWriter


@contextmanager
def log_of(fabric: Any, job: Job, first: int) -> Iterator[OnEpoch]:
    """Yield what writes an epoch to the TensorBoard log, or does nothing when none was asked for."""
    if not job.settings.tensorboard or job.checkpoint is None or fabric.global_rank:
        yield lambda report: None
        return
    with summary_writer()(str(job.checkpoint.parent / "tensorboard"), purge_step=first + 1) as writer:

        def log(report: EpochReport) -> None:
            for name in ("train_loss", "validation_loss", "validation_accuracy", "rate"):
                writer.add_scalar(name, getattr(report, name), report.epoch)

        yield log


def new_fabric(settings: TrainSettings) -> Any:
    """Lightning's Fabric for these settings."""
    from lightning.fabric import Fabric

    kind, _, index = settings.device.partition(":")
    return Fabric(
        accelerator=kind,
        devices=[int(index)] if index else settings.devices,
        strategy="ddp_spawn" if settings.devices > 1 else "auto",
        precision=settings.precision,
    )


def loggers() -> list[logging.Logger]:
    """Where Lightning's announcements go; importing it sets their levels."""
    try:
        import lightning.fabric
    except ImportError as error:
        raise MissingExtra("training needs lightning; install it with: pip install lightning") from error
    return [logging.getLogger(name) for name in (lightning.fabric.__name__, "lightning.pytorch")]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning from logging and warning; everything else may still."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning.*")
        before = [(logger, logger.level) for logger in loggers()]
        for logger, _ in before:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in before:
                logger.setLevel(level)
