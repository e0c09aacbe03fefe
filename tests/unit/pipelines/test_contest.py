"""What is done to a piece of a comparison's images."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from vqcortex.errors import ConfigError
from vqcortex.evaluation import ARMS
from vqcortex.evaluation.comparison import DECISIVE, DROP
from vqcortex.evaluation.drop import measure_drop
from vqcortex.evaluation.metrics import METRICS
from vqcortex.pipelines.compare import images_to_compare, plan_contest
from vqcortex.pipelines.contest import (
    READ_KEPT,
    Mean,
    alike,
    ask_oracles,
    at_model,
    curves_of,
    figures_of,
    is_flat,
    judge_images,
    metrics_of,
    oracle_figures,
    steady_figures,
    steady_images,
)
from vqcortex.pipelines.evaluate import open_court
from vqcortex.pipelines.loaded import load_all
from vqcortex.pipelines.methods import score_methods
from vqcortex.pipelines.settings import CompareSettings

METHODS = ("tis", "occlusion@pictures", "ensemble:occlusion")


@pytest.fixture(scope="module")
def contest(toy_study):
    loaded = load_all(toy_study, "cpu", verify=False)
    settings = CompareSettings(
        out=toy_study.folder, compare_methods=METHODS, draws=2, compare_shares=(10.0, 30.0), decide_shares=(10.0,),
        compare_fills=("grey", "resampled_codes"), batch=5,
    )  # fmt: skip
    court, _, _ = open_court(toy_study, loaded, settings, settings.compare_fills)
    return plan_contest(loaded, court, settings)


@pytest.fixture(scope="module")
def images(contest):
    return images_to_compare(contest.court.loaded.value.store, "test", 8)


@pytest.fixture(scope="module")
def judged(contest, images):
    return judge_images(images, contest=contest, kept=True)


def test_drops_are_those_that_evaluate_measures(contest, images, judged):
    loaded, court = contest.court.loaded.value, contest.court
    tokens, concept, ids = at_model(images, loaded)
    scores = score_methods(contest.plan, loaded, tokens, concept, ids)
    expected = measure_drop(loaded.model, court.judges.value, tokens, concept, ids, scores, contest.counts, court.fills)
    figures = figures_of(images, judged, contest, kept=False)
    for place, condition in enumerate(expected.conditions):
        for judge in figures.judges:
            found = figures.of(figures.measure(DROP, condition.chosen), condition.arm, condition.fill, judge)
            wanted = expected.metrics["probability_drop"][place, expected.judges.index(judge)]
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_what_decides_is_the_mean_over_the_deciding_n(contest, images, judged):
    figures = figures_of(images, judged, contest, kept=False)
    assert (contest.counts, contest.deciding) == ((2, 5), (2,))
    torch.testing.assert_close(
        figures.of(figures.measure(DECISIVE), "tis"), figures.of(figures.measure(DROP, 2), "tis")
    )


def test_images_do_not_feel_each_other(contest, images, judged):
    alone = judge_images(images.take([3]), contest=contest, kept=True)
    for name, value in alone.items():
        torch.testing.assert_close(value[..., 0].float(), judged[name][..., 3].float(), atol=1e-5, rtol=1e-5)


def test_without_kept_positions_only_what_needs_them_is_missing(contest, images, judged):
    made = judge_images(images.take([0]), contest=contest, kept=False)
    assert set(judged) - set(made) == {"kept"}
    curves = curves_of(images.take([0]), made, contest, contest.arms, contest.counts)
    for name, metric in metrics_of("curves"):
        if name in READ_KEPT:
            with pytest.raises(ConfigError, match="kept"):
                metric(curves)
        else:
            assert metric(curves).isfinite().all()
    assert {key.metric for key in figures_of(images, judged, contest, kept=True).values} == READ_KEPT
    assert set(METRICS) >= READ_KEPT


def test_agreement_is_over_pairs_of_arms_in_order(contest, images, judged):
    loaded = contest.court.loaded.value
    scores = score_methods(contest.plan, loaded, *at_model(images, loaded))
    pairs = list(combinations((*METHODS, *ARMS), 2))
    place = pairs.index(("tis", "ensemble:occlusion"))
    torch.testing.assert_close(judged["agreement"][place], alike(scores["tis"], scores["ensemble:occlusion"]))
    assert len(judged["agreement"]) == len(pairs)


def test_flat_maps_have_no_rank():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 5.0], [5.0, 5.0]]])
    assert is_flat(maps).tolist() == [False, True]
    found = alike(maps, maps)
    assert found[0] == 1
    assert found[1].isnan()


def test_an_ensemble_is_held_against_itself_without_each_member(contest, images):
    made = steady_images(images, contest=contest)
    loaded = contest.court.loaded.value
    maps = score_methods(contest.plan, loaded, *at_model(images, loaded))
    apart = score_methods(contest.apart, loaded, *at_model(images, loaded))
    whole = maps["ensemble:occlusion"]
    one, other = (apart[f"occlusion@{name}"] for name in ("conv8", "pictures"))
    torch.testing.assert_close(
        made["ensemble:occlusion/extractors"], (alike(whole, one) + alike(whole, other)) / 2, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(made["occlusion@pictures/extractors"], alike(one, other), atol=1e-5, rtol=0)
    assert (made["occlusion@pictures/seeds"] == 1).all()
    figures = steady_figures(images, made, contest)
    assert {key.metric for key in figures.values} == {"infidelity", "max_sensitivity"}
    assert all(value.isfinite().all() for value in figures.values.values())


def test_a_method_of_one_extractor_alone_has_no_stability_over_extractors(contest, images):
    lonely = {name: one for name, one in contest.apart.asked.items() if one.extractor == "conv8"}
    made = steady_images(images.take([0]), contest=replace(contest, apart=replace(contest.apart, asked=lonely)))
    assert made["tis/extractors"].isnan().all()
    assert made["ensemble:occlusion/extractors"].isnan().all()


def test_what_an_ensemble_explains_is_the_mean_of_the_logits():
    one, other = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)) for _ in range(2))
    x = torch.rand(2, 3, 2, 2)
    torch.testing.assert_close(Mean([one, other])(x), (one(x) + other(x)) / 2)


@pytest.mark.parametrize("kind", ["mean_code", "each"])
def test_an_oracle_hurts_the_judge_it_asked_most_and_is_not_scored_by_it(contest, images, kind):
    made = ask_oracles(images, contest=contest, kind=kind)
    drops = (made["before"] - made["removed"][:, :, 0]).mean(-1)  # (o, f, j)
    chance = judge_images(images, contest=contest, kept=False)
    random = (chance["before"] - chance["removed"][contest.arms.index("random"), :, 0]).mean(-1)  # (f, j)
    for judge in range(2):
        assert (drops[judge, :, judge] > random[:, judge]).all()
    figures = oracle_figures(images, made, contest, kind)
    decisive = figures.values[figures.measure(DECISIVE)]
    assert decisive[1, :, 0].isnan().all()
    assert decisive[2, :, 1].isnan().all()
    torch.testing.assert_close(decisive[0, :, 0], decisive[2, :, 0])
    assert figures.arms[0] == {"mean_code": "oracle", "each": "oracle_each_fill"}[kind]


def test_an_oracle_that_sees_each_fill_finds_at_least_as_much_under_the_fill_it_saw(contest, images):
    once, each = (ask_oracles(images, contest=contest, kind=kind) for kind in ("mean_code", "each"))
    drop = [(made["before"] - made["removed"][:, :, 0]).mean(-1) for made in (once, each)]
    for judge in range(2):
        assert (drop[1][judge, :, judge] >= drop[0][judge, :, judge] - 0.02).all()
