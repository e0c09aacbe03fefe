"""What several stages of a study read: its store, its model, its extractor, its scores."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import Adapter
from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import StudyError
from vqcortex.extractors.checkpoint import TrainedExtractor, load_trained
from vqcortex.extractors.protocol import see_with
from vqcortex.files import replacing
from vqcortex.pipelines.study import Study
from vqcortex.tokens.shard import joined
from vqcortex.tokens.store import TokenBatch, TokenStore, open_store

# Images that explain: concept tokens are pooled from these. What is reported about them is measured on test images.
EXPLAINED = ("train", "validation")
REPORTED = "test"
PUBLISHED = "tis"
AT_ONCE = 1000  # images read together


@final
@dataclass(frozen=True, slots=True)
class Loaded:
    """A study's store, the model that made it, and its extractors on the device.

    Args:
        store: The tokens.
        model: What made them.
        trained: The study's extractor.
        companions: Further extractors of the same concepts, by NAME or NAME:VARIANT, in the order they were asked for.
    """

    store: TokenStore
    model: Adapter
    trained: TrainedExtractor
    companions: Mapping[str, TrainedExtractor] = field(default_factory=dict)

    @property
    def members(self) -> dict[str, TrainedExtractor]:
        """All extractors by name, the study's own first."""
        return {self.trained.extractor: self.trained, **self.companions}

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names, in the order of the store's labels and the extractor's logits."""
        return self.store.manifest.concepts


def open_tokens(study: Study, device: str, verify: bool = True) -> tuple[TokenStore, Adapter]:
    """The store of a study and the model that its manifest names.

    Args:
        study: With its tokens made.
        device: Where the model's tensors live.
        verify: Check every byte of the store, as `open_store` does.
    """
    study.record("tokens")
    store = open_store(study.path("tokens"), verify=verify)
    model = load_model(store.manifest.model, device)
    return open_store(study.path("tokens"), model_identity=model.identity, verify=False), model


def load_all(study: Study, device: str, verify: bool = True) -> Loaded:
    """Store, model and trained extractors of a study; arguments as in `open_tokens`."""
    store, model = open_tokens(study, device, verify)
    asked, folder = study.record("train")["key"]["settings"]["companions"], study.path("train")
    places = {one: place for one in asked if (place := companion_folder(folder, one)).is_dir()}
    companions = {one: _extractor(place, model, device) for one, place in places.items()}
    return Loaded(store, model, _extractor(folder, model, device), companions)


def _extractor(folder: Path, model: Adapter, device: str) -> TrainedExtractor:
    trained = load_trained(folder, model_identity=model.identity)
    see_with(trained.module, model.decode).to(device)
    return trained


def architecture_of(name: str) -> str:
    """The architecture of an extractor called NAME or NAME:VARIANT."""
    return name.partition(":")[0]


def companion_folder(folder: Path, name: str) -> Path:
    """Where a companion lies in the folder of the stage that trains it."""
    return folder / "companions" / name.replace(":", "-")


def carry(study: Study, device: str, loaded: Loaded) -> Carried[Loaded]:
    """What was loaded of a study, for work that may be done in another process."""
    return Carried(loaded, load_at, study.folder.absolute(), device, *map(study.fingerprint, ("tokens", "train")))


def load_at(folder: Path, device: str, tokens: str, train: str) -> Loaded:
    """What `load_all` loads, where work is done; bytes were checked where it was given out.

    Args:
        folder: Of the study.
        device: As in `open_tokens`.
        tokens: Fingerprint of that stage where the work was given out.
        train: Likewise.

    Raises:
        StudyError: The study was changed meanwhile, or is another one here.
    """
    study = Study(folder)
    for stage, fingerprint in (("tokens", tokens), ("train", train)):
        if study.fingerprint(stage) != fingerprint:
            raise StudyError(
                f"stage {stage!r} of study {str(folder)!r} is not the one that work was given out for; "
                "let one process at a time write a study, and run the command again"
            )
    return load_all(study, device, verify=False)


@final
@dataclass(frozen=True, slots=True)
class Scored:
    """Importance of one shard's images.

    Args:
        image_ids: In the order of the token shard.
        importance: By method, (b, h, w).
        probability: The extractor's calibrated probability of each image's concept, (b,).
    """

    image_ids: tuple[str, ...]
    importance: dict[str, Float[Tensor, "b h w"]]
    probability: Float[Tensor, " b"]


def score_name(number: int) -> str:
    """File of the scores of token shard `number`."""
    return f"scores-{number:05d}.parquet"


def write_scores(scored: Scored, path: Path) -> None:
    """Write one shard of scores as fixed-size lists of float32, at once or not at all."""
    columns: dict[str, Any] = {"image_id": pa.array(scored.image_ids)}
    for name, maps in scored.importance.items():
        flat = maps.flatten(1).float().cpu().numpy()
        columns[f"importance:{name}"] = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    columns["probability"] = pa.array(scored.probability.float().cpu().numpy())
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def read_scores(path: Path, grid: tuple[int, int]) -> Scored:
    """Read what `write_scores` wrote.

    Raises:
        StudyError: The file is torn or not a scores file.
    """
    try:
        table = pq.read_table(path)
        names = [name for name in table.column_names if name.startswith("importance:")]
        return Scored(
            image_ids=tuple(map(str, table["image_id"].to_pylist())),
            importance={name.partition(":")[2]: _maps(table[name], grid) for name in names},
            probability=torch.tensor(table["probability"].to_pylist()),
        )
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise StudyError(f"scores {str(path)!r} cannot be read ({error}); remove the file and run again") from error


def _maps(column: Any, grid: tuple[int, int]) -> Float[Tensor, "b h w"]:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(flat, copy=True)).view(-1, *grid)


def scored_shards(study: Study, store: TokenStore, splits: tuple[str, ...]) -> Iterator[tuple[TokenBatch, Scored]]:
    """Token shards with their scores, one at a time, only the images of some splits."""
    study.record("score")
    return (scored_shard(number, study.path("score"), store, splits) for number in range(len(store.shards)))


def scored_shard(number: int, folder: Path, store: TokenStore, splits: tuple[str, ...]) -> tuple[TokenBatch, Scored]:
    """One token shard with its scores, only the images of some splits, without pictures.

    Args:
        number: Of the shard, from 0.
        folder: Of the scores.
        store: The tokens.
        splits: Of the images wanted.

    Raises:
        StudyError: The scores are torn, or those of other images.
    """
    batch = store.read(number, pictures=False)
    scored = read_scores(folder / score_name(number), store.manifest.grid)
    if scored.image_ids != batch.image_ids:
        raise StudyError(
            f"{score_name(number)} holds scores of other images than token shard {number}; "
            f"run 'vqcortex score --out {folder.parent}' again"
        )
    rows = [row for row, split in enumerate(batch.split) if split in splits]
    return batch.take(rows), _take(scored, rows)


def _take(scored: Scored, rows: list[int]) -> Scored:
    return Scored(
        image_ids=tuple(scored.image_ids[row] for row in rows),
        importance={name: maps[rows] for name, maps in scored.importance.items()},
        probability=scored.probability[rows],
    )


def first_images(store: TokenStore, split: str, most: int) -> TokenBatch:
    """The first images of a split, at most `most`, evenly over the concepts, in their order; without pictures.

    Raises:
        StudyError: The split has no images.
    """
    concepts = len(store.manifest.concepts)
    each = max(1, most // concepts)
    found: list[list[TokenBatch]] = [[] for _ in range(concepts)]
    for batch in store.batches(AT_ONCE, split=split, pictures=False):
        for row, concept in enumerate(batch.concept.tolist()):
            if len(found[concept]) < each:
                found[concept].append(batch.take([row]))
        if all(len(rows) == each for rows in found):
            break
    if not any(found):
        raise StudyError(f"the store at {str(store.folder)!r} has no {split} images; make more with --per-concept")
    images = joined([one for rows in found for one in rows])
    wanted = min(most, len(images))  # fewer than one per concept: those of every so manieth concept
    return images.take([place * len(images) // wanted for place in range(wanted)])


def code_counts(store: TokenStore, splits: tuple[str, ...], engine: Engine = SERIAL) -> Tensor:
    """How often each concept's images hold each code, (c, k), over the given splits."""
    counts = torch.zeros(len(store.manifest.concepts), store.manifest.k, dtype=torch.int64)
    for cells, times in engine.map(partial(_codes_of_shard, store=store, splits=splits), range(len(store.shards))):
        counts.view(-1)[cells] += times
    return counts


def _codes_of_shard(number: int, *, store: TokenStore, splits: Collection[str]) -> tuple[Tensor, Tensor]:
    """(concept * k + code, how often) of the codes that a shard's images of these splits hold."""
    batch = store.read(number, pictures=False)
    rows = torch.tensor([split in splits for split in batch.split])
    flat = batch.concept[rows, None, None] * store.manifest.k + batch.tokens[rows]
    return flat.unique(return_counts=True)
