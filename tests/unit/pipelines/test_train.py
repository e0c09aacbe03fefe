"""Training inside a study."""

import json
import shutil

import pytest
import torch

import vqcortex.pipelines.train as training
from vqcortex.errors import ConfigError
from vqcortex.extractors.checkpoint import load_trained
from vqcortex.extractors.train import TrainData
from vqcortex.pipelines.loaded import load_all
from vqcortex.pipelines.settings import TrainSettings
from vqcortex.pipelines.study import Study
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
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    shutil.copytree(toy_study.folder, tmp_path / "s")
    settings = TrainSettings(out=tmp_path / "s", epochs=1, minibatch=32, width=8, tensorboard=True)
    trained = train(settings)
    assert trained.settings["width"] == 8
    logs = list((tmp_path / "s" / "train" / "log").rglob("events.*"))
    assert logs
    record = json.loads((tmp_path / "s" / "train" / "stage.json").read_text())
    assert not [name for name in record["outputs"] if "events" in name]


def test_companions_are_trained_beside_the_extractor(toy_study):
    loaded = load_all(toy_study, "cpu")
    assert list(loaded.members) == ["conv8", "pictures"]
    assert loaded.companions["pictures"].metrics["top1"] > 3 / 8
    assert loaded.companions["pictures"].module.window.decode is not None


def test_another_variant_is_another_network(toy_study, tmp_path):
    shutil.copytree(toy_study.folder, tmp_path / "s")
    settings = TrainSettings(out=tmp_path / "s", epochs=1, minibatch=32, companions=("conv8:1", "conv8:2"), width=8)
    train(settings)
    one, two = load_all(Study(tmp_path / "s"), "cpu").companions.values()
    assert one.extractor == two.extractor == "conv8"
    assert one.identity != two.identity
    assert one.settings["width"] != 8  # width and depth are those of the first


def test_a_killed_run_keeps_the_extractors_that_were_finished(toy_study, tmp_path, monkeypatch):
    shutil.copytree(toy_study.folder, tmp_path / "s")
    settings = TrainSettings(out=tmp_path / "s", epochs=1, minibatch=32, companions=("se_resnet",))
    fit = training._fit
    with monkeypatch.context() as broken:
        broken.setattr(
            training, "_fit", lambda folder, name, *rest: _break() if name != "conv8" else fit(folder, name, *rest)
        )
        with pytest.raises(KeyboardInterrupt):
            train(settings)
    done = []
    monkeypatch.setattr(training, "_fit", lambda folder, name, *rest: (done.append(name), fit(folder, name, *rest)))
    train(settings)
    assert done == ["se_resnet"]


def _break():
    raise KeyboardInterrupt


def test_companions_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ConfigError, match=r"'conv8' is asked for twice; give the other one a variant: 'conv8:1'"):
        TrainSettings(companions=("conv8",)).check()
    with pytest.raises(ConfigError, match=r"companion 'pictures:x' must be NAME or NAME:VARIANT"):
        TrainSettings(companions=("pictures:x",)).check()
