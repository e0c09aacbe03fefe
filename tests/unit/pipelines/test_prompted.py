"""Prompts become stores: tokens with prompts are imported, pictures with prompts are encoded."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqcortex.errors import ConfigError, DataError, StoreError, TokenError
from vqcortex.pipelines.plan import choose
from vqcortex.pipelines.settings import TokensSettings
from vqcortex.pipelines.study import Study
from vqcortex.pipelines.tokens import make_tokens
from vqcortex.tokens.store import open_store

MODEL = "toy:2x2"
WORDS = ("a red bird", "a cat", "two dogs, running")


def settings(out: Path, **changed) -> TokensSettings:
    return TokensSettings(**{"out": out, "model": MODEL, "shard": 7, **changed})


def table(path: Path, rows: int = 30, last: str = "0 1 2 3") -> Path:
    """Ten images of each of three prompts; the last row's ids are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    cells = [" ".join(map(str, rng.integers(0, 8, 4))) for _ in range(rows - 1)] + [last]
    lines = [f'"{WORDS[number % 3]}",{ids}' for number, ids in enumerate(cells)]
    path.write_text("prompt,tokens\n" + "\n".join(lines) + "\n")
    return path


def test_prompts_become_concepts_split_by_place(tmp_path):
    store = make_tokens(settings(tmp_path / "s", prompts=table(tmp_path / "t.csv")))
    assert store.manifest.concepts == tuple(sorted(WORDS))
    assert len(store) == 30
    for concept in range(3):
        assert [store.count(split, concept) for split in ("train", "validation", "test")] == [7, 1, 2]
    assert store.manifest.origin["way"] == "import"


def test_shards_change_no_image(tmp_path):
    path = table(tmp_path / "t.csv")
    one, two = (make_tokens(settings(tmp_path / str(size), prompts=path, shard=size)) for size in (4, 100))
    a, b = (next(store.batches(30)) for store in (one, two))
    assert (a.image_ids, a.split, a.tokens.tolist()) == (b.image_ids, b.split, b.tokens.tolist())


def test_a_killed_import_goes_on_to_the_same_bytes(tmp_path, hashes):
    good, bad = table(tmp_path / "a/t.csv"), table(tmp_path / "b/t.csv", last="0 1 2 8")
    make_tokens(settings(tmp_path / "whole", prompts=good))
    with pytest.raises(TokenError, match=r"tokens span \[0, 8\] .*\n  while working on: row=row 31 of"):
        make_tokens(settings(tmp_path / "s", prompts=bad))
    assert (tmp_path / "s/tokens/tokens-00003.parquet").exists()
    make_tokens(settings(tmp_path / "s", prompts=good))
    assert hashes(tmp_path / "s") == hashes(tmp_path / "whole")


def test_a_table_whose_content_changes_is_imported_again(tmp_path):
    path, made = tmp_path / "t.csv", []
    for last in ("0 1 2 3", "0 1 2 3", "3 2 1 0"):
        make_tokens(settings(tmp_path / "s", prompts=table(path, last=last)))
        made.append(Study(tmp_path / "s").record("tokens")["key"]["inputs"]["prompts"])
    assert made[0] == made[1] != made[2]
    found = [grid for one in open_store(tmp_path / "s/tokens").batches(30) for grid in one.tokens.flatten(1).tolist()]
    assert found[-1] == [3, 2, 1, 0]


def test_arrays_beside_a_table_are_part_of_what_is_read(tmp_path):
    (tmp_path / "t.csv").write_text("prompt,file\n" + "".join(f"{'ab'[n % 2]},{n}.npy\n" for n in range(4)))
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.full((2, 2), number))
    made = []
    for value in (0, 0, 7):
        np.save(tmp_path / "0.npy", np.full((2, 2), value))
        store = make_tokens(settings(tmp_path / "s", prompts=tmp_path / "t.csv"))
        made.append(next(store.batches(1)).tokens.flatten().tolist())
    assert made == [[0] * 4, [0] * 4, [7] * 4]
    (tmp_path / "0.npy").unlink()
    with pytest.raises(DataError, match=r"0\.npy cannot be read: .*No such file"):
        make_tokens(settings(tmp_path / "s", prompts=tmp_path / "t.csv"))


def test_the_same_table_elsewhere_leaves_the_same_provenance(tmp_path):
    for name in ("a", "b"):
        make_tokens(settings(tmp_path / f"study-{name}", prompts=table(tmp_path / name / "t.csv")))
    one, other = (Study(tmp_path / f"study-{name}").record("tokens")["key"]["inputs"] for name in ("a", "b"))
    assert one == other


def test_concepts_can_be_chosen_and_pictures_kept(tmp_path):
    path = table(tmp_path / "t.csv")
    store = make_tokens(
        settings(tmp_path / "s", prompts=path, concepts=("a cat", "a red bird"), pictures=True, batch=3)
    )
    assert (store.manifest.concepts, len(store)) == (("a cat", "a red bird"), 20)
    images = [one for batch in store.batches(50) for one in batch.images]
    assert {one[:4] for one in images} == {b"\x89PNG"}


def test_fewer_than_two_concepts_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("prompt,tokens\n" + "a,0 1 2 3\n" * 4)
    with pytest.raises(ConfigError, match=r"1 concept\(s\) chosen of table '.*t\.csv'; an extractor needs at least 2"):
        make_tokens(settings(tmp_path / "s", prompts=tmp_path / "t.csv"))
    with pytest.raises(ConfigError, match=r"has no concept 'a cad'; it has: .* Did you mean 'a cat'\?"):
        make_tokens(settings(tmp_path / "s", prompts=table(tmp_path / "t.csv"), concepts=("a cad", "a red bird")))


def test_an_id_that_occurs_twice_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("prompt,id,tokens\na,x,0 1 2 3\nb,y,0 1 2 3\nb,x,0 1 2 3\n")
    with pytest.raises(StoreError, match="image id 'x' occurs twice"):
        make_tokens(settings(tmp_path / "s", prompts=tmp_path / "t.csv"))


def test_long_prompts_are_concepts_and_short_in_messages(tmp_path):
    long = ["bird " * 40 + str(number) for number in range(30)]
    rows = "".join(f"{name},0 1 2 3\n" * 2 for name in long)
    (tmp_path / "t.csv").write_text("prompt,tokens\n" + rows)
    store = make_tokens(settings(tmp_path / "s", prompts=tmp_path / "t.csv"))
    assert store.manifest.concepts == tuple(sorted(long))
    with pytest.raises(ConfigError, match=r"has no concept 'x'; it has: bird .*\.\.\., \.\.\. \(30 in all\)") as caught:
        choose(("x",), long, "the table")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("other", [{"images": "idx:x"}, {"published": Path("x")}], ids=["images", "published"])
def test_ways_into_a_store_exclude_each_other(tmp_path, other):
    with pytest.raises(ConfigError, match=r"(images|published)='.*' and prompts='t\.csv' exclude each other; give one"):
        make_tokens(settings(tmp_path / "s", prompts=Path("t.csv"), **other))


def test_pictures_with_prompts_are_encoded_and_made_again_when_one_changes(tmp_path):
    (tmp_path / "data").mkdir()
    lines = ["file_name,text"]
    for number in range(24):
        Image.new("RGB", (16, 16), ("red", "blue")[number % 2]).save(tmp_path / "data" / f"{number}.png")
        lines.append(f"{number}.png,{('a red field', 'a blue field')[number % 2]}")
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(lines) + "\n")
    wanted = settings(tmp_path / "s", images=f"prompts:{tmp_path / 'data'}", per_concept=10)
    store = make_tokens(wanted)
    assert (store.manifest.concepts, len(store)) == (("a blue field", "a red field"), 20)
    before = Study(tmp_path / "s").record("tokens")["key"]["inputs"]
    Image.new("RGB", (16, 16), "red").save(tmp_path / "data" / "1.png")
    make_tokens(wanted)
    assert Study(tmp_path / "s").record("tokens")["key"]["inputs"] != before
