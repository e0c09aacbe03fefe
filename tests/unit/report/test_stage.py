"""The page as a stage of a study."""

import re
import shutil

import pytest

from vqcortex.errors import StudyError
from vqcortex.pipelines.settings import ReportSettings
from vqcortex.report.stage import report


def test_the_page_stands_alone_and_is_small(toy_study):
    page = (toy_study.path("report") / "report.html").read_text()
    assert len(page) < 15_000_000
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)


def test_the_page_is_the_same_when_made_again(toy_study, tmp_path):
    shutil.copytree(toy_study.folder, tmp_path / "s")
    before = (tmp_path / "s" / "report" / "report.html").read_bytes()
    shutil.rmtree(tmp_path / "s" / "report")
    assert report(ReportSettings(out=tmp_path / "s", examples=2)).read_bytes() == before


def test_a_page_needs_its_evidence(toy_study, tmp_path):
    shutil.copytree(toy_study.folder, tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "evaluate")
    with pytest.raises(StudyError, match="no finished stage 'evaluate'; run 'vqcortex evaluate"):
        report(ReportSettings(out=tmp_path / "s"))
