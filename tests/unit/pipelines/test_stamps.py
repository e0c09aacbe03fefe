"""Stamps of trust: in tables, closing lines and the page; and the refusal."""

import shutil
from dataclasses import replace

import pytest

from vqcortex.errors import TrustError
from vqcortex.pipelines.concepts import pool_concepts
from vqcortex.pipelines.interactions import interactions
from vqcortex.pipelines.run import narrowed
from vqcortex.pipelines.sanity import sanity
from vqcortex.pipelines.score import score
from vqcortex.pipelines.search import search
from vqcortex.pipelines.settings import RunSettings
from vqcortex.pipelines.stamps import check_trust, told, trust_of
from vqcortex.pipelines.study import Study
from vqcortex.pipelines.traverse import traverse
from vqcortex.pipelines.trust import trust
from vqcortex.report.stage import report

EXPLAINING = {
    "ScoreSettings": score,
    "ConceptsSettings": pool_concepts,
    "InteractionsSettings": interactions,
    "TraverseSettings": traverse,
    "SearchSettings": search,
}


@pytest.fixture
def copied(toy_study, tmp_path):
    shutil.copytree(toy_study.folder, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def distrusted(toy_study, toy_settings, tmp_path_factory):
    """A study whose method fails: the limit of one check is out of reach."""
    folder = tmp_path_factory.mktemp("low") / "study"
    shutil.copytree(toy_study.folder, folder)
    settings = toy_settings(folder, independent_limit=0.0)
    for name, stage in (("SanitySettings", sanity), ("TrustSettings", trust), ("ConceptsSettings", pool_concepts)):
        stage(narrowed(settings, name))
    return Study(folder)


def test_concept_tables_carry_the_level_of_their_concept(toy_study, distrusted):
    for name in ("concept_tokens", "two_scale", "traversal_cells", "interactions", "interaction_groups"):
        table = toy_study.table(name)
        assert list(table.columns)[-1] == "trust"
        assert all(row["trust"] == toy_study.trust.of(row["concept"]).level for row in table.rows)
    assert {row["trust"] for row in distrusted.table("concept_tokens").rows} == {"low"}


def test_trust_that_was_never_measured_is_unknown_and_so_stamped(copied, toy_settings):
    shutil.rmtree(copied / "trust")
    study = Study(copied)
    assert study.trust.level == study.trust.of("red").level == "unknown"
    assert "the command 'vqcortex trust' does" in study.trust.reasons[0]
    pool_concepts(narrowed(toy_settings(copied), "ConceptsSettings"))
    assert {row["trust"] for row in study.table("concept_tokens").rows} == {"unknown"}


def test_trust_in_what_was_changed_since_is_unknown(copied, toy_study, toy_settings):
    study = Study(copied)
    assert trust_of(study) == toy_study.trust
    assert f"of {RunSettings().method}, and tis explains" in trust_of(study, "tis").reasons[0]
    score(narrowed(toy_settings(copied, method="tis"), "ScoreSettings"))
    assert trust_of(study).level == "unknown"
    sanity(narrowed(toy_settings(copied, sanity_draws=2), "SanitySettings"))
    assert "tokens, extractors or sanity are others since" in trust_of(study).reasons[0]


@pytest.mark.parametrize("name", EXPLAINING)
def test_what_explains_refuses_where_trust_is_required_and_low(distrusted, toy_settings, name, hashes):
    before = hashes(distrusted.folder)
    settings = narrowed(toy_settings(distrusted.folder, require_trust=True), name)
    with pytest.raises(TrustError, match=r"is low, but it is required:\n  - bad: sanity check ") as told:
        EXPLAINING[name](settings)
    assert str(told.value).endswith("mend what is bad, or leave --require-trust out")
    assert told.value.exit_code == 3
    assert hashes(distrusted.folder) == before


def test_requiring_trust_changes_no_result(toy_study, toy_settings, copied, hashes):
    before = hashes(copied)
    for name, stage in EXPLAINING.items():
        stage(narrowed(toy_settings(copied, require_trust=True), name))
    assert hashes(copied) == before


def test_trust_that_is_unknown_is_no_trust(copied):
    shutil.rmtree(copied / "trust")
    check_trust(Study(copied), is_required=False)
    with pytest.raises(TrustError, match="is unknown, but it is required:\n  - not known: trust was not measured"):
        check_trust(Study(copied), is_required=True)


def test_closing_lines_say_level_reasons_and_concepts(distrusted, toy_study):
    lines = told(RunSettings(out=distrusted.folder))
    assert lines[0] == "trust: low"
    assert lines[1].startswith("  - bad: sanity check ")
    assert lines[-1] == f"  concepts of low trust: {', '.join(distrusted.trust.concepts)}"
    assert told(RunSettings(out=toy_study.folder))[0] == f"trust: {toy_study.trust.level}"
    assert told(replace(RunSettings(), out=toy_study.folder, method="tis"))[0] == "trust: unknown"


def test_the_page_shows_it_without_being_asked(distrusted, toy_study, toy_settings):
    page = report(narrowed(toy_settings(distrusted.folder), "ReportSettings")).read_text()
    assert '<div class="banner low"' in page
    assert page.count('<span class="badge low">trust: low</span>') == 8
    assert "sanity check randomised_weights" in page
    level = toy_study.trust.level
    assert f'<div class="banner {level}"' in (toy_study.path("report") / "report.html").read_text()
