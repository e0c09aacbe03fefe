"""Train the information extractor of a study and measure it on held-out images."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vqcortex.adapters.protocol import DECODE, Adapter, check_ability
from vqcortex.calibration import fit_temperature
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError
from vqcortex.extractors import EXTRACTORS
from vqcortex.extractors.checkpoint import TrainedExtractor, load_trained, settings_of
from vqcortex.extractors.protocol import build_extractor, see_with
from vqcortex.extractors.quality import collected_logits, evaluate_extractor
from vqcortex.extractors.train import TrainData, TrainReport, train_extractor
from vqcortex.extractors.train import TrainSettings as Training
from vqcortex.files import write_json
from vqcortex.pipelines.loaded import REPORTED, architecture_of, companion_folder, open_tokens
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import TrainSettings
from vqcortex.pipelines.study import LOG, Study, run_stage, stage_key
from vqcortex.seeds import number_for
from vqcortex.tokens.grid import smallest_id_type
from vqcortex.tokens.store import TokenStore

LEARNED = ("train", "validation")
HISTORY = "history.json"


def train(settings: TrainSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> TrainedExtractor:
    """Train on a study's training images, choose the epoch and the temperature on validation, report on test.

    The companions are trained likewise, one after the other, each in a folder of its own below companions/.

    Args:
        settings: What to train, and how.
        progress: Told how far it is.
        engine: Where shards are read; the networks are trained in this process, or on several devices beside it.
    Returns:
        The extractor, with its held-out figures in `metrics`.
    Raises:
        StudyError: The study has no tokens yet.
        ConfigError: A concept has no images, or a setting is wrong.
        ModelError: The extractor looks through a decoder that the model does not have.
        UnknownName: No such extractor.
    """
    settings.check()
    study = Study(settings.out)
    for name in (settings.extractor, *settings.companions):
        _ = EXTRACTORS[architecture_of(name)]  # an unknown name is told before the store is read
    store, model = open_tokens(study, settings.device)
    if needs_decoder(settings.extractor):
        check_ability(model.name, model.abilities, DECODE, "choose another --extractor")
    key = stage_key("train", settings, TrainSettings, {"tokens": study.fingerprint("tokens")})
    run_stage(study, key, lambda folder: _train(folder, settings, store, model, progress, engine))
    return load_trained(study.path("train"), model_identity=model.identity)


def needs_decoder(name: str) -> bool:
    """Whether an extractor, NAME or NAME:VARIANT, looks through the model's decoder."""
    return EXTRACTORS[architecture_of(name)].looks_through_decoder


def _train(
    folder: Path, settings: TrainSettings, store: TokenStore, model: Adapter, progress: Progress, engine: Engine
) -> None:
    data = read_data(store, engine)
    check_concepts(data, store.manifest.concepts)
    wanted = [one for one in settings.companions if DECODE in model.abilities or not needs_decoder(one)]
    for name, place in ((settings.extractor, folder), *((one, companion_folder(folder, one)) for one in wanted)):
        if not (place / HISTORY).is_file():  # written last; a killed run may have finished some
            _fit(place, name, settings, data, store, model, progress)


def _fit(
    folder: Path,
    name: str,
    settings: TrainSettings,
    data: TrainData,
    store: TokenStore,
    model: Adapter,
    progress: Progress,
) -> None:
    codebook, is_first = model.codebook.detach(), name == settings.extractor
    overrides = {one: value for one in ("width", "depth") if (value := getattr(settings, one)) and is_first}
    seed = settings.seed if is_first else number_for(settings.seed, "companion", name)
    module = build_extractor(
        architecture_of(name), codebook.shape[1], model.grid, len(store.manifest.concepts), seed, **overrides
    )
    training = Training(
        epochs=settings.epochs, rate=settings.rate, weight_decay=settings.weight_decay,
        step_every=settings.step_every, step_factor=settings.step_factor, minibatch=settings.minibatch,
        patience=settings.patience or None, precision=settings.precision,  # type: ignore[arg-type]
        device=settings.device, seed=seed, tensorboard=settings.tensorboard,
    )  # fmt: skip
    state = folder / LOG / "training.pt"
    with progress.bar(f"train: {name}, epochs", settings.epochs) as advance:
        report = train_extractor(
            see_with(module, model.decode), data, training, codebook, state, on_epoch=lambda _: advance()
        )
    module.to(settings.device)
    save(folder, architecture_of(name), settings.batch, store, model, module, report)
    if not settings.tensorboard:
        shutil.rmtree(state.parent, ignore_errors=True)


def save(
    folder: Path,
    architecture: str,
    batch: int,
    store: TokenStore,
    model: Adapter,
    module: torch.nn.Module,
    report: TrainReport,
) -> None:
    """Measure the trained network and write it with its history."""
    codebook = model.codebook
    held_out = collected_logits(module, codebook, pairs(store, "validation"), batch)
    temperature = fit_temperature(*held_out)
    metrics = evaluate_extractor(module, codebook, pairs(store, REPORTED), batch=batch, temperature=temperature)
    parameters = sum(one.numel() for one in module.parameters())
    TrainedExtractor(
        extractor=architecture,
        settings=settings_of(module),
        concepts=store.manifest.concepts,
        d=codebook.shape[1],
        grid=model.grid,
        model_identity=model.identity,
        temperature=temperature,
        metrics={**metrics, "parameters": parameters, "best_epoch": report.best, "epochs": len(report.epochs)},
        module=module,
    ).save_trained(folder)
    write_json(folder / HISTORY, {"epochs": [asdict(one) for one in report.epochs]})


def read_data(store: TokenStore, engine: Engine = SERIAL) -> TrainData:
    """Training and validation images of a store as small integers: two bytes per token, never floats."""
    shards = list(engine.map(partial(_small_shard, store=store, splits=LEARNED), range(len(store.shards))))
    tokens, labels = [], []
    for place, split in enumerate(LEARNED):
        if not sum(len(shard[place][1]) for shard in shards):
            raise ConfigError(
                f"the store at {str(store.folder)!r} has no {split} images; "
                "make tokens again with a larger --per-concept"
            )
        tokens.append(torch.cat([shard[place][0] for shard in shards]))
        labels.append(torch.cat([shard[place][1] for shard in shards]))
    return TrainData(tokens=tokens[0], labels=labels[0], validation_tokens=tokens[1], validation_labels=labels[1])


def _small_shard(number: int, *, store: TokenStore, splits: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """Tokens and labels of a shard's images, split by split."""
    batch = store.read(number, pictures=False)
    small = torch.from_numpy(batch.tokens.numpy().astype(smallest_id_type(store.manifest.k)))
    rows = [[row for row, one in enumerate(batch.split) if one == split] for split in splits]
    return [(small[one], batch.concept[one]) for one in rows]


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
