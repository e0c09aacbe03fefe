from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.attribution.interactions import pairs_of
from vqcortex.errors import ConfigError, StudyError
from vqcortex.pipelines.concepts import concept_lists
from vqcortex.pipelines.interactions import Question, first_test_images, interactions, measure_question, questions
from vqcortex.pipelines.loaded import EXPLAINED, load_all
from vqcortex.pipelines.run import narrowed
from vqcortex.pipelines.settings import InteractionsSettings
from vqcortex.pipelines.study import Study
from vqcortex.pipelines.together import Strictness, group_table, pair_table
from vqcortex.tokens.store import TokenBatch

A, B, C, PLAIN = 1, 2, 4, 0
MODEL = ToyAdapter()


class Rule(nn.Module):
    """A logit that is a function of which colours an image holds."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, embedded):
        holds = [(MODEL.nearest(embedded) == code).flatten(1).any(1).to(embedded) for code in (A, B, C)]
        logit = self.rule(*holds)
        return torch.stack([0 * logit, logit], 1)


def batch_of(*holdings, count=12):
    """Images that hold some codes, two cells each, and otherwise colours that no rule asks for."""
    grids = []
    for number in range(count):
        for codes in holdings:
            source = torch.Generator().manual_seed(number)
            grid = torch.tensor([0, 3, 5, 6, 7])[torch.randint(5, (16,), generator=source)]
            for place, code in enumerate(codes):
                grid[2 * place : 2 * place + 2] = code
            grids.append(grid.view(4, 4))
    names = tuple(f"{holdings}/{number}" for number in range(len(grids)))
    return TokenBatch(names, torch.ones(len(grids), dtype=torch.int64), ("test",) * len(grids), torch.stack(grids))


def asked_of(images, codes=(A, B, C)):
    counts = torch.zeros(len(codes), 4, 4, dtype=torch.int64)
    for place in range(len(codes)):
        counts[place].view(-1)[2 * place : 2 * place + 2] = 10
    return Question(
        concept=1, codes=codes, counts=counts, holding=torch.full((len(codes),), 10), images=images,
        others=replace(batch_of(()), concept=torch.zeros(12, dtype=torch.int64)),
    )  # fmt: skip


def tables_of(asked, *rules, **changed):
    mean = MODEL.codebook[PLAIN]  # colour 0 is no part of any rule
    settings = InteractionsSettings(**changed)
    pairs, group = measure_question(asked, MODEL, [Rule(one) for one in rules], mean, settings)
    rows = pair_table(pairs, ["not", "it"], Strictness()).rows
    return {(row["code_a"], row["code_b"], row["form"]): row for row in rows}, group_table(
        [group], ["not", "it"], Strictness()
    ).rows[0]


def both(a, b, c):
    return 4 * a * b + c


def test_a_pair_that_is_needed_together_is_a_synergy_in_both_forms_and_nothing_else_is():
    rows, group = tables_of(asked_of(batch_of((A, B, C))), both)
    assert {key for key, row in rows.items() if row["verdict"] != "none"} == {(A, B, "removal"), (A, B, "insertion")}
    for form in ("removal", "insertion"):
        row = rows[A, B, form]
        assert (row["verdict"], row["synergy"], row["images"]) == ("synergy", 4, 12)
        assert (row["effect_a"], row["effect_b"], row["joint"], row["interaction"]) == (0, 0, 4, 4)
    assert group["shapley"] == [2, 2, 1]
    assert (group["joint"], group["singles"], group["excess"], group["verdict"]) == (5, 1, 4, "synergy")
    assert (group["control_joint"], group["control_excess"], group["cells"]) == (0, 0, 6)


def test_codes_that_exclude_each_other_are_found_though_they_never_meet():
    images = batch_of((A,), (B,))
    rows, _ = tables_of(asked_of(images, (A, B)), lambda a, b, c: 4 * (a + b - 2 * a * b))
    assert (rows[A, B, "removal"]["images"], rows[A, B, "removal"]["verdict"]) == (0, "too few images")
    row = rows[A, B, "insertion"]
    assert (row["verdict"], row["synergy"], row["effect_a"], row["effect_b"], row["joint"]) == (
        "exclusive",
        -8,
        4,
        4,
        0,
    )


def test_codes_that_stand_in_for_each_other_are_redundant():
    rows, group = tables_of(asked_of(batch_of((A, B, C))), lambda a, b, c: 4 * (a + b - a * b))
    assert {rows[A, B, form]["verdict"] for form in ("removal", "insertion")} == {"redundancy"}
    assert group["verdict"] == "redundancy"


def test_what_adds_up_has_no_synergy_at_all():
    rows, group = tables_of(asked_of(batch_of((A, B, C))), lambda a, b, c: 3.3 * a + 0.7 * b - 1.1 * c)
    assert {row["verdict"] for row in rows.values()} == {"none"}
    assert {row["synergy"] for row in rows.values()} == {0}
    assert group["verdict"] == "none"


def test_an_extractor_that_disagrees_takes_the_verdict_away():
    asked = asked_of(batch_of((A, B, C)))
    rows, group = tables_of(asked, both, lambda a, b, c: 2 * a * b)
    assert (rows[A, B, "removal"]["verdict"], rows[A, B, "removal"]["extractors"]) == ("synergy", 2)
    rows, group = tables_of(asked, both, lambda a, b, c: 2 * a + b)
    assert {row["verdict"] for row in rows.values()} == {group["verdict"]} == {"none"}
    assert rows[A, B, "removal"]["synergy"] == 4


def test_the_number_of_grids_at_once_changes_nothing():
    asked = asked_of(batch_of((A, B, C), (A, C), count=4))
    assert tables_of(asked, both, batch=3) == tables_of(asked, both)


def test_a_code_that_finds_no_place_is_not_put_anywhere():
    asked = asked_of(batch_of((A, B, C)))
    asked.counts[2] = 0
    rows, _ = tables_of(asked, both)
    assert [rows[A, C, form]["images"] for form in ("removal", "insertion")] == [12, 0]
    assert rows[A, B, "insertion"]["images"] == 12


def test_images_without_a_code_count_for_no_pair_of_it():
    rows, group = tables_of(asked_of(batch_of((A, B, C), (A,), (A, B), count=8)), both)
    assert [rows[a, b, "removal"]["images"] for a, b in ((A, B), (A, C), (B, C))] == [16, 8, 8]
    assert group["images"] == 16


def test_a_finished_stage_has_a_row_per_pair_and_form_and_concept(toy_study):
    loaded = load_all(toy_study, "cpu")
    lists = concept_lists(toy_study, loaded.concepts, 3)[:, :6]
    rows = toy_study.table("interactions").rows
    found = [[code for code in row if code >= 0] for row in lists.tolist()]
    wanted = [
        (name, codes[a], codes[b], form)
        for name, codes in zip(loaded.concepts, found, strict=True)
        for form in ("removal", "insertion")
        for a, b in pairs_of(len(codes))
    ]  # fmt: skip
    assert [(row["concept"], row["code_a"], row["code_b"], row["form"]) for row in rows] == wanted
    assert all(row["extractors"] == 2 for row in rows)
    groups = toy_study.table("interaction_groups").rows
    pairs = [name for name, codes in zip(loaded.concepts, found, strict=True) if len(codes) > 1]
    assert [row["concept"] for row in groups] == pairs
    # Concept i is "much of colour i", and its own colour is what its images lean on most.
    own = [loaded.concepts.index(row["concept"]) for row in groups]
    best = [row["codes"][row["shapley"].index(max(row["shapley"]))] for row in groups]
    assert len(pairs) >= 5
    assert sum(code == number for code, number in zip(best, own, strict=True)) >= len(pairs) - 1


def test_questions_hold_the_concept_s_images_and_the_others_in_turns(toy_study):
    loaded = load_all(toy_study, "cpu")
    codes = concept_lists(toy_study, loaded.concepts, 3)
    asked = list(questions(loaded.store, codes, 3, 7, _Serial()))
    assert [one.concept for one in asked] == (codes >= 0).sum(1).gt(1).nonzero()[:, 0].tolist()
    for one in asked:
        assert one.images.concept.tolist() == [one.concept] * 3
        assert one.others.concept.tolist()[:7] == [other for other in range(8) if other != one.concept]
        assert len(one.others) == 12
    grids = torch.cat([
        part.tokens for split in EXPLAINED for part in loaded.store.batches(50, split=split, concept=4, pictures=False)
    ])  # fmt: skip
    of_it = next(one for one in asked if one.concept == 4)
    for place, code in enumerate(of_it.codes):
        assert torch.equal(of_it.counts[place], (grids == code).sum(0))
        assert int(of_it.holding[place]) == int((grids == code).flatten(1).any(1).sum())
    assert first_test_images(loaded.store, 2, 5).concept.bincount().tolist() == [2] * 8


class _Serial:
    def map(self, work, items):
        return map(work, items)


def test_drawn_codes_stand_in_too_and_fewer_images_are_fewer(toy_study, toy_settings, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(toy_study.folder, folder)
    before = toy_study.table("interaction_groups").rows
    interactions(narrowed(toy_settings(folder, together_draws=2, together_images=2, batch=9), "InteractionsSettings"))
    after = Study(folder).table("interaction_groups").rows
    assert all(one["images"] <= 2 for one in after)
    assert [one["codes"] for one in after] == [one["codes"] for one in before]
    assert [one["shapley"] for one in after] != [one["shapley"] for one in before]


def test_the_concepts_must_be_pooled_first(tmp_path):
    with pytest.raises(StudyError, match="no finished stage 'tokens'"):
        interactions(InteractionsSettings(out=tmp_path / "new"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"together": 1}, "together=1 must lie in 2 to 16"),
        ({"together": 17}, "together=17 must lie in 2 to 16"),
        ({"together_images": 0}, "together-images=0 must be at least 1"),
        ({"together_draws": -1}, "together-draws=-1 must be at least 0"),
        ({"together_alpha": 1.0}, "together-alpha=1.0 must lie between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, changed, said):
    with pytest.raises(ConfigError, match=said):
        interactions(InteractionsSettings(out=tmp_path, **changed))
