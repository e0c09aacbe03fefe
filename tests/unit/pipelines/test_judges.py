"""Judges trained for a study, where none lie with its model."""

import json
import shutil
from pathlib import Path

import pytest
from engines import Pickling

from vqcortex.adapters.protocol import ENCODE, GENERATE
from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, ModelError, StudyError
from vqcortex.judges import has_judges, load_judges
from vqcortex.judges.train import JUDGES
from vqcortex.pipelines import judges as judging
from vqcortex.pipelines.evaluate import evaluate
from vqcortex.pipelines.exhibit import gather
from vqcortex.pipelines.judges import given_judges, is_judged_by_own, judges_place, make_judges, told, warned
from vqcortex.pipelines.run import narrowed, run
from vqcortex.pipelines.settings import JudgesSettings, RunSettings
from vqcortex.pipelines.study import STAGES, Study
from vqcortex.pipelines.tokens import make_tokens

GOLDEN = Path(__file__).parents[2] / "data/golden"
FEW = {"judge_epochs": 5, "judge_rate": 3e-3}


def is_beside(name: str) -> bool:
    """`has_judges` of a world where the toy has none."""
    return (Path(name) / "judges.json").is_file()


@pytest.fixture(autouse=True)
def unjudged(monkeypatch):
    """The toy world without its judges."""
    monkeypatch.setattr(judging, "has_judges", is_beside)


@pytest.fixture(scope="module")
def own(toy_study, toy_settings, tmp_path_factory) -> Study:
    """The toy study, judged by judges of its own; tests only read it."""
    folder = tmp_path_factory.mktemp("own") / "study"
    shutil.copytree(toy_study.folder, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "has_judges", is_beside)
        return run(toy_settings(folder, **FEW))


@pytest.fixture
def copied(own, tmp_path) -> Path:
    """The same, to be spoilt."""
    shutil.copytree(own.folder, tmp_path / "copy")
    return tmp_path / "copy"


def settings_for(out: Path, **changed: object) -> JudgesSettings:
    return JudgesSettings(out=out, **{**FEW, **changed})


def listed(folder: Path) -> dict:
    return json.loads((folder / "judges" / "judges.json").read_text())


def test_a_study_whose_model_has_judges_trains_none_and_says_nothing_of_them(toy_study, toy_settings, monkeypatch):
    monkeypatch.setattr(judging, "has_judges", has_judges)
    assert not toy_study.path("judges").exists()
    assert "judges" not in {path.stem for path in toy_study.path("evaluate").iterdir()}
    assert "The judges that check it" not in (toy_study.path("report") / "report.html").read_text()
    names = [one.name for one in make_judges(narrowed(toy_settings(toy_study.folder), "JudgesSettings"))]
    assert names == ["soft", "hard"]
    assert not toy_study.path("judges").exists()


def test_a_study_without_judges_gets_two_that_know_its_concepts(own):
    assert {row["judge"] for row in own.table("image_level").rows} == set(JUDGES)
    for row in own.table("judges").rows:
        assert row["trained_on"] == "decoded training images of this study"
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["accuracy"] > 0.8  # one image in twelve or so has more of another colour
        assert row["images"] == 48
        assert row["verdict"] == "good enough"
    assert warned(RunSettings(out=own.folder)) == []


def test_each_split_has_its_use(own):
    assert listed(own.folder)["made"]["images"] == {"train": 168, "validation": 24, "test": 48}
    assert not (own.path("judges") / "log").exists()


def test_the_page_says_who_judged_and_how_good_they_are(own):
    page = (own.path("report") / "report.html").read_text()
    assert "The judges that check it" in page
    assert "2 were trained for this study, on its decoded training images" in page
    assert "vqcortex judges" in page
    exhibit = gather(own, 1, "cpu", 100)
    assert list(exhibit.judges) == ["trained on", *JUDGES]
    assert "of 48 test images" in exhibit.judges["cnn"]
    assert [one["stage"] for one in exhibit.stages] == [one for one in STAGES if one != "report"]


def test_a_second_run_changes_nothing(own, toy_settings, hashes):
    before = hashes(own.folder)
    run(toy_settings(own.folder, **FEW))
    assert hashes(own.folder) == before


def test_closing_lines_say_how_good_the_judges_are(own):
    lines = told(settings_for(own.folder))
    assert [line.split(":")[0] for line in lines] == ["judge cnn", "judge patch"]
    assert "of 48 test images" in lines[0]


def test_a_killed_run_trains_only_the_judge_that_was_unfinished(own, copied, hashes, monkeypatch):
    shutil.rmtree(copied / "judges")
    real, trained = judging.train_judge, []

    def stumbling(name, *rest):
        trained.append(name)
        if trained == ["cnn", "patch"]:
            raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(judging, "train_judge", stumbling)
    with pytest.raises(KeyboardInterrupt):
        make_judges(settings_for(copied))
    assert not (copied / "judges" / "judges.json").exists()
    decoded = [path.stat().st_mtime_ns for path in sorted((copied / "judges" / "log").glob("*.npy"))]
    assert decoded
    monkeypatch.setattr(judging, "_decode_shard", lambda *_, **__: pytest.fail("decoded again"))
    make_judges(settings_for(copied))
    assert trained == ["cnn", "patch", "patch"]
    assert hashes(copied / "judges") == hashes(own.path("judges"))


def test_a_finished_judge_whose_weights_were_altered_is_trained_again(own, copied, hashes, monkeypatch):
    shutil.rmtree(copied / "judges")
    real = judging.train_judge

    def stop(name, *rest):
        if name == "patch":
            raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(judging, "train_judge", stop)
    with pytest.raises(KeyboardInterrupt):
        make_judges(settings_for(copied))
    monkeypatch.setattr(judging, "train_judge", real)
    (copied / "judges" / "judge_cnn.safetensors").write_bytes(b"altered")
    make_judges(settings_for(copied))
    assert hashes(copied / "judges") == hashes(own.path("judges"))


def test_neither_engine_nor_batch_size_changes_a_judge(own, copied, hashes):
    shutil.rmtree(copied / "judges")
    engine = Pickling()
    make_judges(settings_for(copied, batch=77), engine=engine)
    assert set(engine.names) == {"_decode_shard"}
    assert hashes(copied / "judges") == hashes(own.path("judges"))


def test_a_weak_judge_is_stamped_wherever_its_figures_are_shown(copied, toy_settings):
    changed = {"judge_epochs": 1, "judge_rate": 1e-9}
    study = run(toy_settings(copied, **changed))
    stamped = {f"{name} (too weak)" for name in JUDGES}
    for table in ("image_level", "image_verdicts", "concept_level", "codebook_level", "scratch", "judges"):
        assert {row["judge"] for row in study.table(table).rows} == stamped
    assert {row["verdict"] for row in study.table("judges").rows} == {"judge too weak"}
    page = (study.path("report") / "report.html").read_text()
    assert all(page.count(f"judge too weak: {name} is right on") == 1 for name in JUDGES)
    assert "Judge: cnn (too weak)" in page
    lines = warned(RunSettings(out=copied))
    assert [line.split(" is ")[0] for line in lines] == [f"warning: judge too weak: {name}" for name in JUDGES]
    assert told(settings_for(copied, **changed))[-1] == lines[-1]


def test_evidence_without_judges_names_the_command_that_trains_them(copied, toy_settings):
    shutil.rmtree(copied / "judges")
    with pytest.raises(ModelError, match=r"no judges lie with 'toy' .*run 'vqcortex judges --out .*copy' first"):
        evaluate(narrowed(toy_settings(copied), "EvaluateSettings"))


def test_judges_of_other_tokens_are_refused(copied, toy_settings):
    make_tokens(narrowed(toy_settings(copied, per_concept=40), "TokensSettings"))
    with pytest.raises(StudyError, match=r"trained on other tokens .*run 'vqcortex judges"):
        judges_place(Study(copied), "", ToyAdapter())


def test_named_judges_are_taken_instead_and_keep_their_stamp(own, copied, toy_settings):
    named = str(own.path("judges"))
    before = (copied / "judges" / "stage.json").stat().st_mtime_ns
    study = run(toy_settings(copied, judges=named, seed=0, **FEW))
    assert (copied / "judges" / "stage.json").stat().st_mtime_ns == before
    assert {row["trained_on"] for row in study.table("judges").rows} == {f"elsewhere: {named}"}
    assert not is_judged_by_own(study)
    assert "judges" not in [one["stage"] for one in gather(study, 1, "cpu", 100).stages]
    assert told(settings_for(copied, judges=named))[-1] == f"nothing was trained: judges lie with {named!r}"


def test_judges_that_lie_beside_a_model_s_files_are_found(own, tmp_path):
    shutil.copytree(own.path("judges"), tmp_path / "model" / "part")
    (tmp_path / "model" / "part" / "weights.pt").write_bytes(b"")
    place = str(tmp_path / "model" / "part")
    for name in (f"taming:{place}", f"taming:{tmp_path / 'model'}#part?size=64", f"llamagen:{place}/weights.pt"):
        assert given_judges("", name) == place
    assert [one.name for one in load_judges(place)] == list(JUDGES)
    assert given_judges("", f"taming:{tmp_path}") is None
    assert given_judges("", "diffusers:some/hub-id") is None
    assert given_judges("zoo:fashion", f"taming:{place}") == "zoo:fashion"


def test_a_model_that_cannot_decode_has_every_stage_before_the_evidence(toy_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(ToyAdapter, "abilities", property(lambda _: frozenset({ENCODE, GENERATE})))
    monkeypatch.setattr(ToyAdapter, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ModelError, match=r"cannot decode \(it can: encode, generate\), so it has no pictures to judge"):
        run(toy_settings(tmp_path / "s"))
    study = Study(tmp_path / "s")
    for stage in STAGES[: STAGES.index("evaluate")]:
        assert stage == "judges" or study.record(stage)["outputs"]
    assert not study.path("judges").exists()
    assert any("cannot decode" in one for one in study.trust.reasons)
    with pytest.raises(ModelError, match="no pictures to judge"):
        evaluate(narrowed(toy_settings(tmp_path / "s", judges="toy"), "EvaluateSettings"))


def test_a_foreign_model_is_explained_from_end_to_end(toy_settings, tmp_path):
    model = f"net2net:{GOLDEN / 'taming_net2net'}"
    study = run(
        toy_settings(
            tmp_path / "s", model=model, concepts=("class 00", "class 03"), epochs=2, scratch=0, judge_epochs=3,
            search_images=1, traverse_images=4, region="all",
        )
    )  # fmt: skip
    assert is_judged_by_own(study)
    assert listed(study.folder)["concepts"] == ["class 00", "class 03"]
    assert len(study.table("judges").rows) == 2
    assert (study.path("report") / "report.html").is_file()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"judge_epochs": 0}, "judge-epochs=0 must be at least 1"),
        ({"judge_side": 4}, "judge-side=4 must be at least 8"),
        ({"judge_minibatch": 1}, "judge-minibatch=1 must be at least 2"),
        ({"judge_patience": -1}, "judge-patience=-1 must be at least 0"),
        ({"judge_rate": 0.0}, r"judge-rate=0\.0 must be above 0"),
    ],
)
def test_settings_out_of_range_are_told_before_anything_is_read(tmp_path, changed, said):
    with pytest.raises(ConfigError, match=said):
        make_judges(settings_for(tmp_path, **changed))
    assert list(tmp_path.iterdir()) == []
