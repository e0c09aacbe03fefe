"""Edits of a study: whichever way they are asked for, they change the region, are measured, and replay."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vqcortex.editing.swaps import parse_swaps, swapped
from vqcortex.errors import ConfigError, DataError, StudyError, TokenError, UnknownName, VqCortexError
from vqcortex.pipelines import edit as editing
from vqcortex.pipelines.edit import edit, edit_stages, image_of, inside_of, told
from vqcortex.pipelines.loaded import load_all
from vqcortex.pipelines.means import place_of
from vqcortex.pipelines.settings import EditSettings
from vqcortex.pipelines.study import Study
from vqcortex.results import load_table

SAME = {"source": "red", "target": "blue", "edit_images": 2, "sureness": 1.0, "edit_region": "best:3"}


@pytest.fixture
def copied(toy_study, tmp_path):
    shutil.copytree(toy_study.folder, tmp_path / "copy")
    return tmp_path / "copy"


def made(out, **changed):
    folder = edit(EditSettings(out=out, **{**SAME, **changed}))
    return folder, json.loads((folder / "record.json").read_text()), load_table(folder / "edits.json").rows


def grids(record):
    return tuple(torch.tensor([one[name] for one in record["images"]]) for name in ("before", "after", "free"))


def test_an_edit_changes_the_region_only_and_says_what_it_did(copied):
    folder, record, rows = made(copied)
    before, after, free = grids(record)
    assert free.flatten(1).sum(1).tolist() == [9, 9]
    assert torch.equal(after[free == 0], before[free == 0])
    assert not torch.equal(after, before)
    assert {row["judge"] for row in rows} == {"soft", "hard"}
    assert {row["role"] for row in rows} == {"held out"}
    for row, one in zip(rows, record["images"] * 2, strict=True):
        assert row["image_id"] == one["image_id"]
        assert row["changed_tokens"] == len(parse_swaps(one["swaps"]))
        assert torch.equal(
            swapped(torch.tensor([one["before"]]), parse_swaps(one["swaps"]), 8)[0], torch.tensor(one["after"])
        )
        assert row["target_after"] > row["target_before"]
        assert row["leak"] == 0  # a toy token paints its own square
        assert row["leak_of_changed"] == 0
        assert row["outside"] == pytest.approx(7 / 16)
        assert row["accepted"] == (row["target_after"] > row["source_after"])
        assert row["likelihood_after"] < 0
    picture = np.asarray(Image.open(folder / "strip.png"))
    assert picture.shape[0] * 4 == picture.shape[1] * 2  # two rows of four
    assert record["radius"] == 0
    assert "judge soft (held out) finds the target likelier in" in "\n".join(told(EditSettings(out=copied, **SAME)))


def test_a_judge_that_helps_to_choose_says_so(copied):
    _, _, rows = made(copied, chosen_by=("judge:soft", "conv8"))
    assert {(row["judge"], row["role"]) for row in rows} == {("soft", "chose"), ("hard", "held out")}


def test_a_record_makes_the_same_bytes_again_in_another_copy_whatever_else_is_given(copied, tmp_path, hashes):
    folder, _, _ = made(copied, edit_strategy="generator", edit_draws=2, label="first")
    shutil.copytree(copied, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "edit-first")
    again = edit(EditSettings(out=tmp_path / "other", replay=folder / "record.json", sureness=9.0, batch=3))
    assert again.name == "edit-first"
    assert hashes(again) == hashes(folder)


def test_a_record_of_another_model_or_of_nothing_is_refused(copied, tmp_path):
    folder, record, _ = made(copied)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**record, "identity": "0" * 64}))
    with pytest.raises(StudyError, match=r"the record is of model 'toy' .* replay it in a study of its own model"):
        edit(EditSettings(out=copied, replay=other))
    first = {**record["images"][0], "before": record["images"][1]["before"]}
    other.write_text(json.dumps({**record, "images": [first]}))
    with pytest.raises(StudyError, match="images have other tokens in this study"):
        edit(EditSettings(out=copied, replay=other))
    with pytest.raises(StudyError, match="no record of an edit"):
        edit(EditSettings(out=copied, replay=folder / "stage.json"))
    with pytest.raises(StudyError, match=r"cannot be read .* give the record.json of an edit"):
        edit(EditSettings(out=copied, replay=folder / "strip.png"))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"settings": []}, "AttributeError"),
        ({"settings": {"nobody": 1}}, "unexpected keyword argument 'nobody'"),
        ({"settings": {"edit_images": "many"}}, "was changed and makes no edit"),
        ({"images": [{"image_id": "x"}]}, "the study has no image 'x'"),
        ({"images": None}, "TypeError"),
        ({"radius": "wide"}, "ValueError"),
        ({"radius": -3}, "radius -3"),
        ({"images": []}, "0 images"),
        ({"images": [{"image_id": ["x"]}]}, "the study has no image"),
    ],
)
def test_a_record_changed_by_hand_is_refused_and_costs_no_edit(copied, tmp_path, hashes, changed, why):
    folder, record, _ = made(copied)
    before, other = hashes(folder), tmp_path / "other.json"
    other.write_text(json.dumps({**record, **changed}))
    with pytest.raises(VqCortexError, match=why):
        edit(EditSettings(out=copied, replay=other))
    assert hashes(folder) == before


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"after": [[99] * 4] * 4}, "tokens span"),
        ({"after": [[1]]}, "was changed and makes no edit"),
        ({"target": "nothing"}, "was changed and makes no edit"),
    ],
)
def test_an_image_of_a_record_changed_by_hand_is_refused(copied, tmp_path, changed, why):
    _, record, _ = made(copied)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**record, "images": [{**record["images"][0], **changed}]}))
    with pytest.raises(VqCortexError, match=why):
        edit(EditSettings(out=copied, replay=other))


def test_explicit_swaps_and_copies_are_made_as_they_are_asked_for(copied):
    _, record, rows = made(copied, target="", swaps="0,0=1; 3,3=1", label="swaps")
    before, after, _ = grids(record)
    assert (after[:, 0, 0] == 1).all()
    assert (after[:, 3, 3] == 1).all()
    assert int((after != before).sum()) <= 4
    assert {row["strategy"] for row in rows} == {"swaps"}
    assert {row["accepted"] for row in rows} == {None}
    loaded = load_all(Study(copied), "cpu")
    other = next(loaded.store.batches(1, split="test", concept=1))
    _, record, rows = made(copied, target="", copy_from=other.image_ids[0], edit_region="0:2,0:4", label="copy")
    before, after, _ = grids(record)
    assert torch.equal(after[:, :2], other.tokens[:, :2].expand(2, -1, -1))
    assert torch.equal(after[:, 2:], before[:, 2:])
    assert {row["target"] for row in rows} == {"blue"}
    assert edit_stages(Study(copied)) == ["edit-copy", "edit-swaps"]


def test_a_mask_image_and_a_concepts_tokens_are_regions(copied, tmp_path):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[4:8, 8:] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    _, record, _ = made(copied, edit_region=f"mask:{tmp_path / 'mask.png'}")
    before, after, free = grids(record)
    assert free[0].nonzero().tolist() == [[1, 2], [1, 3]]
    assert torch.equal(after[free == 0], before[free == 0])
    _, record, _ = made(copied, edit_region="tokens:red")
    before, _, free = grids(record)
    assert (free[before == 4] == 1).all()


@pytest.mark.parametrize("name", ["best_cells", "concept_tokens", "search", "random_codes", "frequency_codes"])
def test_every_strategy_is_wired_to_what_it_needs(copied, name):
    _, record, _ = made(copied, edit_strategy=name, edit_region="1:3,1:3")
    before, after, free = grids(record)
    assert torch.equal(after[free == 0], before[free == 0])
    assert not torch.equal(after, before)


def test_the_best_cells_need_the_traversal(copied):
    shutil.rmtree(copied / "traverse")
    with pytest.raises(ConfigError, match=r"'best_cells' needs effects on concept 1, .* run 'vqcortex traverse'"):
        made(copied, edit_strategy="best_cells")


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"target": "red"}, ConfigError, "source and target are both 'red'"),
        ({"edit_region": "2:6,0:4"}, ConfigError, "rows 2:6 and columns 0:4: empty or outside the grid"),
        ({"edit_region": "2:2,0:4"}, ConfigError, "rows 2:2 and columns 0:4: empty or outside the grid"),
        ({"edit_region": "best:5"}, ConfigError, "window of 5x5 does not fit the 4x4 grid"),
        ({"edit_region": "best:x"}, ConfigError, "write the side of a square, as in 'best:3'"),
        ({"edit_region": "tokens:rad"}, ConfigError, "no concept 'rad'"),
        ({"edit_region": "mask:/no/mask.png"}, DataError, "mask '/no/mask.png' cannot be read"),
        ({"swaps": "3-4"}, ConfigError, "swap '3-4' cannot be read; write row,column=code"),
        ({"swaps": "9,0=1"}, ConfigError, "swap '9,0=1' lies outside the 4x4 grid"),
        ({"swaps": "0,0=8"}, TokenError, r"wants code 8 but this codebook holds \[0, 7\]"),
        ({"target": "blu"}, ConfigError, "no concept 'blu'"),
        ({"edit_strategy": "smalest"}, UnknownName, "no edit strategy named 'smalest'"),
        ({"chosen_by": ("judge:no",)}, ConfigError, "nobody called 'judge:no' can choose tokens; the study has: conv8"),
        ({"image": ("no such",)}, DataError, "the study has no image 'no such'; its images are called as in"),
        ({"copy_from": "no such"}, DataError, "the study has no image 'no such'"),
        ({"source": ""}, ConfigError, "nothing to edit: name a concept with --source"),
        ({"target": ""}, ConfigError, "nothing to do: name a concept with --target"),
        ({"swaps": "0,0=1", "copy_from": "x"}, ConfigError, "exclude each other; give one"),
        ({"label": "a/b"}, ConfigError, "label='a/b' must be a plain name"),
        ({"dilate": -2}, ConfigError, "dilate=-2 must be at least 0, or -1"),
        ({"edit_images": 0, "edit_draws": 0}, ConfigError, "2 settings wrong"),
    ],
)
def test_bad_input_is_one_clear_error_and_spoils_nothing(copied, hashes, wrong, error, said):
    before = hashes(copied)
    with pytest.raises(error, match=said):
        made(copied, **wrong)
    assert hashes(copied) == before


def test_a_mask_of_another_shape_is_refused(copied, tmp_path):
    Image.fromarray(np.full((5, 16), 255, np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(ConfigError, match="mask has 5x16 pixels but 16x16"):
        made(copied, edit_region=f"mask:{tmp_path / 'mask.png'}")


def test_an_image_without_the_concepts_tokens_has_an_empty_region(copied):
    loaded = load_all(Study(copied), "cpu")
    codes = {row["code"] for row in Study(copied).table("concept_tokens").where(concept="white", n=3)}
    batches = loaded.store.batches(50, split="test", pictures=False)
    name = next(
        name
        for batch in batches
        for name, grid, concept in zip(batch.image_ids, batch.tokens, batch.concept.tolist(), strict=True)
        if not codes & set(grid.flatten().tolist()) and concept != 7
    )
    with pytest.raises(ConfigError, match=f"image '{name}' holds no token of 'white', so its region is empty"):
        made(copied, source="", image=(name,), target="white", edit_region="tokens:white")


def test_a_judge_without_the_target_is_refused(copied, monkeypatch):
    real = editing.load_judges

    def without_blue(place, device):
        judges = real(place, device)
        for judge in judges:
            judge.concepts = tuple("azure" if name == "blue" else name for name in judge.concepts)
        return judges

    monkeypatch.setattr(editing, "load_judges", without_blue)
    with pytest.raises(ConfigError, match="judge 'soft' does not know 'blue'; it knows: black, azure"):
        made(copied)


def test_images_are_found_by_id_in_the_order_asked_for(toy_study):
    store = load_all(toy_study, "cpu").store
    first, second = store.read(0).image_ids[3], store.read(1).image_ids[0]
    assert image_of(store, [second, first]).image_ids == (second, first)


def test_pixels_inside_grow_with_the_radius(toy_study):
    place = place_of(load_all(toy_study, "cpu").model)
    free = torch.zeros(1, 4, 4, dtype=torch.bool)
    free[0, 0, 0] = True
    assert [int(inside_of(free, radius, place).sum()) for radius in (0, 1)] == [16, 64]
