"""Worlds as a pipeline: pieces, their rows, resuming, and mistakes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from engines import Pickling, Watched
from PIL import Image

from vqcortex.adapters import load_model
from vqcortex.engine.carried import Carried
from vqcortex.errors import ConfigError, DataError, UnknownName
from vqcortex.pipelines.settings import WorldsSettings
from vqcortex.pipelines.worlds import Ground, Piece, base_grids, distinct_codes, measure_piece, measure_worlds
from vqcortex.results import load_table

TABLES = {f"worlds_{name}" for name in ("positions", "codes", "pairs", "null", "skipped", "summary")}


def settings_of(out, **changed) -> WorldsSettings:
    same = {
        "model": "toy", "worlds": ("single", "null"), "methods": ("occlusion", "attention_rollout", "ensemble"),
        "extractors": ("se_resnet",), "runs": 2, "world_images": 300, "explain_images": 50, "epochs": 8, "width": 16,
        "depth": 2, "minibatch": 16, "rate": 5e-3, "interval_resamples": 100,
    }  # fmt: skip
    return WorldsSettings(out=out, **{**same, **changed})


def quick(out, **changed) -> WorldsSettings:
    """Nothing is learned in so short a time, and nothing need be."""
    same = {"worlds": ("null",), "methods": ("occlusion",), "world_images": 100, "explain_images": 20, "epochs": 3}
    return settings_of(out, **{**same, **changed})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Settings and tables; only read."""
    settings = settings_of(tmp_path_factory.mktemp("worlds"))
    return settings, measure_worlds(settings)


def test_tables_are_written_and_describe_themselves(finished):
    settings, tables = finished
    assert set(tables) == TABLES
    for name, table in tables.items():
        assert load_table(settings.out / f"{name}.json").rows == [dict(row) for row in table.rows]
        assert (settings.out / f"{name}.parquet").is_file()
    assert len(list((settings.out / "pieces").iterdir())) == 4


def test_a_single_code_is_found_by_an_extractor_that_knows_it(finished):
    _, tables = finished
    rows = tables["worlds_codes"].where(world="single", method="occlusion", pool="mean")
    assert len(rows) == 2
    assert all(row["accuracy"] > 0.65 for row in rows)
    assert all(row["ranks"] == [1] and row["auroc"] == 1 for row in rows)
    assert all(row["auroc"] > 0.85 for row in tables["worlds_positions"].where(method="occlusion"))


def test_the_null_world_has_tests_and_no_true_codes(finished):
    _, tables = finished
    assert [row["method"] for row in tables["worlds_null"].rows] == ["occlusion", "random"] * 2
    assert all(row["tested"] > 0 and 0 < row["least_p"] <= 1 for row in tables["worlds_null"].rows)
    assert not tables["worlds_codes"].where(world="null")
    assert not tables["worlds_positions"].where(world="null")


def test_methods_that_do_not_fit_are_skipped_with_the_reason(finished):
    _, tables = finished
    reasons = {row["method"]: row["reason"] for row in tables["worlds_skipped"].rows}
    assert set(reasons) == {"attention_rollout", "ensemble"}
    assert "needs an extractor with attention" in reasons["attention_rollout"]
    assert "asks several extractors" in reasons["ensemble"]


def test_a_second_call_makes_nothing_and_a_stopped_one_goes_on(hashes, tmp_path):
    settings = quick(tmp_path / "whole", runs=3)
    measure_worlds(settings)
    before, watched = hashes(settings.out), Watched()
    measure_worlds(settings, engine=watched)
    assert watched.items == []
    assert hashes(settings.out) == before
    stopped, rest = replace(settings, out=tmp_path / "stopped"), Watched()
    with pytest.raises(KeyboardInterrupt):
        measure_worlds(stopped, engine=Watched(last=2))
    measure_worlds(stopped, engine=rest)
    assert [(one.world, one.run) for one in rest.items] == [("null", 2)]
    assert hashes(stopped.out) == before


def test_more_runs_add_pieces_other_settings_and_a_torn_file_make_them_again(tmp_path):
    few = quick(tmp_path)
    measure_worlds(few)
    torn = tmp_path / "pieces" / "null-001-se_resnet.json"
    whole = torn.read_text()
    torn.write_text(whole[:-30])
    again = Watched()
    measure_worlds(replace(few, runs=3), engine=again)
    assert [one.run for one in again.items] == [1, 2]
    assert torn.read_text() == whole
    with pytest.raises(KeyboardInterrupt):
        measure_worlds(replace(few, plant_rate=0.1), engine=Watched(last=0))


def test_an_engine_that_pickles_everything_gives_the_same_bytes(hashes, tmp_path):
    measure_worlds(quick(tmp_path / "a"))
    measure_worlds(quick(tmp_path / "b"), engine=Pickling())
    assert hashes(tmp_path / "b") == hashes(tmp_path / "a")


@pytest.mark.parametrize("world", ["shortcut", "confounder", "pair", "exclusive_or", "placed", "any_of"])
def test_every_world_gives_rows_about_its_codes(world, tmp_path):
    settings = quick(tmp_path, methods=("gradient_x_embedding",), plant_rate=0.15)
    model = load_model("toy")
    ground = Ground(model=Carried(model, load_model, "toy"), base=base_grids(model, settings), settings=settings)
    rows = measure_piece(Piece(world=world, run=0, extractor="se_resnet"), ground=ground)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert {row["method"] for row in rows["codes"]} == {"gradient_x_embedding", "random", "traversal"}
    rows["codes"] = [row for row in rows["codes"] if row["method"] != "random"]
    causal = [row for row in rows["codes"] if row["truth"] == "causal"]
    assert [row["pool"] for row in causal] == ["mean", "sum", "counts", "lift", "effect"]
    assert all(len(row["ranks"]) == len(row["codes"]) and row["worst_rank"] == max(row["ranks"]) for row in causal)
    assert all((row["above_others"] is None) == (world not in ("shortcut", "confounder")) for row in causal)
    decoys = [row for row in rows["codes"] if row["truth"] == "decoy"]
    assert {row["split"] for row in decoys if row["pool"] == "mean"} == (
        {"validation"} if world == "shortcut" else set()
    )
    assert causal[0]["found"] is not None
    assert causal[1]["found"] is None


def test_pictures_are_encoded_where_the_model_or_the_user_wants_it(tmp_path):
    toy = load_model("toy")
    shown = toy.decode(toy.embed(torch.arange(8).repeat(12)[:96].view(6, 4, 4)))
    for number, pixels in enumerate(shown):
        place = tmp_path / "pictures" / "one" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy()).save(place)
    settings = settings_of(tmp_path, images=f"imagefolder:{tmp_path / 'pictures'}")
    with pytest.raises(DataError, match="holds 6 pictures but 300 are planted in"):
        base_grids(toy, settings)
    assert base_grids(toy, replace(settings, world_images=6)).flatten()[:8].tolist() == list(range(8))


def test_codes_that_lie_apart_are_plantable_and_dead_ones_are_not():
    codebook = torch.tensor([[0.0], [0.1], [5], [9], [9.2], [20]])
    frequency = torch.tensor([3, 3, 1, 4, 4, 0])
    assert distinct_codes(codebook, frequency).tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"worlds": ("singel",)}, UnknownName, "no planted world named 'singel'.*Did you mean 'single'"),
        ({"methods": ("tiss",)}, UnknownName, "no attribution method named 'tiss'"),
        ({"extractors": ("conv9",)}, UnknownName, "no extractor named 'conv9'"),
        ({"worlds": ("shortcut",), "patch": 5}, ConfigError, "patch=5 is larger than the 4x4 grid"),
        ({"worlds": ("pair",), "codes": 9}, ConfigError, "plants 9 codes, but 8 may be planted of 8 live ones"),
        ({"correlation": 0.3}, ConfigError, r"correlation=0\.3 must lie in \[0\.5, 1\]"),
        ({"label_noise": 0.5}, ConfigError, r"label-noise=0\.5 must lie in \[0, 0\.5\)"),
        ({"world_images": 99, "runs": 1}, ConfigError, "2 settings wrong: runs=1 must be at least 2; world-images=99"),
        ({"rate": 0.0, "extractors": ()}, ConfigError, r"rate=0\.0 must be above 0; extractors must name"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(tmp_path, changed, kind, said):
    with pytest.raises(kind, match=said):
        measure_worlds(settings_of(tmp_path / "out", **changed), engine=Watched(last=0))
    assert not (tmp_path / "out").exists()
