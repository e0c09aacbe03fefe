from __future__ import annotations

import shutil

import pytest
import torch

from vqcortex.adapters.protocol import Level
from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError
from vqcortex.evaluation.editability import ARMS, KINDS, OURS, RANDOM
from vqcortex.pipelines.editability import Known, drawn_codes, edits_of, load_gallery
from vqcortex.pipelines.settings import EditabilitySettings
from vqcortex.pipelines.stamps import trust_of
from vqcortex.pipelines.study import Study
from vqcortex.tokens.store import TokenBatch

TOY = ToyAdapter()
FREQUENT = "token_frequency"


def known():
    """Concept 0 lives by codes 1 and 2, concept 1 by 3 and 4."""
    lists = {
        OURS: torch.tensor([[1, 2], [3, 4]]), FREQUENT: torch.tensor([[5, 1], [5, 3]]),
        RANDOM: torch.tensor([[6, 7], [6, 7]]),
    }  # fmt: skip
    counts = torch.zeros(2, 2, 4, 4, dtype=torch.int64)
    counts[:, 0, 0], counts[:, 1, 1] = 5, 3
    return Known(
        lists=lists, counts=dict.fromkeys(ARMS, counts), holding=torch.full((2, 2), 5), use=torch.tensor([9] * 8)
    )


def images(concept=1):
    grids = torch.zeros(3, 4, 4, dtype=torch.int64)
    grids[:, 2, :2], grids[:, 3, 3] = torch.tensor([1, 2]) + 2 * concept, 1 + 2 * concept
    return TokenBatch(("a", "b", "c"), torch.full((3,), concept), ("test",) * 3, grids)


@pytest.mark.parametrize("kind", KINDS)
def test_every_arm_changes_as_many_places_and_the_last_two_kinds_the_same(kind):
    batch = images(0 if kind == "remove" else 1)
    edits = edits_of(kind, 0, batch, known(), 2, TOY.levels, 0)
    assert set(edits) == set(ARMS)
    if kind == "remove":
        hidden = batch.tokens > 0
        assert torch.equal(edits[OURS][~hidden], batch.tokens[~hidden])
    else:
        places = {arm: edits[arm] != batch.tokens for arm in ARMS}
        assert torch.equal(places[OURS], places[RANDOM])
        assert torch.equal(places[OURS], places[FREQUENT])


def test_tokens_go_where_they_usually_stand_or_where_the_others_stood():
    put = edits_of("insert", 0, images(), known(), 2, TOY.levels, 0)
    assert (put[OURS][:, 0] == 1).all()
    assert (put[OURS][:, 1, :2] == 2).all()
    assert set(put[RANDOM][:, 0].flatten().tolist()) <= {6, 7}
    swap = edits_of("swap", 0, images(), known(), 2, TOY.levels, 0)
    changed = swap[OURS] != images().tokens
    assert torch.equal(changed, images().tokens > 0)
    one = edits_of("swap", 0, images(), known(), 1, TOY.levels, 0)[OURS]
    assert torch.equal(one != images().tokens, images().tokens == 3)


def test_codes_taken_out_are_replaced_as_often_as_codes_are_used():
    use = torch.tensor([0, 3, 0, 1, 0, 0, 0, 0])
    drawn = torch.stack([drawn_codes(use, (4, 4), TOY.levels, 0, str(n)) for n in range(100)])
    assert set(drawn.unique().tolist()) == {1, 3}
    assert abs(float((drawn == 1).double().mean()) - 0.75) < 0.04


def test_a_finished_study_has_every_kind_size_and_arm_and_its_own_tokens_win(toy_study):
    table = toy_study.table("editability")
    whole = table.where(concept="all")
    assert {(row["kind"], row["tokens"], row["arm"], row["judge"]) for row in whole} == {
        (kind, size, arm, judge) for kind in KINDS for size in (1, 4) for arm in ARMS for judge in ("soft", "hard")
    }
    for kind in ("insert", "swap"):
        ours = [row["success"] for row in whole if (row["kind"], row["arm"], row["tokens"]) == (kind, OURS, 4)]
        random = [row["success"] for row in whole if (row["kind"], row["arm"], row["tokens"]) == (kind, RANDOM, 4)]
        assert min(ours) > max(random)
    for row in whole:
        assert row["success"] is None or row["low"] <= row["success"] <= row["high"]


def test_the_page_shows_curves_and_images(toy_study):
    gallery = load_gallery(toy_study)
    kinds = {name.split(":")[1] for name in gallery}
    assert {"insert", "swap"} <= kinds
    page = (toy_study.path("report") / "report.html").read_text()
    assert 'id="edits"' in page
    assert "put into others, judge soft" in page
    assert "vqcortex editability" in page


def test_trust_hears_of_edits_while_they_are_of_the_concepts_there_are(toy_study, tmp_path):
    said = [one for one in trust_of(toy_study).reasons if "editing a concept's tokens" in one]
    assert len(said) == 1
    assert not [one for one in trust_of(toy_study, edited=False).reasons if "editing" in one]
    shutil.copytree(toy_study.folder, tmp_path / "copy")
    study = Study(tmp_path / "copy")
    record = study.path("concepts") / "stage.json"
    record.write_text(record.read_text().replace('"concept_tokens.json": "', '"concept_tokens.json": "0'))
    assert not [one for one in trust_of(study).reasons if "editing" in one]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"editability_images": 0}, "editability-images=0 must be at least 1"),
        ({"editability_tokens": (0, 3)}, "editability-tokens=0,3 must be one or more numbers, each at least 1"),
        ({"editability_tokens": ()}, "editability-tokens= must be one or more"),
    ],
)
def test_wrong_settings_say_what_would_be_right(wrong, said):
    with pytest.raises(ConfigError, match=said):
        EditabilitySettings(**wrong).check()


def test_a_code_stays_out_of_levels_it_does_not_belong_to():
    levels = (Level(name="top", grid=(1, 8), codes=(0, 4)), Level(name="bottom", grid=(1, 8), codes=(4, 8)))
    lists = {OURS: torch.tensor([[1]]), FREQUENT: torch.tensor([[5]]), RANDOM: torch.tensor([[6]])}
    counts = torch.zeros(1, 1, 1, 16, dtype=torch.int64)
    counts[..., :2] = 5
    known = Known(
        lists=lists,
        counts=dict.fromkeys(ARMS, counts),
        holding=torch.full((1, 1), 5),
        use=torch.ones(8, dtype=torch.int64),
    )
    tokens = torch.tensor([[[0] * 8 + [4] * 8]])
    batch = TokenBatch(("a",), torch.tensor([1]), ("test",), tokens)
    edits = edits_of("insert", 0, batch, known, 1, levels, 0)
    assert edits[OURS][0, 0, :2].tolist() == [1, 1]
    assert torch.equal(edits[FREQUENT], tokens)
    assert torch.equal(edits[RANDOM], tokens)
    drawn = drawn_codes(torch.ones(8, dtype=torch.int64), (1, 16), levels, 0, "a")
    assert drawn[0, :8].max() < 4 <= drawn[0, 8:].min()
