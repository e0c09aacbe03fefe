"""The training recipe of the CIFAR-10 models: resuming, faults, data, and what it writes."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lightning.fabric import Fabric
from PIL import Image
from torch import nn

from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.zoo import open_model
from vqcortex.errors import DataError
from vqcortex.judges import load_judges
from vqcortex.judges.cct import CCT, CCTSettings
from vqcortex.judges.cnn import CNN, CNNSettings

FOLDER = Path(__file__).parents[2] / "recipes/cifar10_vqgan"
FILES = ("loop", "networks", "first_stage", "data", "classifiers", "transformer")


@pytest.fixture(scope="module")
def recipe():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in FILES})
    for name in FILES:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def fabric():
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def often(recipe, monkeypatch):
    """A checkpoint every second step, a point of the curve every step."""
    monkeypatch.setattr(recipe.loop, "SAVE_EVERY", 2)
    monkeypatch.setattr(recipe.loop, "NOTE_EVERY", 1)


PIXELS = torch.randint(256, (24, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def first_stage(recipe, fabric, folder, **changed):
    settings = {
        "widths": (32, 32), "blocks": 0, "z_channels": 8, "d": 4, "codes": 16, "epochs": 2, "batch": 8, "rate": 1e-3,
        "adversary_from": 0.3, "average": 0.5,
    }  # fmt: skip
    torch.manual_seed(5)
    eye = recipe.networks.Eye(3, width=4)
    made = recipe.first_stage.FirstStageSettings(**{**settings, **changed})
    return recipe.first_stage.train_first_stage("vqgan", made, PIXELS, eye, folder, fabric, seed=1)


@pytest.mark.usefixtures("often")
def test_a_killed_training_resumes_to_the_same_weights_and_curve(recipe, fabric, tmp_path, monkeypatch):
    whole = first_stage(recipe, fabric, tmp_path / "whole")
    save, saved = recipe.loop.save_training_state, []

    def killed(state, path):
        if saved:
            raise KeyboardInterrupt
        saved.append(path)
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(recipe.loop, "save_training_state", killed)
        with pytest.raises(KeyboardInterrupt):
            first_stage(recipe, fabric, tmp_path / "killed")
    assert torch.load(tmp_path / "killed/vqgan.pt", weights_only=True)["step"] == 2
    again = first_stage(recipe, fabric, tmp_path / "killed")
    assert whole.steps == again.steps == 6
    assert all(torch.equal(whole.weights[name], again.weights[name]) for name in whole.weights)
    curves = [json.loads((tmp_path / one / "vqgan.curve.json").read_text()) for one in ("whole", "killed")]
    assert curves[0] == curves[1]
    # The adversary comes in late, and then has a loss of its own.
    assert [("adversary" in point) for point in curves[0]] == [False, False, True, True, True, True]


@pytest.mark.usefixtures("often")
def test_a_finished_training_is_not_done_again(recipe, fabric, tmp_path):
    whole = first_stage(recipe, fabric, tmp_path)
    before = (tmp_path / "vqgan.pt").stat().st_mtime_ns
    again = first_stage(recipe, fabric, tmp_path)
    assert (tmp_path / "vqgan.pt").stat().st_mtime_ns == before
    assert all(torch.equal(whole.weights[name], again.weights[name]) for name in whole.weights)
    found = recipe.loop.finished("vqgan", tmp_path)
    assert all(torch.equal(whole.weights[name], found[name]) for name in found)


@pytest.mark.usefixtures("often")
def test_other_settings_do_not_go_on_from_a_checkpoint(recipe, fabric, tmp_path):
    first_stage(recipe, fabric, tmp_path)
    with pytest.raises(ValueError, match=r"training of 6 steps and this one has 9; remove the file"):
        first_stage(recipe, fabric, tmp_path, epochs=3)


def test_weights_of_an_unfinished_training_are_not_taken(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vqgan\.pt is not a finished training; run the step before"):
        recipe.loop.finished("vqgan", tmp_path)


def line(recipe, folder, fabric, *, broken_at=None, accumulate=1):
    """A straight line fitted to 12 numbers."""
    torch.manual_seed(0)
    module, x = nn.Linear(1, 1), torch.arange(12.0)[:, None] / 12

    def loss(rows, rng, step):
        value = (module(x[rows]) - 2 * x[rows]).square().mean()
        return value * float("nan") if step == broken_at else value

    player = recipe.loop.Player(name="line", module=module, loss=loss, rate=0.1)
    job = recipe.loop.Job(name="line", players=[player], images=12, epochs=30, batch=4, seed=0, accumulate=accumulate)
    return recipe.loop.train(job, folder, fabric)


@pytest.mark.usefixtures("often")
def test_a_loss_that_is_not_a_number_stops_with_its_step_and_keeps_the_last_good_checkpoint(recipe, fabric, tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss of line is nan at step 5; .*line\.pt holds the last good step"):
        line(recipe, tmp_path, fabric, broken_at=5)
    saved = torch.load(tmp_path / "line.pt", weights_only=True)
    assert saved["step"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in saved["modules"]["line"].values())


def test_a_batch_in_parts_moves_the_weights_as_a_whole_one(recipe, fabric, tmp_path):
    whole, parts = (line(recipe, tmp_path / str(n), fabric, accumulate=n).weights for n in (1, 2))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)
    assert whole["weight"].item() == pytest.approx(2, abs=0.3)  # it did learn


def test_the_learning_rate_rises_then_falls_to_nothing(recipe):
    rates = [recipe.loop.rate_at(i / 100, 1.0) for i in range(101)]
    assert max(rates) == pytest.approx(1.0, abs=1e-2)
    assert rates.index(max(rates)) == 5
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_codes_that_nobody_uses_are_revived_on_latents(recipe):
    book = recipe.first_stage.MovingCodebook(3, 2)
    table = torch.zeros(3, 2)
    latents = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    book.count.copy_(torch.tensor([9.0, 0.1, 9.0]))
    book.revive(table, latents, torch.Generator().manual_seed(0))
    assert table[1].tolist() in latents.tolist()
    assert not table[[0, 2]].any()


def test_codes_move_to_the_mean_of_the_latents_that_choose_them(recipe, fabric):
    book, table = recipe.first_stage.MovingCodebook(2, 1), torch.tensor([[0.0], [5.0]])
    book.total.copy_(table * book.count[:, None])
    latents, tokens = torch.tensor([[1.0], [3.0], [6.0]]), torch.tensor([0, 0, 1])
    for _ in range(2000):
        book.update(table, latents, tokens, fabric)
    assert table.flatten().tolist() == pytest.approx([2.0, 6.0], abs=1e-3)


def test_the_two_losses_pull_equally_hard_at_the_last_layer(recipe):
    last = torch.ones(4, requires_grad=True)
    ours, theirs = (3 * last).sum(), (0.5 * last).sum()
    assert recipe.first_stage.adaptive_weight(ours, theirs, last).item() == pytest.approx(6, rel=1e-3)


def test_shifted_images_are_those_of_a_loop_over_images(recipe):
    moved = recipe.classifiers.shifted(PIXELS, torch.Generator().manual_seed(3))
    down, right = torch.randint(9, (2, len(PIXELS)), generator=torch.Generator().manual_seed(3))
    padded = nn.functional.pad(PIXELS.float(), (4,) * 4, mode="reflect").to(torch.uint8)
    for image, whole, y, x in zip(moved, padded, down.tolist(), right.tolist(), strict=True):
        assert torch.equal(image, whole[:, y : y + 8, x : x + 8])


def test_the_transformer_learns_what_follows_a_class(recipe, fabric, tmp_path):
    settings = recipe.transformer.PriorSettings(
        width=16, layers=1, heads=2, epochs=120, batch=8, rate=1e-2, average=0.9, keep=1.0, drop_class=0.5
    )
    labels = torch.arange(8) % 2
    tokens = labels[:, None, None].expand(8, 2, 4) + 2  # class 0 draws 2, 2, 2, 2; class 1 draws 3, 3, 3, 3
    found = recipe.transformer.train_transformer(settings, tokens, labels, tmp_path, fabric, codes=8, empty=2, seed=0)
    module = recipe.transformer.new_transformer(settings, codes=8, positions=4, seed=0)
    module.load_state_dict(found.weights)
    assert module(torch.tensor([[0, 2, 2, 2], [1, 3, 3, 3]])).argmax(2).tolist() == [[2] * 4, [3] * 4]
    first = module(torch.tensor([[2]])).softmax(2)[0, 0]
    assert first[[2, 3]].min() > 0.1  # without a class it may be either


def parquet(path, sizes, broken=(), classes=10):
    cells = []
    for row, size in enumerate(sizes):
        held = io.BytesIO()
        Image.new("RGB", size, (row, 0, 0)).save(held, "PNG")
        cells.append({"bytes": held.getvalue()[:40] if row in broken else held.getvalue(), "path": None})
    pq.write_table(pa.table({"image": cells, "label": [i % classes for i in range(len(cells))]}), path)


def test_images_come_as_bytes_with_labels(recipe, tmp_path):
    parquet(tmp_path / "train.parquet", [(32, 32)] * 11)
    found = recipe.data.read_images(f"parquet:{tmp_path}", "train")
    assert found.pixels.shape == (11, 3, 32, 32)
    assert found.pixels[:, 0, 0, 0].tolist() == list(range(11))
    assert found.labels.tolist() == [*range(10), 0]


def test_every_class_is_seen_and_held_out_even_if_the_source_is_sorted(recipe):
    labels = torch.arange(10).repeat_interleave(20)
    images = recipe.data.Images(pixels=torch.arange(200)[:, None, None, None].expand(-1, 3, 32, 32), labels=labels)
    seen, held = images.apart(0.1, 0)
    assert seen.labels.bincount().tolist() == [18] * 10
    assert held.labels.bincount().tolist() == [2] * 10
    numbers = torch.cat([seen.pixels, held.pixels])[:, 0, 0, 0]
    assert torch.equal(numbers.sort().values, torch.arange(200))
    assert torch.equal(images.apart(0.1, 0)[1].pixels, held.pixels)
    assert not torch.equal(images.apart(0.1, 1)[1].pixels, held.pixels)


def test_an_image_of_another_size_is_named_by_its_row(recipe, tmp_path):
    parquet(tmp_path / "train.parquet", [*[(32, 32)] * 10, (28, 32)])
    with pytest.raises(DataError, match=r"row 10 of 'parquet:.*' \(train\) is 28x32 pixels; .* takes 32x32 only"):
        recipe.data.read_images(f"parquet:{tmp_path}", "train")


def test_a_broken_image_is_named_by_its_row(recipe, tmp_path):
    parquet(tmp_path / "train.parquet", [(32, 32)] * 10, broken=[1])
    with pytest.raises(DataError, match=r"row 1 of"):
        recipe.data.read_images(f"parquet:{tmp_path}", "train")


def test_images_of_another_number_of_classes_are_refused(recipe, tmp_path):
    parquet(tmp_path / "train.parquet", [(32, 32)] * 10, classes=3)
    with pytest.raises(DataError, match=r"has 3 classes, 0, 1, 2, …; CIFAR-10 has 10"):
        recipe.data.read_images(f"parquet:{tmp_path}", "train")


def test_a_missing_split_is_said(recipe, tmp_path):
    parquet(tmp_path / "train.parquet", [(32, 32)] * 10)
    with pytest.raises(DataError, match=r"has no 'test' files, only 'train\.parquet'"):
        recipe.data.read_images(f"parquet:{tmp_path}", "test")


@pytest.fixture(scope="module")
def shipped(recipe, tmp_path_factory):
    """Both models as the recipe writes them, from untrained networks of the smallest sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        export = importlib.import_module("export")
        zoo, work = tmp_path_factory.mktemp("zoo"), tmp_path_factory.mktemp("work")
        patch.setattr(export, "ZOO", zoo)
        patch.setattr(export, "GUIDANCE", (1.0, 3.0))
        patch.setattr(export, "DRAWN", 1)
        first = recipe.first_stage.FirstStageSettings(
            widths=(32, 32, 64), blocks=0, z_channels=4, d=4, codes=16, epochs=1, batch=1, rate=1e-3
        )
        budget = SimpleNamespace(
            first_stage=first,
            transformer=recipe.transformer.PriorSettings(width=16, layers=1, heads=2, epochs=1, batch=1, rate=1e-3),
            cnn_settings=CNNSettings(channels=3, width=4),
            cct_settings=CCTSettings(width=8, layers=1, heads=2, mirrors=True),
        )
        torch.manual_seed(0)
        network = recipe.first_stage.new_network(first)
        nn.init.normal_(network.codes.weight)
        made = {
            "vqgan": network,
            "vqvae": network,
            "transformer": recipe.transformer.new_transformer(budget.transformer, codes=16, positions=64, seed=0),
            "eye": recipe.networks.Eye(10),
            "cnn": CNN(budget.cnn_settings),
            "cct": CCT(budget.cct_settings),
        }
        for name, module in made.items():
            state = {"step": 1, "steps": 1, "average": None, "first": name, "modules": {name: module.state_dict()}}
            torch.save(state, work / f"{name}.pt")
        pixels = torch.randint(256, (20, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        images = recipe.data.Images(pixels=pixels, labels=torch.arange(20) % 10)
        export.export(work, budget, "cpu", images, seed=0)
    sys.modules.pop("export")
    return SimpleNamespace(zoo=zoo, work=work, network=network, pixels=pixels.float() / 255)


def test_the_written_folder_is_one_of_taming_transformers(shipped):
    folder = shipped.zoo / "cifar10"
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert {"first_stage_model.quantize.embedding.weight", "transformer.tok_emb.weight"} <= set(state)
    config = yaml.safe_load((folder / "configs/project.yaml").read_text())["model"]
    assert config["target"] == "taming.models.cond_transformer.Net2NetTransformer"
    assert config["params"]["cond_stage_config"]["params"]["n_classes"] == 11
    assert config["params"]["first_stage_config"]["params"]["ddconfig"]["ch_mult"] == [1, 1, 2]


@pytest.mark.parametrize("name", ["cifar10", "cifar10-vqvae"])
def test_the_adapter_of_the_family_opens_what_was_trained(shipped, name):
    model = open_model(shipped.zoo / name, f"zoo:{name}")
    exact = NetworkAdapter(name="x", family="taming", network=shipped.network, size=(32, 32), stride=4)
    assert (model.k, model.grid, model.size) == (16, (8, 8), (32, 32))
    tokens = exact.encode(shipped.pixels[:4])
    # Matrices are shipped in half precision.
    assert torch.allclose(model.decode(model.embed(tokens)), exact.decode(exact.embed(tokens)), atol=1e-2)
    assert (model.encode(shipped.pixels[:4]) == tokens).double().mean() > 0.95


def test_the_written_model_draws_images_of_a_class_as_chosen(shipped):
    model = open_model(shipped.zoo / "cifar10", "zoo:cifar10")
    about = json.loads((shipped.zoo / "cifar10/model.json").read_text())
    distances = json.loads((shipped.work / "sampling.json").read_text())
    assert about["sampling"]["guidance"] == float(min(distances, key=distances.__getitem__))
    assert model.sampling.guidance == about["sampling"]["guidance"]
    assert len(model.concepts) == 10
    assert model.concepts[3] == "cat"
    assert model.generate(torch.tensor([3, 9]), ["a", "b"], 0).shape == (2, 8, 8)


def test_judges_are_written_with_the_temperature_that_fits(shipped):
    judges = load_judges(str(shipped.zoo / "cifar10"))
    assert [judge.name for judge in judges] == ["cnn", "cct"]
    assert all(judge.temperature > 0 and judge(shipped.pixels[:2]).shape == (2, 10) for judge in judges)
