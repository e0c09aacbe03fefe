"""Training inside a study."""

import json

import pytest
import torch

from vqcortex.errors import ConfigError
from vqcortex.extractors.checkpoint import load_trained
from vqcortex.extractors.train import TrainData
from vqcortex.pipelines.settings import TrainSettings
from vqcortex.pipelines.train import check_concepts, read_data, train
from vqcortex.tokens.store import open_store


def test_the_extractor_beats_chance_on_images_it_never_saw(toy_study):
    metrics = load_trained(toy_study.path("train")).metrics
    assert metrics["images"] == 8 * 6
    assert metrics["top1"] > 3 / 8
    assert metrics["top1"] <= metrics["top3"] <= metrics["top5"] <= 1


def test_the_history_has_every_epoch(toy_study):
    history = json.loads((toy_study.path("train") / "history.json").read_text())["epochs"]
    assert [one["epoch"] for one in history] == list(range(1, 13))


def test_tokens_are_held_as_small_integers(toy_study):
    data = read_data(open_store(toy_study.path("tokens")))
    assert data.tokens.dtype == torch.uint8
    assert len(data.tokens) == 8 * 21
    assert len(data.validation_tokens) == 8 * 3


def test_a_concept_without_training_images_is_named():
    none = torch.zeros(0, 1, 1)
    data = TrainData(
        tokens=torch.zeros(2, 1, 1, dtype=torch.uint8), labels=torch.tensor([0, 0]),
        validation_tokens=none.byte(), validation_labels=torch.zeros(0, dtype=torch.int64),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="concept 'dog' has no training images"):
        check_concepts(data, ("cat", "dog"))


def test_width_and_tensorboard_are_settings(toy_study, tmp_path, toy_settings):
    import shutil

    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    shutil.copytree(toy_study.folder, tmp_path / "s")
    settings = TrainSettings(out=tmp_path / "s", epochs=1, minibatch=32, width=8, tensorboard=True)
    trained = train(settings)
    assert trained.settings["width"] == 8
    logs = list((tmp_path / "s" / "train" / "log").rglob("events.*"))
    assert logs
    record = json.loads((tmp_path / "s" / "train" / "stage.json").read_text())
    assert not [name for name in record["outputs"] if "events" in name]
