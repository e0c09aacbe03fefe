"""A study: stages that are skipped while true, resumed when killed, redone when anything changed."""

import json

import pytest

from vqcortex.errors import StudyError
from vqcortex.files import write_bytes, write_json
from vqcortex.pipelines.settings import ScoreSettings
from vqcortex.pipelines.study import Study, command_of, run_stage, stage_key


def key(draws: int = 20, tokens: str = "a", batch: int = 1) -> dict:
    return stage_key("score", ScoreSettings(draws=draws, batch=batch), ScoreSettings, {"tokens": tokens})


def write(text: str):
    return lambda folder: write_bytes(folder / "out.txt", text.encode())


def refuse(folder):
    raise AssertionError("a finished stage was done again")


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(tmp_path / "study")


def test_a_finished_stage_is_not_done_again(study):
    assert run_stage(study, key(), write("x"))
    assert not run_stage(study, key(), refuse)


def test_what_has_no_effect_on_results_does_not_redo_a_stage(study):
    run_stage(study, key(), write("x"))
    assert not run_stage(study, key(batch=7), refuse)


@pytest.mark.parametrize("changed", [key(draws=3), key(tokens="b")])
def test_another_setting_or_input_redoes_a_stage_from_nothing(study, changed):
    run_stage(study, key(), write("x"))
    write_bytes(study.path("score") / "left-over", b"")
    assert run_stage(study, changed, write("y"))
    assert (study.path("score") / "out.txt").read_text() == "y"
    assert not (study.path("score") / "left-over").exists()


def test_an_altered_output_redoes_a_stage(study):
    run_stage(study, key(), write("x"))
    (study.path("score") / "out.txt").write_text("altered")
    assert run_stage(study, key(), write("x"))


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(study, tmp_path):
    def half(folder):
        write_bytes(folder / "first", b"1")
        raise KeyboardInterrupt

    def rest(folder):
        assert (folder / "first").read_bytes() == b"1"
        write_bytes(folder / "second", b"2")

    def whole(folder):
        write_bytes(folder / "first", b"1")
        write_bytes(folder / "second", b"2")

    with pytest.raises(KeyboardInterrupt):
        run_stage(study, key(), half)
    run_stage(study, key(), rest)
    other = Study(tmp_path / "other")
    run_stage(other, key(), whole)
    assert (study.path("score") / "stage.json").read_bytes() == (other.path("score") / "stage.json").read_bytes()


def half(folder):
    write_bytes(folder / "first", b"1")
    raise KeyboardInterrupt


def finish(folder):
    assert (folder / "first").read_bytes() == b"1"
    write_bytes(folder / "second", b"2")


def test_a_finished_stage_can_be_a_beginning(study):
    run_stage(study, key(draws=2), lambda folder: write_bytes(folder / "first", b"1"))
    assert run_stage(study, key(draws=3), finish, lambda before: before == key(draws=2))
    assert set(study.record("score")["outputs"]) == {"first", "second"}


def test_what_a_kill_left_can_be_a_beginning_too(study):
    with pytest.raises(KeyboardInterrupt):
        run_stage(study, key(draws=2), half)
    assert run_stage(study, key(draws=3), finish, lambda before: before == key(draws=2))


def test_a_stage_killed_between_its_two_records_goes_on(study):
    run_stage(study, key(draws=2), lambda folder: write_bytes(folder / "first", b"1"))
    write_json(study.path("score") / "partial.json", key(draws=3))
    assert not run_stage(study, key(draws=2), refuse)
    assert run_stage(study, key(draws=3), finish, lambda before: before == key(draws=2))
    assert not (study.path("score") / "partial.json").exists()


def test_what_was_altered_is_no_beginning(study):
    run_stage(study, key(draws=2), lambda folder: write_bytes(folder / "first", b"1"))
    (study.path("score") / "first").write_text("altered")
    assert run_stage(study, key(draws=3), lambda folder: write_bytes(folder / "first", b"2"), lambda before: True)
    assert not (study.path("score") / "second").exists()


def test_what_a_killed_writer_left_half_done_is_removed(study):
    with pytest.raises(KeyboardInterrupt):
        run_stage(study, key(draws=2), half)
    (study.path("score") / ".first.x1y2.part").write_text("torn")
    assert run_stage(study, key(draws=2), finish)
    assert sorted(path.name for path in study.path("score").iterdir()) == ["first", "second", "stage.json"]


def test_a_torn_partial_record_is_no_beginning(study):
    with pytest.raises(KeyboardInterrupt):
        run_stage(study, key(draws=2), half)
    (study.path("score") / "partial.json").write_text('{"stage"')
    assert run_stage(study, key(draws=3), write("x"), lambda before: pytest.fail("asked"))
    assert not (study.path("score") / "first").exists()


def test_an_unfinished_stage_says_what_to_run(study):
    with pytest.raises(StudyError, match="no finished stage 'train'; run 'vqcortex train --out"):
        study.record("train")


def test_a_folder_with_other_files_is_never_taken_over(tmp_path):
    (tmp_path / "thesis.doc").write_text("precious")
    with pytest.raises(StudyError, match=r"holds files but no study\.json"):
        Study(tmp_path)
    assert (tmp_path / "thesis.doc").read_text() == "precious"


def test_a_stage_folder_with_other_files_is_never_emptied(study):
    (study.path("score")).mkdir()
    (study.path("score") / "thesis.doc").write_text("precious")
    with pytest.raises(StudyError, match="no stage of this study wrote"):
        run_stage(study, key(), write("x"))
    assert (study.path("score") / "thesis.doc").read_text() == "precious"


def test_a_file_is_not_a_study(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="is a file; a study is a folder"):
        Study(tmp_path / "file")


def test_a_torn_study_says_what_to_do(tmp_path):
    Study(tmp_path / "study")
    (tmp_path / "study" / "study.json").write_text('{"format"')
    with pytest.raises(StudyError, match=r"cannot be read .* remove it and run the same command again"):
        Study(tmp_path / "study")


def test_another_format_is_refused(tmp_path):
    Study(tmp_path / "study")
    (tmp_path / "study" / "study.json").write_text('{"format": 99}')
    with pytest.raises(StudyError, match="has format 99, this version reads 1"):
        Study(tmp_path / "study")


def test_a_second_writer_is_refused(study):
    pytest.importorskip("fcntl", reason="file locks of this kind exist on Unix only")
    with study.locked(), pytest.raises(StudyError, match="is being written by another process"):
        run_stage(study, key(), refuse)


def test_an_unknown_table_lists_those_there_are(study):
    with pytest.raises(StudyError, match="has no table 'drops'; it has: none yet"):
        study.table("drops")


def test_the_fingerprint_follows_the_content(study):
    run_stage(study, key(), write("x"))
    before = study.fingerprint("score")
    run_stage(study, key(draws=3), write("y"))
    assert study.fingerprint("score") != before


def test_the_record_has_settings_inputs_versions_and_hashes(study):
    run_stage(study, key(), write("x"))
    record = json.loads((study.path("score") / "stage.json").read_text())
    assert record["key"]["settings"]["draws"] == 20
    assert record["key"]["inputs"] == {"tokens": "a"}
    assert set(record["versions"]) >= {"python", "torch", "vqcortex"}
    assert list(record["outputs"]) == ["out.txt"]


def test_commands_are_written_out_as_typed():
    line = command_of("search", {"pairs": ["Bag>Ankle boot"], "steps": 3, "pictures": False, "judges": ""})
    assert line == 'vqcortex search --pairs "Bag>Ankle boot" --steps 3'
