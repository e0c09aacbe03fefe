"""The worlds command: its table, and its mistakes."""

from __future__ import annotations

import sys

import pytest

from vqcortex.cli import main as door

QUICK = (
    "--model", "toy", "--worlds", "null", "--methods", "occlusion", "--extractors", "se_resnet", "--width", "16",
    "--depth", "2", "--runs", "2", "--world-images", "100", "--explain-images", "20", "--epochs", "3",
)  # fmt: skip


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


def test_worlds_prints_what_was_asked_and_where_the_tables_are(vqcortex, tmp_path):
    code, said, _ = vqcortex("worlds", *QUICK, "--out", tmp_path)
    assert code == 0
    assert "se_resnet" in said
    assert "null: codes are found although there is no signal; bound 0.05" in said
    assert said.replace("\n", "").endswith(f"done: {tmp_path}")
    assert (tmp_path / "worlds_summary.parquet").is_file()


def test_a_mistake_is_one_line(vqcortex, tmp_path):
    code, _, err = vqcortex("worlds", *QUICK, "--out", tmp_path, "--label-noise", "0.7")
    assert code == 2
    assert err.count("error: ") == 1
    assert "label-noise=0.7 must lie in [0, 0.5)" in err
    assert "Traceback" not in err
