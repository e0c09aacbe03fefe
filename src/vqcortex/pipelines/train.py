"""Train the information extractor of a study and measure it on held-out images."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from vqcortex.adapters.protocol import Adapter
from vqcortex.calibration import fit_temperature
from vqcortex.errors import ConfigError
from vqcortex.extractors import EXTRACTORS
from vqcortex.extractors.checkpoint import TrainedExtractor, load_trained, settings_of
from vqcortex.extractors.protocol import build_extractor
from vqcortex.extractors.quality import collected_logits, evaluate_extractor
from vqcortex.extractors.train import TrainData, TrainReport, train_extractor
from vqcortex.extractors.train import TrainSettings as Training
from vqcortex.files import write_json
from vqcortex.pipelines.loaded import REPORTED, open_tokens
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import TrainSettings
from vqcortex.pipelines.study import LOG, Study, run_stage, stage_key
from vqcortex.tokens.grid import smallest_id_type
from vqcortex.tokens.store import TokenStore


def train(settings: TrainSettings, *, progress: Progress = QUIET) -> TrainedExtractor:
    """Train on a study's training images, choose the epoch and the temperature on validation, report on test.

    Returns:
        The extractor, with its held-out figures in `metrics`.
    Raises:
        StudyError: The study has no tokens yet.
        ConfigError: A concept has no images, or a setting is wrong.
        UnknownName: No such extractor.
    """
    settings.check()
    study = Study(settings.out)
    _ = EXTRACTORS[settings.extractor]  # an unknown name is told before the store is read
    store, model = open_tokens(study, settings.device)
    key = stage_key("train", settings, TrainSettings, {"tokens": study.fingerprint("tokens")})
    run_stage(study, key, lambda folder: _train(folder, settings, store, model, progress))
    return load_trained(study.path("train"), model_identity=model.identity)


def _train(folder: Path, settings: TrainSettings, store: TokenStore, model: Adapter, progress: Progress) -> None:
    data, codebook, concepts = read_data(store), model.codebook.detach(), store.manifest.concepts
    check_concepts(data, concepts)
    overrides = {name: value for name in ("width", "depth") if (value := getattr(settings, name))}
    module = build_extractor(
        settings.extractor, codebook.shape[1], model.grid, len(concepts), settings.seed, **overrides
    )
    training = Training(
        epochs=settings.epochs, rate=settings.rate, weight_decay=settings.weight_decay,
        step_every=settings.step_every, step_factor=settings.step_factor, minibatch=settings.minibatch,
        patience=settings.patience or None, precision=settings.precision,  # type: ignore[arg-type]
        device=settings.device, seed=settings.seed, tensorboard=settings.tensorboard,
    )  # fmt: skip
    state = folder / LOG / "training.pt"
    with progress.bar("train: epochs", settings.epochs) as advance:
        report = train_extractor(module, data, training, codebook, state, on_epoch=lambda _: advance())
    module.to(settings.device)
    save(folder, settings, store, model, module, report)
    if not settings.tensorboard:
        shutil.rmtree(state.parent, ignore_errors=True)


def save(
    folder: Path,
    settings: TrainSettings,
    store: TokenStore,
    model: Adapter,
    module: torch.nn.Module,
    report: TrainReport,
) -> None:
    """Measure the trained network and write it with its history."""
    codebook = model.codebook
    held_out = collected_logits(module, codebook, pairs(store, "validation"), settings.batch)
    temperature = fit_temperature(*held_out)
    metrics = evaluate_extractor(
        module, codebook, pairs(store, REPORTED), batch=settings.batch, temperature=temperature
    )
    parameters = sum(one.numel() for one in module.parameters())
    TrainedExtractor(
        extractor=settings.extractor,
        settings=settings_of(module),
        concepts=store.manifest.concepts,
        d=codebook.shape[1],
        grid=model.grid,
        model_identity=model.identity,
        temperature=temperature,
        metrics={**metrics, "parameters": parameters, "best_epoch": report.best, "epochs": len(report.epochs)},
        module=module,
    ).save_trained(folder)
    write_json(folder / "history.json", {"epochs": [asdict(one) for one in report.epochs]})


def read_data(store: TokenStore) -> TrainData:
    """Training and validation images of a store as small integers: two bytes per token, never floats."""
    return TrainData(
        **dict(zip(("tokens", "labels"), _split(store, "train"), strict=True)),
        **dict(zip(("validation_tokens", "validation_labels"), _split(store, "validation"), strict=True)),
    )


def _split(store: TokenStore, split: str) -> tuple[Tensor, Tensor]:
    small = smallest_id_type(store.manifest.k)
    tokens, labels = [], []
    for grids, concept in pairs(store, split):
        tokens.append(torch.from_numpy(grids.numpy().astype(small)))
        labels.append(concept)
    if not tokens:
        raise ConfigError(
            f"the store at {str(store.folder)!r} has no {split} images; make tokens again with a larger --per-concept"
        )
    return torch.cat(tokens), torch.cat(labels)


def pairs(store: TokenStore, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Token grids and labels of a split, streamed."""
    for batch in store.batches(1024, split=split, pictures=False):
        yield batch.tokens, batch.concept


def check_concepts(data: TrainData, concepts: tuple[str, ...]) -> None:
    """Return quietly if every concept has training images."""
    counts = data.labels.bincount(minlength=len(concepts)).tolist()
    for name, count in zip(concepts, counts, strict=True):
        if not count:
            raise ConfigError(
                f"concept {name!r} has no training images; add images of it, or leave it out with --concepts"
            )
