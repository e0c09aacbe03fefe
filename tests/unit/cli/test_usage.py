"""The usage command: where its page lies, and its mistakes."""

from __future__ import annotations

import sys

import pytest
from leveled import grids_of, study_of

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import one_level
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
def study(tmp_path):
    return study_of(tmp_path / "s", load_model("toy"), [grids_of(one_level((4, 4), 6), 12)])


def test_usage_says_where_its_page_is_and_a_second_call_too(vqcortex, study):
    for _ in range(2):
        code, said, _ = vqcortex("usage", "--out", study.folder, "--atlas", 4)
        assert code == 0
        assert said.replace("\n", "").endswith("usage/usage.html")
    assert (study.path("usage") / "usage.html").is_file()
    assert study.record("usage")["key"]["settings"]["atlas"] == 4


def test_help_names_the_flags_and_not_the_internals(vqcortex):
    code, said, _ = vqcortex("usage", "--help")
    assert code == 0
    assert "--atlas" in said
    assert "--split" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--split", "test"), "split 'test' of this study holds no images; it has: 12 train, 0 validation, 0 test"),
        (("--split", "val", "--atlas", -2), "2 settings wrong: split='val' must be one of all, train"),
        (("--device", "tpu"), "device='tpu' is not on this machine"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_the_study_as_it_was(vqcortex, study, hashes, words, said):
    before = hashes(study.folder)
    code, _, err = vqcortex("usage", "--out", study.folder, *words)
    assert code == 2
    assert err.count("error: ") == 1
    assert said in err
    assert "Traceback" not in err
    assert hashes(study.folder) == before


def test_a_study_without_tokens_says_what_to_run(vqcortex, tmp_path):
    code, _, err = vqcortex("usage", "--out", tmp_path / "none")
    assert code == 2
    assert "no finished stage 'tokens'; run 'vqcortex tokens" in err


def test_a_truncated_shard_is_named(vqcortex, study):
    shard = next((study.path("tokens")).glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-40])
    code, _, err = vqcortex("usage", "--out", study.folder)
    assert code == 2
    assert shard.name in err


def test_a_store_of_another_model_is_refused(vqcortex, study):
    manifest = study.path("tokens") / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace(load_model("toy").identity, "0" * 64))
    code, _, err = vqcortex("usage", "--out", study.folder)
    assert code == 2
    assert "identity 000000000000" in err
