"""A trained extractor: weights, sizes, what it was trained on, how good it is; two files, loaded with checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from vqcortex.errors import ModelError, VqCortexError
from vqcortex.extractors.protocol import network_from
from vqcortex.files import hash_of_bytes, write_bytes, write_json

WEIGHTS, ABOUT = "extractor.safetensors", "extractor.json"
FORMAT = 1
NAMED = 3  # offenders a message names


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedExtractor:
    """An extractor with everything needed to use it and to trust it.

    Args:
        extractor: Its name in EXTRACTORS.
        settings: Sizes of the network, as plain values; `settings_of` makes them.
        concepts: What the logits stand for, in order.
        d: Numbers per code it reads.
        grid: Rows and columns it reads, (h, w).
        model_identity: Identity of the vector-quantized model whose tokens it was trained on.
        temperature: Divide logits by this before a softmax to get calibrated probabilities.
        metrics: Held-out figures, by name; they do not enter the identity.
        module: The network, in eval mode.
    """

    extractor: str
    settings: Mapping[str, Any]
    concepts: tuple[str, ...]
    d: int
    grid: tuple[int, int]
    model_identity: str
    temperature: float
    metrics: Mapping[str, Any]
    module: nn.Module

    @property
    def identity(self) -> str:
        """SHA-256 over everything that decides its numbers: sizes, weights, concepts, model, temperature."""
        return identity_of(facts_of(self), save(weights_of(self.module)))

    def save_trained(self, folder: Path) -> str:
        """Write extractor.safetensors and extractor.json, each whole or not at all; returns the identity.

        Raises:
            StudyError: The folder cannot be written.
        """
        weights, facts = save(weights_of(self.module)), facts_of(self)
        identity = identity_of(facts, weights)
        about = {**facts, "format": FORMAT, "identity": identity, "metrics": dict(self.metrics)}
        # The description goes last and holds a hash of the weights: torn pairs are noticed on loading.
        write_bytes(folder / WEIGHTS, weights)
        write_json(folder / ABOUT, about)
        return identity


def settings_of(module: nn.Module) -> dict[str, Any]:
    """Sizes of a network as plain values that survive JSON unchanged."""
    settings: Any = module.settings
    values: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return values


def load_trained(folder: Path, model_identity: str | None = None) -> TrainedExtractor:
    """Read what `save_trained` wrote, onto the CPU, in eval mode.

    Args:
        folder: Where it was saved.
        model_identity: Identity of the model it is to be used with; None: any.

    Raises:
        ModelError: Files are missing, altered or torn, weights are NaN, or it belongs to another model.
    """
    about, weights = read_about(folder), read_bytes(folder / WEIGHTS)
    facts = {key: about[key] for key in FACTS}
    if identity_of(facts, weights) != about["identity"]:
        raise ModelError(
            f"extractor in {str(folder)!r} does not match its identity {short(about['identity'])}; "
            f"{WEIGHTS} or {ABOUT} was altered or cut short; copy both again or train it again"
        )
    if model_identity is not None and about["model_identity"] != model_identity:
        raise ModelError(
            f"extractor in {str(folder)!r} was trained on tokens of model {short(about['model_identity'])} but is "
            f"asked to read those of {short(model_identity)}; load that model or train an extractor for this one"
        )
    return assembled(about, weights, folder)


def assembled(about: Mapping[str, Any], weights: bytes, folder: Path) -> TrainedExtractor:
    """Build the network and put it together with its facts."""
    try:
        state = load(weights)
        module = network_from(about["extractor"], about["settings"])
    except (SafetensorError, VqCortexError) as error:
        raise ModelError(f"extractor in {str(folder)!r} cannot be built: {error}; train it again") from error
    fill(module, state, str(folder))
    return TrainedExtractor(
        extractor=about["extractor"],
        settings=about["settings"],
        concepts=tuple(about["concepts"]),
        d=about["d"],
        grid=tuple(about["grid"]),
        model_identity=about["model_identity"],
        temperature=about["temperature"],
        metrics=about["metrics"],
        module=module.eval(),
    )


FACTS = ("concepts", "d", "extractor", "grid", "model_identity", "settings", "temperature")


def facts_of(trained: TrainedExtractor) -> dict[str, Any]:
    """Everything but the weights that decides its numbers, as JSON values."""
    values = {key: getattr(trained, key) for key in FACTS}
    return {key: list(one) if isinstance(one, tuple) else one for key, one in values.items()}


def identity_of(facts: Mapping[str, Any], weights: bytes) -> str:
    """SHA-256 of facts and weights."""
    text = json.dumps([facts, hash_of_bytes(weights)], sort_keys=True, default=dict)
    return hash_of_bytes(text.encode())


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """State of a network on the CPU, in memory order safetensors accepts."""
    return {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}


def read_bytes(path: Path) -> bytes:
    """Read a file of an extractor."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read {str(path)!r}: {error.strerror}; an extractor's folder holds {ABOUT} and {WEIGHTS}; "
            "train one first, or name its folder"
        ) from error


def read_about(folder: Path) -> dict[str, Any]:
    """Read and check the description of an extractor."""
    path = folder / ABOUT
    try:
        about = json.loads(read_bytes(path))
    except ValueError as error:  # broken UTF-8 and broken JSON alike
        raise ModelError(f"{str(path)!r} is not JSON ({error}); copy it again or train it again") from error
    needed = {*FACTS, "format", "identity", "metrics"}
    if not isinstance(about, dict) or not needed <= set(about):
        lacks = sorted(needed - set(about)) if isinstance(about, dict) else sorted(needed)
        raise ModelError(f"{str(path)!r} lacks {', '.join(lacks)}; it is no description of an extractor")
    if about["format"] != FORMAT:
        raise ModelError(f"{str(path)!r} has format {about['format']}, this version reads {FORMAT}; update vqcortex")
    return about


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str, name_of: Callable[[str], str] = str) -> None:
    """Load weights into a network, strictly: the same names and shapes, and finite numbers only.

    Args:
        module: Gets the weights; may be on the meta device.
        state: Weights by name.
        source: Where they came from, for messages.
        name_of: What `state` calls a key of `module`; the default is: the same.

    Raises:
        ModelError: Names the first offenders.
    """
    wanted = {name_of(key): value for key, value in module.state_dict().items()}
    check_none(source, "lack", [key for key in wanted if key not in state])
    check_none(source, "hold unknown", [key for key in state if key not in wanted])
    shapes = ((key, tuple(state[key].shape), tuple(wanted[key].shape)) for key in wanted)
    wrong = [f"{key} {has} instead of {needs}" for key, has, needs in shapes if has != needs]
    check_none(source, "have wrong shapes:", wrong)
    check_none(source, "hold NaN or infinite numbers in", [key for key in wanted if not is_finite(state[key])])
    copies = {key: state[name_of(key)].to(like.dtype, copy=True) for key, like in module.state_dict().items()}
    module.load_state_dict(copies, assign=True)


def check_none(source: str, complaint: str, offenders: Iterable[str]) -> None:
    """Raise when there are offenders, naming the first few."""
    found = list(offenders)
    if found:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise ModelError(
            f"weights in {source!r} {complaint} {', '.join(found[:NAMED])}{more}; "
            "check that the file is whole and belongs to this network, or train it again"
        )


def is_finite(tensor: Tensor) -> bool:
    """True when a tensor holds no NaN and no infinity."""
    return bool(torch.isfinite(tensor).all())


def short(identity: str) -> str:
    """First twelve digits of an identity: enough to tell two apart in a message."""
    return identity[:12]
