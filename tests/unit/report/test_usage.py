"""Codebook usage as a stage: tables and page, skipped, redone and killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest
import torch
from leveled import TWO, LeveledAdapter, grids_of, study_of

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import ENCODE, Level, one_level
from vqcortex.concepts.usage import levels_table, usage_table
from vqcortex.errors import ConfigError, ModelError, StudyError, TokenError
from vqcortex.pipelines import loaded as opening
from vqcortex.pipelines.exhibit import read_tables
from vqcortex.pipelines.settings import UsageSettings
from vqcortex.pipelines.study import Study
from vqcortex.pipelines.usage import UsageExhibit, gather_usage
from vqcortex.report import usage as module
from vqcortex.report.usage import ENOUGH, answer, key_figures, notes, render_usage, usage
from vqcortex.tokens.store import open_store

NASTY = """</script><script>alert("1")</script><img src=x onerror='a()'> & {{ 7 * 7 }}"""


class Reader(HTMLParser):
    """Collects tags, and checks that they close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def lopsided(images: int = 9, past: int = 6) -> torch.Tensor:
    """Toy grids that hold codes 0..past-1, the low ones more often."""
    return grids_of(one_level((4, 4), past), images)


@pytest.fixture
def toy(tmp_path) -> Study:
    shards = [lopsided(images) for images in (9, 4, 11)]
    return study_of(tmp_path / "toy", load_model("toy"), shards, ("train", "train", "test"))


@pytest.fixture
def leveled(tmp_path, monkeypatch):
    """Makes a study of a model with two levels."""

    def make(folder: str = "leveled", **changed) -> Study:
        model = LeveledAdapter(**changed)
        monkeypatch.setattr(opening, "load_model", lambda name, device: model)
        return study_of(tmp_path / folder, model, [grids_of(model.levels, 6), grids_of(model.levels, 5, seed=1)])

    return make


def exhibit_of(study: Study, model, **settings) -> UsageExhibit:
    return gather_usage(open_store(study.path("tokens")), model, UsageSettings(**settings))


def page_of(exhibit: UsageExhibit) -> str:
    return render_usage(exhibit, levels_table(exhibit.usage), usage_table(exhibit.usage), command="vqcortex usage")


def test_tables_and_page_lie_in_the_stage_and_the_numbers_are_those_of_the_store(toy):
    page = usage(UsageSettings(out=toy.folder))
    assert page == toy.path("usage") / "usage.html"
    assert set(toy.record("usage")["outputs"]) == {
        "usage.html", "usage.json", "usage.parquet", "usage_levels.json", "usage_levels.parquet",
    }  # fmt: skip
    tokens = torch.cat([lopsided(images) for images in (9, 4, 11)]).flatten()
    rows = toy.table("usage").rows
    assert {row["code"]: row["count"] for row in rows} == dict(enumerate(tokens.bincount(minlength=8).tolist()))
    assert [(row["code"], row["rank"]) for row in rows[-2:]] == [(6, None), (7, None)]
    shares = tokens.bincount() / len(tokens)
    for row in toy.table("usage_levels").rows:
        assert (row["images"], row["tokens"], row["live"], row["dead"]) == (24, 384, 6, 2)
        assert row["perplexity"] == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-5)
    metadata = pq.read_schema(toy.path("usage") / "usage.parquet").metadata
    assert b"images_with_code" in metadata[b"vqcortex"]


def test_one_split_is_counted_alone(toy):
    usage(UsageSettings(out=toy.folder, split="test"))
    assert toy.table("usage_levels").rows[0]["images"] == 3 + 1 + 3
    assert "the test images" in (toy.path("usage") / "usage.html").read_text()


def test_a_second_run_is_skipped_and_a_changed_setting_is_not(toy, monkeypatch, hashes):
    usage(UsageSettings(out=toy.folder))
    before = hashes(toy.folder)
    with monkeypatch.context() as still:
        still.setattr(module, "gather_usage", lambda *given, **named: pytest.fail("done again"))
        usage(UsageSettings(out=toy.folder, batch=3))
    assert hashes(toy.folder) == before
    usage(UsageSettings(out=toy.folder, atlas=1))
    assert hashes(toy.folder) != before


def test_the_batch_size_changes_no_byte(toy, hashes):
    usage(UsageSettings(out=toy.folder))
    before = hashes(toy.path("usage"))
    (toy.path("usage") / "usage.html").unlink()
    usage(UsageSettings(out=toy.folder, batch=1))
    assert hashes(toy.path("usage")) == before


def test_changed_tokens_are_counted_again(toy):
    usage(UsageSettings(out=toy.folder))
    before = toy.fingerprint("usage")
    store = open_store(toy.path("tokens"))
    store.append(replace(store.read(0), image_ids=tuple(f"more/{one}" for one in range(9))))
    record = toy.path("tokens") / "stage.json"
    record.write_text(record.read_text().replace('"outputs": {', '"outputs": {"more": "1", '))
    usage(UsageSettings(out=toy.folder))
    assert toy.fingerprint("usage") != before
    assert toy.table("usage_levels").rows[0]["images"] == 33


@pytest.mark.parametrize("where", ["save_table", "render_usage"])
def test_killed_and_started_again_it_ends_with_the_same_bytes(toy, tmp_path, monkeypatch, hashes, where):
    def kill(*given, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(module, where, kill)
        with pytest.raises(KeyboardInterrupt):
            usage(UsageSettings(out=toy.folder))
    assert (toy.path("usage") / "partial.json").exists()
    usage(UsageSettings(out=toy.folder))
    other = study_of(
        tmp_path / "other", load_model("toy"), [lopsided(n) for n in (9, 4, 11)], ("train", "train", "test")
    )
    usage(UsageSettings(out=other.folder))
    assert hashes(toy.path("usage")) == hashes(other.path("usage"))


SCRIPT = """
import sys
from pathlib import Path
from vqcortex.pipelines.settings import UsageSettings
from vqcortex.report.usage import usage
usage(UsageSettings(out=Path(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on Windows")
def test_a_process_killed_at_work_leaves_what_the_next_one_finishes(toy, hashes):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(toy.folder)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    while process.poll() is None and not (toy.path("usage") / "partial.json").exists():
        time.sleep(0.002)
    process.kill()
    process.wait()
    usage(UsageSettings(out=toy.folder))
    after = hashes(toy.path("usage"))
    shutil.rmtree(toy.path("usage"))
    usage(UsageSettings(out=toy.folder))
    assert hashes(toy.path("usage")) == after


def test_several_levels_each_have_a_curve_an_atlas_and_a_row(leveled):
    study = leveled()
    page = usage(UsageSettings(out=study.folder)).read_text()
    reader = Reader(page)
    assert reader.open == []
    assert page.count('class="chart rankchart"') == 2
    assert re.findall(r"<h3>(top|bottom)</h3>", page) == ["top", "bottom"]
    assert [row["level"] for row in study.table("usage_levels").rows] == ["top", "bottom", "all"]
    assert {row["level"] for row in study.table("usage").rows} == {"top", "bottom"}
    assert "the other levels hold their most used code" in page
    assert len(reader.all("img")) == sum(
        min(row["codes"], row["live"] + 16) for row in study.table("usage_levels").rows[:2]
    )


def test_a_model_that_cannot_decode_gets_a_page_without_atlas_that_says_so(leveled):
    page = usage(UsageSettings(out=leveled(abilities=(ENCODE,)).folder)).read_text()
    assert "leveled cannot decode (it can: encode), so its codes have no picture." in page
    assert not Reader(page).all("img")


def test_no_atlas_is_drawn_where_none_was_asked_for(toy):
    page = usage(UsageSettings(out=toy.folder, atlas=0)).read_text()
    assert not Reader(page).all("img")
    assert "--atlas 0 asked for none" in page


def test_the_page_stands_alone_is_well_formed_and_every_link_leads_somewhere(toy):
    page = usage(UsageSettings(out=toy.folder)).read_text()
    reader = Reader(page)
    assert reader.open == []
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))
    assert {one["src"][:11] for one in reader.all("img")} == {"data:image/"}
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {one["href"][1:] for one in reader.all("a")} <= set(ids)
    assert all(one["alt"] for one in reader.all("img"))
    assert all("aria-label" in one or one.get("aria-hidden") == "true" for one in reader.all("svg"))


def test_every_picture_carries_its_code_and_its_share(toy):
    titles = [one["title"] for one in Reader(page_of(exhibit_of(toy, load_model("toy")))).all("li")]
    table = exhibit_of(toy, load_model("toy")).usage.all
    assert titles[0] == f"code 0: {round(100 * table.top_share)} %, {int(table.counts[0])} tokens"
    assert titles[-2:] == ["code 6: dead", "code 7: dead"]


def test_whatever_model_and_levels_are_called_it_stays_text(leveled):
    levels = (Level(name=NASTY, grid=(2, 2), codes=(0, 8)), Level(name="b", grid=(4, 4), codes=(8, 16)))
    study = leveled(levels=levels)
    exhibit = exhibit_of(study, LeveledAdapter(levels=levels))
    page = page_of(replace(exhibit, model=NASTY, source=NASTY, why_none=NASTY))
    assert "alert(" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "{{ 7 * 7 }}" in page
    assert len(Reader(page).all("script")) == 2


def test_the_answer_and_the_figures_say_what_the_tables_say(toy):
    exhibit = exhibit_of(toy, load_model("toy"))
    one = exhibit.usage.all
    assert answer(exhibit).startswith(f"6 of 8 codes occur in the images. Their perplexity is {one.perplexity:.1f}: ")
    figures = {figure.name: figure.value for figure in key_figures(exhibit)}
    assert (figures["Live codes"], figures["Dead codes"], figures["Images"], figures["Tokens"]) == (
        "6 of 8",
        "2",
        "24",
        "384",
    )


def test_few_tokens_per_code_are_warned_of(tmp_path):
    few = study_of(tmp_path / "few", load_model("toy"), [lopsided(2, past=8)])
    many = study_of(tmp_path / "many", load_model("toy"), [lopsided(ENOUGH, past=8)])
    assert "perplexity comes out too low" in notes(exhibit_of(few, load_model("toy")))[1]
    assert len(notes(exhibit_of(many, load_model("toy")))) == 1


def test_an_empty_split_is_a_clear_error_and_spoils_nothing(tmp_path, hashes):
    study = study_of(tmp_path / "s", load_model("toy"), [lopsided()])
    usage(UsageSettings(out=study.folder))
    before = hashes(study.folder)
    with pytest.raises(
        ConfigError, match=r"split 'test' of this study holds no images; it has: 9 train, 0 validation, 0"
    ):
        usage(UsageSettings(out=study.folder, split="test"))
    assert hashes(study.folder) == before


def test_a_store_without_any_image_is_the_same_error(tmp_path):
    study = study_of(tmp_path / "s", load_model("toy"), [])
    with pytest.raises(ConfigError, match="split 'all' of this study holds no images"):
        usage(UsageSettings(out=study.folder))


def test_a_study_without_tokens_says_what_to_run(tmp_path):
    with pytest.raises(StudyError, match="no finished stage 'tokens'; run 'vqcortex tokens"):
        usage(UsageSettings(out=tmp_path / "s"))


def test_tokens_in_the_wrong_level_are_refused(leveled, tmp_path):
    leveled()
    tokens = grids_of(TWO, 4)
    tokens[0, 0, 0] = 15
    study = study_of(tmp_path / "wrong", LeveledAdapter(), [tokens])
    with pytest.raises(TokenError, match=r"level 'top' span \[\d, 15\] but its codes are \[0, 7\]"):
        usage(UsageSettings(out=study.folder))


def test_levels_of_one_name_are_refused_before_anything_is_written(leveled):
    study = leveled(levels=(TWO[0], TWO[0]))
    with pytest.raises(ModelError, match="level name 'top' is taken"):
        usage(UsageSettings(out=study.folder))
    assert not study.path("usage").exists()


def test_a_report_is_the_same_with_and_without_usage(toy_study, tmp_path):
    shutil.copytree(toy_study.folder, tmp_path / "s")
    before = list(read_tables(Study(tmp_path / "s")))
    usage(UsageSettings(out=tmp_path / "s"))
    assert list(read_tables(Study(tmp_path / "s"))) == before
    assert Study(tmp_path / "s").table("usage").rows
