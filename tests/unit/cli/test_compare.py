"""The compare command: where its page lies, what it says at the end, and its mistakes."""

from __future__ import annotations

import shutil
import sys

import pytest

from vqcortex.cli import main as door


@pytest.fixture
def vqcortex(monkeypatch, capsys):
    """Run the command line in this process: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vqcortex", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            door.main()
        found = capsys.readouterr()
        return int(stop.value.code or 0), found.out, " ".join(found.err.split())

    return call


@pytest.fixture
def copied(toy_study, tmp_path):
    for stage in ("tokens", "train"):
        shutil.copytree(toy_study.path(stage), tmp_path / "s" / stage)
    shutil.copy(toy_study.folder / "study.json", tmp_path / "s")
    return tmp_path / "s"


FEW = (
    "--compare-methods", "occlusion", "--compare-images", 16, "--insertion-images", 0, "--stability-images", 0,
    "--interval-resamples", 100, "--compare-split", "validation",
)  # fmt: skip


def test_the_recommendation_is_a_small_table_before_the_page_is_named(vqcortex, copied):
    for _ in range(2):
        code, said, err = vqcortex("compare", "--out", copied, *FEW)
        assert code == 0, err
        lines = said.splitlines()
        assert lines[0].split()[:3] == ["method", "mean", "drop"]
        assert lines[1].split()[:2] == ["default", "occlusion"]
        assert said.replace("\n", "").endswith("compare/compare.html")
    assert (copied / "compare" / "compare.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--compare-methods", "oclusion"), "no attribution method named 'oclusion'"),
        (("--compare-fills", "gray"), "no fill named 'gray'"),
        (("--compare-methods", "tis@conv10"), "which this study does not have"),
        (("--judge-concepts", "/no/such.json"), "judge-concepts='/no/such.json' cannot be read"),
        (("--compare-shares", 500), "share=500.0 must be above 0 and at most 100"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_the_study_as_it_was(vqcortex, copied, hashes, words, said):
    before = hashes(copied)
    code, _, err = vqcortex("compare", "--out", copied, *words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert hashes(copied) == before
