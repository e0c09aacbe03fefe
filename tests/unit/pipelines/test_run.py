"""The main job, end to end, on the toy world."""

import shutil
import signal
import subprocess
import sys
import time

import pytest

from vqcortex.pipelines import run as running
from vqcortex.pipelines.run import demo_settings, run
from vqcortex.pipelines.study import STAGES as ALL_STAGES

STAGES = [stage for stage in ALL_STAGES if stage != "judges"]  # the toy has its own


def test_every_stage_is_finished_and_there_is_a_page(toy_study):
    for stage in STAGES:
        assert toy_study.record(stage)["outputs"]
    page = (toy_study.path("report") / "report.html").read_text()
    assert "magenta" in page


def test_a_second_run_changes_nothing(toy_study, toy_settings, hashes):
    before = hashes(toy_study.folder)
    run(toy_settings(toy_study.folder))
    assert hashes(toy_study.folder) == before


def test_the_batch_size_changes_no_token_no_rank_and_hardly_a_score(toy_study, toy_settings, tmp_path):
    other = run(toy_settings(tmp_path / "other", batch=7))
    assert other.fingerprint("tokens") == toy_study.fingerprint("tokens")
    for name in ("concept_tokens", "image_level", "codebook_level"):
        for one, two in zip(toy_study.table(name).rows, other.table(name).rows, strict=True):
            assert one == pytest.approx(dict(two), abs=2e-5)


def test_the_extractor_learns_and_the_explanation_finds_the_planted_codes(toy_study):
    found = toy_study.table("concept_tokens").where(n=3, rank=1)
    # Concept i paints code i: the token found most often where it matters must be that one.
    hits = sum(row["code"] == number for number, row in enumerate(found))
    assert len(found) == 8
    assert hits >= 6


def test_a_changed_setting_redoes_only_what_depends_on_it(toy_study, toy_settings, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(toy_study.folder, folder)
    before = {stage: (folder / stage / "stage.json").stat().st_mtime_ns for stage in STAGES}
    run(toy_settings(folder, examples=1))
    after = {stage: (folder / stage / "stage.json").stat().st_mtime_ns for stage in STAGES}
    assert [stage for stage in STAGES if before[stage] != after[stage]] == ["report"]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import settings_of
from vqcortex.pipelines.run import run
run(settings_of(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_run_killed_anywhere_ends_with_the_same_bytes(toy_study, tmp_path, hashes, request):
    folder, tests = tmp_path / "killed", str(request.config.rootpath / "tests")
    kills = 0
    for stage in ("tokens", "train", "score", "search", None):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), tests])
        while stage is not None and process.poll() is None and not (folder / stage / "partial.json").exists():
            time.sleep(0.002)
        if stage is None:
            assert process.wait() == 0
        elif process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills >= 3
    assert hashes(folder) == hashes(toy_study.folder)


def test_the_demo_is_a_run_of_the_embedded_model(tmp_path):
    settings = demo_settings(out=tmp_path)
    settings.check()
    assert settings.model == "zoo:fashion"


def test_steps_and_stages_are_the_same_list():
    assert len(running.STEPS) == len(ALL_STAGES)
