"""The trust stage, on the toy world."""

import shutil

import pytest

from vqcortex.adapters.protocol import ENCODE, GENERATE
from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, ModelError
from vqcortex.judges import load_judges
from vqcortex.judges.quality import Quality
from vqcortex.pipelines import trust as trusting
from vqcortex.pipelines.run import narrowed
from vqcortex.pipelines.settings import TrustSettings
from vqcortex.pipelines.stamps import trust_of
from vqcortex.pipelines.trust import trust


@pytest.fixture
def copied(toy_study, tmp_path):
    shutil.copytree(toy_study.folder, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def settings(toy_settings, copied):
    return lambda **changed: narrowed(toy_settings(copied, **changed), "TrustSettings")


def subjects(study, concept="all"):
    return {(row["subject"], row["against"]): row for row in study.table("trust_reasons").where(concept=concept)}


def test_everything_that_was_asked_has_a_reason(toy_study):
    found = subjects(toy_study)
    assert set(found) == {
        ("accuracy", ""), ("calibration", ""), ("judge", "soft"), ("judge", "hard"), ("extractor", "pictures"),
        ("maps", "conv8 and pictures"), ("sanity", "permuted_labels"), ("sanity", "randomised_weights"),
        ("sanity", "renumbered_codes"), ("sanity", "shuffled_codes"), ("sanity", "swapped_concept"),
    }  # fmt: skip
    assert found["accuracy", ""]["images"] == 48
    assert found["maps", "conv8 and pictures"]["images"] == 16
    assert {name for name, _ in subjects(toy_study, "red")} >= {"accuracy", "judge", "extractor"}


def test_the_verdict_is_a_value_in_python(toy_study):
    found = toy_study.trust
    assert found.level in ("high", "moderate", "low")
    # What the stage weighed, and what editing the concepts' tokens came to, which is known only later.
    assert len(trust_of(toy_study, edited=False).reasons) == 11
    assert len(found.reasons) == 12
    assert set(found.concepts) == set(ToyAdapter().concepts)
    assert found.of("red").reasons
    assert toy_study.table("trust").where(concept="all")[0]["trust"] == found.level


def test_a_study_that_is_whole_is_not_weighed_again(settings, toy_study, copied, hashes):
    before = hashes(copied)
    assert trust(settings()) == trust_of(toy_study, edited=False)
    assert hashes(copied) == before


def test_a_model_without_pictures_has_no_judges_to_ask(settings, monkeypatch):
    monkeypatch.setattr(ToyAdapter, "abilities", property(lambda _: frozenset({ENCODE, GENERATE})))
    found = trust(settings(judges="toy"))
    assert "not known: whether judges agree with the extractor: model 'toy' cannot decode" in " ".join(found.reasons)


def test_judges_that_are_not_there_are_told_if_they_were_named(settings):
    with pytest.raises(ModelError, match="no judges lie with '/no/judges'"):
        trust(settings(judges="/no/judges"))


def test_judges_that_do_not_exist_yet_are_not_known(settings, monkeypatch):
    monkeypatch.setattr("vqcortex.pipelines.judges.has_judges", lambda _: False)
    assert any("no judges lie with 'toy' and none were trained" in one for one in trust(settings()).reasons)


def test_the_word_of_a_weak_judge_does_not_count(settings, copied, monkeypatch):
    real = load_judges

    def weak(*given):
        judges = real(*given)
        judges[0].name, judges[0].quality = "soft (too weak)", Quality(right=1, images=9, chance=0.1, ece=0.1)
        return judges

    monkeypatch.setattr(trusting, "load_judges", weak)
    found = trust(settings(trust_images=47))
    text = " ".join(found.reasons)
    assert "judge hard names" in text
    assert "judge soft" not in text


def test_a_method_that_cannot_explain_a_companion_says_nothing_of_it(settings, monkeypatch):
    real = trusting.score_methods

    def score(plan, *rest):
        if any(one.extractor == "pictures" for one in plan.asked.values()):
            raise ModelError("no attention")
        return real(plan, *rest)

    monkeypatch.setattr(trusting, "score_methods", score)
    text = " ".join(trust(settings(trust_maps=15)).reasons)
    assert "extractor pictures names" in text
    assert "maps of" not in text


@pytest.mark.parametrize("name", ["trust_images", "trust_maps"])
def test_settings_out_of_range_are_told(tmp_path, name):
    with pytest.raises(ConfigError, match=f"{name.replace('_', '-')}=0 must be at least 1"):
        trust(TrustSettings(out=tmp_path, **{name: 0}))
