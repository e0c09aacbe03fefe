"""Shortcuts as a stage: table and page, alike on any batch; what is wrong is told first."""

import re
import shutil
from dataclasses import replace

import pytest

from vqcortex.errors import ConfigError, ModelError, StudyError
from vqcortex.pipelines.settings import ShortcutsSettings
from vqcortex.pipelines.shortcuts import told
from vqcortex.pipelines.study import Study
from vqcortex.report.shortcuts import shortcuts


@pytest.fixture
def study(toy_study, tmp_path):
    """A copy of the toy's study, to write into."""
    shutil.copytree(toy_study.folder, tmp_path / "study", ignore=shutil.ignore_patterns(".lock"))
    return Study(tmp_path / "study")


def test_a_study_is_examined_on_any_batch_alike(study):
    settings = ShortcutsSettings(out=study.folder, suspects=2, shortcut_images=6)
    page = shortcuts(settings)
    rows = study.table("shortcuts").rows
    assert len(rows) > 10
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(row["trust"] for row in rows)
    assert f"of {len(rows)} codes examined are shortcuts" in next(told(settings))
    text = page.read_text()
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)
    assert text.count("<img") >= 8
    assert f"{rows[0]['concept']}, code {rows[0]['code']}: {rows[0]['verdict']}" in text
    shutil.rmtree(page.parent)
    shortcuts(replace(settings, batch=3))
    for one, other in zip(rows, study.table("shortcuts").rows, strict=True):
        numbers = {name for name, value in one.items() if isinstance(value, float)}
        assert {name: one[name] for name in numbers} == pytest.approx({name: other[name] for name in numbers}, abs=1e-4)
        words = ("concept", "code", "verdict", "row", "column")
        assert [one[name] for name in words] == [other[name] for name in words]


def test_what_is_wrong_is_told(toy_study, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)suspects=0 must.*shortcut-images=1 must.*shortcut-alpha=1.0"):
        shortcuts(ShortcutsSettings(suspects=0, shortcut_images=1, shortcut_alpha=1.0))
    with pytest.raises(StudyError, match="no finished stage"):
        shortcuts(ShortcutsSettings(out=tmp_path / "new"))
    with pytest.raises(ConfigError, match="judge 'cnn' does not know"):
        shortcuts(ShortcutsSettings(out=toy_study.folder, judges="zoo:fashion"))
    with pytest.raises(ModelError, match="no judges lie with '/nowhere'"):
        shortcuts(ShortcutsSettings(out=toy_study.folder, judges="/nowhere"))
