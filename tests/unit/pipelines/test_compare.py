"""A comparison of methods on the toy world: tables, recommendation, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from engines import Pickling, Watched
from leveled import LeveledAdapter

from vqcortex.errors import ConfigError, DataError, ModelError, UnknownName
from vqcortex.evaluation import ARMS
from vqcortex.evaluation.comparison import DECISIVE, DROP, MEAN
from vqcortex.pipelines.compare import (
    ALONE,
    cost_of,
    default_methods,
    fewer,
    gather_comparison,
    images_to_compare,
    plan_contest,
    refusal,
    told,
    without,
)
from vqcortex.pipelines.evaluate import open_court, spoken_concepts
from vqcortex.pipelines.loaded import load_all
from vqcortex.pipelines.settings import CompareSettings
from vqcortex.pipelines.study import Study
from vqcortex.report.compare import compare

METHODS = ("tis", "occlusion", "ensemble:occlusion")


def small(out, **changed) -> CompareSettings:
    """A comparison that takes a second."""
    same = {
        "compare_methods": METHODS, "draws": 2, "compare_images": 16, "insertion_images": 8, "stability_images": 8,
        "oracle_images": 8, "interval_resamples": 100, "batch": 7,
    }  # fmt: skip
    return CompareSettings(out=out, **{**same, **changed})


def copy_of(study: Study, folder) -> Study:
    """Tokens and extractors of a study, to be compared on."""
    folder.mkdir()
    shutil.copy(study.folder / "study.json", folder)
    for stage in ("tokens", "train"):
        shutil.copytree(study.path(stage), folder / stage)
    return Study(folder)


@pytest.fixture(scope="module")
def compared(toy_study, tmp_path_factory):
    """A study with a finished comparison; tests only read it."""
    study = copy_of(toy_study, tmp_path_factory.mktemp("compared") / "s")
    compare(small(study.folder))
    return study


@pytest.fixture
def loaded(toy_study):
    return load_all(toy_study, "cpu", verify=False)


def contest_of(study, loaded, **changed):
    settings = small(study.folder, **changed)
    court, _, _ = open_court(study, loaded, settings, settings.compare_fills)
    return plan_contest(loaded, court, settings)


def test_every_arm_stands_in_the_table_under_every_fill_n_and_judge(compared):
    table = compared.table("comparison")
    rows = table.where(metric=DROP, judge="soft", fill="grey")
    assert {row["n"] for row in rows} == {1, 2, 3, 6}
    assert {row["arm"] for row in rows if row["n"] == 6} == {*METHODS, *ARMS}
    assert {row["fill"] for row in table.rows} == {"mean_code", "resampled_codes", "grey", MEAN, "none"}
    assert {row["judge"] for row in table.rows} == {"soft", "hard", MEAN, "none"}
    images = {row["metric"]: row["images"] for row in table.rows if row["arm"] == "tis"}
    assert images == {
        DECISIVE: 16, DROP: 16, "deletion_auc": 16, "comprehensiveness": 16, "insertion_auc": 8, "sufficiency": 8,
        "infidelity": 8, "max_sensitivity": 8,
    }  # fmt: skip
    assert all(row["low"] <= row["value"] <= row["high"] for row in table.rows)


def test_an_oracle_is_scored_by_the_judges_it_did_not_ask_and_finds_more_than_chance(compared):
    rows = compared.table("comparison").where(metric=DECISIVE, fill=MEAN)
    assert {row["judge"] for row in rows if row["arm"] == "oracle:soft"} == {"hard", MEAN}
    assert {row["judge"] for row in rows if row["arm"] == "oracle"} == {"soft", "hard", MEAN}
    value = {row["arm"]: row["value"] for row in rows if row["judge"] == MEAN}
    assert value["oracle"] > value["random"]
    assert value["oracle"] == pytest.approx((value["oracle:soft"] + value["oracle:hard"]) / 2)


def test_pairs_name_controls_the_published_score_the_best_and_the_oracle(compared):
    others = {row["other"] for row in compared.table("comparison_pairs").rows}
    best = compared.table("recommendation").where(role="default")[0]["method"]
    assert others == {*ARMS, "tis", best, "oracle", "oracle:soft", "oracle:hard"}


def test_costs_count_the_passes_of_every_extractor_that_is_asked(compared, loaded):
    rows = {row["method"]: row for row in compared.table("comparison_cost").rows}
    assert (rows["occlusion"]["forward"], rows["occlusion"]["extractors"]) == (17, 1)
    assert (rows["ensemble:occlusion"]["forward"], rows["ensemble:occlusion"]["extractors"]) == (34, 2)
    assert (rows["tis"]["forward"], rows["tis"]["backward"], rows["tis"]["compute"]) == (2, 2, 6)
    assert cost_of("tis", contest_of(Study(compared.folder), loaded).plan, loaded).compute == 6


def test_a_method_without_draws_does_not_depend_on_the_seed(compared):
    rows = {(row["method"], row["over"]): row["value"] for row in compared.table("stability").rows}
    assert rows["occlusion", "seeds"] == rows["ensemble:occlusion", "seeds"] == 1
    assert rows["tis", "seeds"] < 1
    assert -1 <= rows["occlusion", "extractors"] < rows["ensemble:occlusion", "extractors"] <= 1


def test_agreement_holds_every_pair_of_arms_once(compared):
    rows = compared.table("agreement").rows
    assert len({frozenset((row["one"], row["other"])) for row in rows}) == len(rows) == 7 * 6 // 2


def test_the_closing_lines_are_the_recommendation_as_a_small_table(compared):
    lines = told(small(compared.folder))
    assert lines[0].split() == ["method", "mean", "drop", "kept", "passes", "ms/image", "here"]
    roles = [row["role"] for row in compared.table("recommendation").rows if row["role"] != "note"]
    assert [line.split()[0] for line in lines[1 : 1 + len(roles)]] == roles
    assert roles[0] == "default"
    assert any(line.startswith("note: Measured on test images") for line in lines)


def test_seconds_lie_in_the_log_and_are_no_result(compared):
    seconds = json.loads((compared.path("compare") / "log" / "seconds.json").read_text())
    assert set(seconds) == set(METHODS)
    assert all(value > 0 for value in seconds.values())
    assert not any("seconds" in name for name in compared.record("compare")["outputs"])


def test_nothing_changes_on_another_engine(compared, toy_study, tmp_path):
    again, engine = copy_of(toy_study, tmp_path / "s"), Pickling()
    compare(small(again.folder), engine=engine)
    assert again.record("compare")["outputs"] == compared.record("compare")["outputs"]
    assert {"judge_images", "steady_images", "ask_oracles", "_images_of_shard"} <= set(engine.names)


def test_killed_and_started_again_it_does_only_what_is_missing_and_ends_with_the_same_bytes(
    compared, toy_study, tmp_path
):
    study = copy_of(toy_study, tmp_path / "s")
    shards = len(load_all(study, "cpu", verify=False).store.shards)
    killed = Watched(last=3 * shards + 4)
    with pytest.raises(KeyboardInterrupt):
        compare(small(study.folder), engine=killed)
    left = len(list(study.path("compare").rglob("*.safetensors")))
    assert left > 0
    resumed, whole = Watched(), 2 * 2 + 2 + 2
    compare(small(study.folder), engine=resumed)
    assert len([one for one in resumed.items if not isinstance(one, int)]) == whole - left
    assert study.record("compare")["outputs"] == compared.record("compare")["outputs"]
    assert list(study.path("compare").rglob("*.safetensors")) == []


def test_methods_are_chosen_by_what_the_study_has(loaded):
    assert default_methods(replace(loaded, companions={})) == ALONE
    assert default_methods(loaded) == (
        *ALONE, "ensemble:integrated_gradients", "ensemble:occlusion", "integrated_gradients@pictures",
    )  # fmt: skip


def test_another_seed_reaches_every_method_that_draws_and_no_other(toy_study, loaded):
    contest = contest_of(toy_study, loaded)
    one, other = contest.plan.methods, contest.reseeded.methods
    assert one["tis"].seed == 0 != other["tis"].seed
    assert one["occlusion"] is other["occlusion"]
    assert {read.extractor for read in contest.apart.asked.values()} == {"conv8", "pictures"}


def test_images_are_taken_evenly_over_concepts_and_parted_without_loss(loaded):
    images = images_to_compare(loaded.store, "validation", 16)
    assert images.batch.concept.bincount().tolist() == [2] * 8
    assert set(images.batch.split) == {"validation"}
    some = fewer(images, 8, 8)
    assert some.batch.concept.bincount().tolist() == [1] * 8
    rest = without(images, some)
    assert sorted(some.batch.image_ids + rest.batch.image_ids) == sorted(images.batch.image_ids)
    assert len(fewer(images, 0, 8).batch) == 0


def test_fewer_than_two_images_are_refused(loaded):
    with pytest.raises(DataError, match=r"the tests split of this study holds 0 image\(s\), .* at least 2"):
        images_to_compare(loaded.store, "tests", 16)


@pytest.mark.parametrize(
    ("methods", "error", "said"),
    [
        (("tiss",), UnknownName, "no attribution method named 'tiss'.*Did you mean 'tis'"),
        (("tis@conv10",), UnknownName, "extractor 'conv10', which this study does not have; it has: conv8, pictures"),
        (("tis", "tis"), ConfigError, "method 'tis' is given twice"),
        (("tis", "random"), ConfigError, "'random' is a control"),
        (("attention_rollout",), ConfigError, "(?s)needs an extractor with attention.*method=attention_rollout"),
    ],
)
def test_methods_that_cannot_be_are_refused_before_anything_is_measured(toy_study, loaded, methods, error, said):
    with pytest.raises(error, match=said):
        contest_of(toy_study, loaded, compare_methods=methods)


def test_a_method_that_needs_gradients_is_refused_where_there_are_none(toy_study, loaded, monkeypatch):
    forward = type(loaded.trained.module).forward
    monkeypatch.setattr(type(loaded.trained.module), "forward", lambda self, x: forward(self, x.detach()))
    with pytest.raises(ModelError, match=r"(?s)have no gradient .* such as occlusion.*method=tis"):
        contest_of(toy_study, loaded, compare_methods=("occlusion", "tis"))
    contest = contest_of(toy_study, loaded, compare_methods=("occlusion",))
    assert refusal(contest.plan, "occlusion", loaded, loaded.store.read(0).take([0])) is None


def test_a_model_that_cannot_decode_has_no_pictures_to_fill(toy_study, loaded):
    blind = replace(loaded, model=LeveledAdapter(abilities=()))
    with pytest.raises(ModelError, match="model 'leveled' cannot decode"):
        open_court(toy_study, blind, small(toy_study.folder), ("mean_code",))


def test_what_is_known_of_trained_judges_is_told(loaded, toy_study, tmp_path):
    contest = contest_of(toy_study, loaded, compare_methods=("occlusion",), oracle_images=0)
    settings = small(toy_study.folder, compare_methods=("occlusion",), insertion_images=0, stability_images=0)
    exhibit = gather_comparison(tmp_path, loaded, contest, replace(settings, oracle_images=0), ["A weak judge."])
    assert "A weak judge." in [row["reason"] for row in exhibit.tables["recommendation"].rows]


def test_one_concept_is_not_enough(toy_study, loaded, monkeypatch):
    court = contest_of(toy_study, loaded).court
    monkeypatch.setattr(type(loaded), "concepts", ("red",))
    with pytest.raises(ConfigError, match=r"this study has 1 concept \(red\).* at least 2"):
        plan_contest(loaded, court, small(toy_study.folder))


def test_with_one_judge_the_oracle_is_left_out_and_that_is_said(toy_study, tmp_path, monkeypatch):
    from vqcortex.judges import load_judges
    from vqcortex.pipelines import evaluate

    monkeypatch.setattr(evaluate, "load_judges", lambda place, device: load_judges(place, device)[:1])
    study = copy_of(toy_study, tmp_path / "s")
    compare(small(study.folder, compare_methods=("occlusion",), insertion_images=0, stability_images=0))
    notes = [row["reason"] for row in study.table("recommendation").where(role="note")]
    assert any("There is one judge only (soft)" in one for one in notes)
    assert {row["arm"] for row in study.table("comparison").rows} == {"occlusion", *ARMS}
    assert study.table("stability").rows == []


def test_scores_that_are_the_same_everywhere_are_told(toy_study, tmp_path, monkeypatch):
    from vqcortex.attribution.occlusion import Occlusion

    monkeypatch.setattr(Occlusion, "__call__", lambda self, extractor, z, *_: torch.zeros_like(z[:, 0]))
    study = copy_of(toy_study, tmp_path / "s")
    compare(small(study.folder, compare_methods=("occlusion",), insertion_images=0, oracle_images=0))
    row = study.table("comparison").where(arm="occlusion", metric=DECISIVE, fill=MEAN, judge=MEAN)[0]
    assert row["constant_share"] == 1
    notes = [one["reason"] for one in study.table("recommendation").where(role="note")]
    assert any("occlusion gives one score everywhere to 100.0 % of the images" in one for one in notes)
    assert study.table("agreement").where(one="occlusion", other="random")[0]["images"] == 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"compare_images": 1}, "compare-images=1 must be at least 2"),
        ({"stability_images": 1}, "stability-images=1 must be 0 or at least 2"),
        ({"oracle_images": -2}, "oracle-images=-2 must be 0 or at least 2"),
        ({"compare_split": "train"}, "compare-split='train' must be one of validation, test"),
        ({"compare_shares": (6.0, 10.0, 120.0)}, "share=120.0 must be above 0 and at most 100"),
        ({"decide_shares": (7.0,)}, "decide-shares=7 must be one or more of compare-shares=6,10,20,40"),
        ({"compare_fills": ()}, "compare-fills is empty"),
        ({"keep_share": 0.0}, "keep-share=0.0 must be above 0"),
        ({"oracle_fill": "grey"}, "oracle-fill='grey' must be one of mean_code, each, both"),
        ({"draws": 0, "noise": -1.0}, "2 settings wrong: draws=0 must be at least 1; noise=-1.0 must be at least 0"),
        ({"interval_resamples": 9}, "interval-resamples=9 must be at least 100"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, changed, said):
    with pytest.raises(ConfigError, match=said):
        small(tmp_path, **changed).check()


# -- judges that call the concepts otherwise ---------------------------------------------------------------------------


def written(folder, value):
    path = folder / "names.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_judges_may_call_the_concepts_otherwise(tmp_path):
    file = written(tmp_path, {"red": "rouge"})
    assert spoken_concepts(file, ("blue", "red")) == ("blue", "rouge")
    assert spoken_concepts(None, ("blue", "red")) == ("blue", "red")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "cannot be read"),
        (["red"], "must hold one object of texts"),
        ({"red": 3}, "must hold one object of texts"),
        ({"rad": "rouge"}, "names 'rad', which is no concept of this study; it has: blue, red"),
        ({"red": "blue"}, "calls 'blue' and 'red' 'blue' alike"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_refused(tmp_path, value, said):
    with pytest.raises(ConfigError, match=said):
        spoken_concepts(written(tmp_path, value), ("blue", "red"))


def test_a_judge_that_does_not_know_the_other_name_is_refused_and_the_flag_is_named(toy_study, loaded, tmp_path):
    file = written(tmp_path, {"red": "rouge"})
    with pytest.raises(ConfigError, match=r"'soft' does not know 'rouge'.*--judge-concepts"):
        contest_of(toy_study, loaded, judge_concepts=file)


def test_judges_asked_for_each_other_s_concepts_answer_so(toy_study, loaded, tmp_path):
    settings = small(toy_study.folder, judge_concepts=written(tmp_path, {"red": "blue", "blue": "red"}))
    court, _, _ = open_court(toy_study, loaded, settings, ("grey",))
    plain, _, _ = open_court(toy_study, loaded, small(toy_study.folder), ("grey",))
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    swapped = list(range(len(loaded.concepts)))
    red, blue = loaded.concepts.index("red"), loaded.concepts.index("blue")
    swapped[red], swapped[blue] = blue, red
    one, other = court.judges.value[0](pixels), plain.judges.value[0](pixels)
    torch.testing.assert_close(one, other[:, swapped])
