"""Counting a store and drawing codes."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from leveled import SHARED, TWO, LeveledAdapter, grids_of, study_of

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import DECODE, ENCODE, one_level
from vqcortex.concepts.usage import count_codes, measure_usage
from vqcortex.errors import ConfigError, StoreError, TokenError
from vqcortex.pipelines.settings import UsageSettings
from vqcortex.pipelines.usage import (
    AT_ONCE,
    Piece,
    check_split,
    count_shard,
    count_store,
    draw_atlases,
    filled,
    gather_usage,
    middle,
    source_of,
    why_no_atlas,
)
from vqcortex.tokens.store import TokenStore, open_store

SPLITS = ("train", "test", "train")


@pytest.fixture
def store(tmp_path) -> TokenStore:
    shards = [grids_of(TWO, images, seed=images) for images in (7, 5, 9)]
    return open_store(study_of(tmp_path / "s", LeveledAdapter(), shards, SPLITS).path("tokens"))


def whole(store: TokenStore, split: str | None = None) -> list:
    tokens = torch.cat([one.tokens for one in store.batches(100, split=split)])
    return plain(count_codes(tokens, TWO))


def plain(counts) -> list:
    return [counts.images, *((one.codes.tolist(), one.tokens.tolist(), one.images.tolist()) for one in counts.levels)]


class Elsewhere:
    """An engine whose work, items and results all travel as bytes."""

    def map(self, work, items):
        for item in items:
            there, piece = pickle.loads(pickle.dumps((work, item)))
            yield pickle.loads(pickle.dumps(there(piece)))


@pytest.mark.parametrize("split", ["all", "train", "test"])
@pytest.mark.parametrize("batch", [1, 4, 250])
def test_counts_of_shards_add_up_to_those_of_the_store(store, split, batch):
    settings = UsageSettings(split=split, batch=batch)
    assert plain(count_store(store, TWO, settings)) == whole(store, None if split == "all" else split)
    assert plain(count_store(store, TWO, settings, engine=Elsewhere())) == plain(count_store(store, TWO, settings))


def test_a_shard_is_read_in_batches_without_pictures(store, monkeypatch):
    seen = []
    batches = TokenStore.batches

    def watched(self, size, **more):
        seen.append((size, len(self.shards), more["pictures"]))
        return batches(self, size, **more)

    monkeypatch.setattr(TokenStore, "batches", watched)
    count_store(store, TWO, UsageSettings(batch=3))
    assert seen == [(3, 1, False)] * 3


def test_a_split_without_images_says_what_there_is(store):
    with pytest.raises(
        ConfigError, match=r"split 'validation' .* holds no images; it has: 14 train, 0 validation, 7 test"
    ):
        check_split(store, "validation")
    check_split(store, "all")
    check_split(store, "test")


def test_a_code_of_another_level_is_found_by_the_pipeline_too(tmp_path):
    tokens = grids_of(TWO, 4)
    tokens[2, 0, 1] = 12
    store = open_store(study_of(tmp_path / "s", LeveledAdapter(), [tokens]).path("tokens"))
    with pytest.raises(TokenError, match="tokens of level 'top' span"):
        count_store(store, TWO, UsageSettings())


def test_a_shard_that_is_cut_short_is_named(store):
    shard = store.folder / store.shards[1].name
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(StoreError, match=shard.name):
        count_store(store, TWO, UsageSettings())


def test_a_piece_of_no_image_of_the_split_counts_nothing(store):
    piece = Piece(store=store, split="validation", levels=TWO, batch=10)
    assert count_shard(piece).images == 0


def usage_of(levels, images=12):
    return measure_usage(count_codes(grids_of(levels, images), levels), levels)


def test_a_code_fills_its_level_and_the_others_hold_their_most_used_code():
    usage = usage_of(TWO)
    top = usage.levels[0].codes[0].item()
    assert filled(TWO, usage, 1, 13).tolist() == [[top] * 4 + [13] * 16]
    one = one_level((2, 3), 9)
    assert filled(one, usage_of(one), 0, 5).tolist() == [[5] * 3] * 2


@pytest.mark.parametrize(
    ("size", "grid", "rows", "columns"),
    [
        ((28, 28), (7, 7), (8, 20), (8, 20)),
        ((16, 32), (4, 8), (0, 12), (8, 20)),
        ((24, 24), (1, 1), (0, 24), (0, 24)),
        ((24, 24), (2, 3), (0, 24), (0, 24)),
        ((10, 10), (3, 4), (0, 10), (0, 8)),
    ],
)
def test_the_middle_is_three_positions_a_side_or_all_there_are(size, grid, rows, columns):
    picture = np.arange(size[0] * size[1] * 3, dtype=np.int64).reshape(*size, 3).astype(np.uint8)
    assert np.array_equal(middle(picture, grid), picture[slice(*rows), slice(*columns)])


def test_drawn_codes_are_what_the_model_decodes_most_used_first():
    toy = load_model("toy")
    tokens = torch.tensor([[[4, 4, 4, 4], [2, 2, 2, 2], [2, 2, 2, 2], [7, 7, 7, 1]]])
    (atlas,) = draw_atlases(toy, measure_usage(count_codes(tokens, toy.levels), toy.levels), 256)
    assert [(one.code, one.count, one.share) for one in atlas.live] == [
        (2, 8, 0.5), (4, 4, 0.25), (7, 3, 3 / 16), (1, 1, 1 / 16),
    ]  # fmt: skip
    assert [(one.code, one.count) for one in atlas.dead] == [(0, 0), (3, 0), (5, 0), (6, 0)]
    for one in (*atlas.live, *atlas.dead):
        assert one.picture.shape == (12, 12, 3)
        assert (one.picture == (toy.codebook[one.code] * 255).byte().numpy()).all()


@pytest.mark.parametrize("levels", [TWO, SHARED], ids=["two", "shared"])
def test_several_levels_share_the_pictures_evenly(levels):
    model, usage = LeveledAdapter(levels), usage_of(levels, 3)
    found = draw_atlases(model, usage, 6)
    assert [one.level for one in found] == [one.name for one in levels]
    for number, (atlas, level) in enumerate(zip(found, usage.levels, strict=True)):
        assert [one.code for one in atlas.live] == level.codes[:3].tolist()
        assert [one.code for one in atlas.dead] == level.dead_codes(1)
        for one in atlas.live:
            other = model.codebook[usage.levels[1 - number].codes[0]]
            wanted = ((model.codebook[one.code] + other).clamp(0, 1) * 255).round().byte().numpy()
            assert (one.picture == wanted).all()


def test_every_decoding_has_the_same_batch_so_that_no_picture_depends_on_it(monkeypatch):
    model, seen = LeveledAdapter(), []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda embedded: (seen.append(len(embedded)), decode(embedded))[1])
    found = draw_atlases(model, usage_of(TWO), 10)
    drawn = sum(len(one.live) + len(one.dead) for one in found)
    assert drawn % AT_ONCE
    assert seen == [AT_ONCE] * -(-drawn // AT_ONCE)


def test_pixels_that_are_no_number_or_out_of_range_are_drawn_as_black_or_full(monkeypatch):
    toy = load_model("toy")
    monkeypatch.setattr(type(toy), "decode", lambda self, z: torch.full((len(z), 3, 16, 16), float("nan")))
    (atlas,) = draw_atlases(toy, usage_of(toy.levels), 1)
    assert (atlas.live[0].picture == 0).all()
    monkeypatch.setattr(type(toy), "decode", lambda self, z: torch.full((len(z), 3, 16, 16), 7.0))
    (atlas,) = draw_atlases(toy, usage_of(toy.levels), 1)
    assert (atlas.live[0].picture == 255).all()


def test_a_model_that_cannot_decode_says_so_and_is_never_asked(tmp_path):
    model = LeveledAdapter(abilities=(ENCODE,))
    model.decode = model.encode
    store = open_store(study_of(tmp_path / "s", model, [grids_of(TWO, 4)]).path("tokens"))
    exhibit = gather_usage(store, model, UsageSettings())
    assert exhibit.atlases == ()
    assert exhibit.why_none == "leveled cannot decode (it can: encode), so its codes have no picture."
    assert exhibit.usage.all.images == 4


def test_no_atlas_was_asked_for():
    assert "--atlas 0" in why_no_atlas(LeveledAdapter(abilities=(DECODE,)), 0)
    assert why_no_atlas(LeveledAdapter(), 1) == ""


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ({}, "of unknown origin"),
        ({"way": "generate", "source": ""}, "generated by the model"),
        ({"way": "encode", "source": "idx:x"}, "encoded from idx:x"),
        ({"way": "dream", "source": None}, "dream"),
    ],
)
def test_the_source_is_said_in_words(store, origin, said):
    assert source_of(TokenStore(store.folder, replace(store.manifest, origin=origin))) == said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"split": "val"}, "split='val' must be one of all, train, validation, test"),
        ({"atlas": -1}, "atlas=-1 must lie in 0 to 4096"),
        ({"atlas": 5000}, "atlas=5000 must lie in 0 to 4096"),
    ],
)
def test_settings_out_of_range_are_refused(changed, said):
    with pytest.raises(ConfigError, match=said):
        UsageSettings(**changed).check()
