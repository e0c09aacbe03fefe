"""The audit as a stage: its page and tables, made once; what is wrong is told before anything is computed."""

import re
from dataclasses import replace

import pytest
import torch
from auditing import MarkedToy, marked
from PIL import Image
from safetensors import safe_open

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, DataError, ModelError, StoreError
from vqcortex.pipelines.repair import load_steering
from vqcortex.pipelines.settings import AuditSettings
from vqcortex.pipelines.study import Study
from vqcortex.report import audit as stage
from vqcortex.results import load_table

SMALL = {"width": 8, "depth": 2, "minibatch": 32, "rate": 1e-2, "keep": 2, "top": 4, "interval_resamples": 100}


def settings_of(out, pictures, **changed):
    groups = tuple(f"{name}=imagefolder:{pictures / name}" for name in ("with", "without"))
    same = {"model": "toy", "groups": groups, "neutral": "concept:red", "neutral_images": 300, **SMALL}
    return AuditSettings(out=out, **{**same, **changed})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures with and without the mark, all of one concept."""
    root, toy = tmp_path_factory.mktemp("groups"), ToyAdapter()
    for name, rate in (("with", 1.0), ("without", 0.0)):
        (root / name / "red").mkdir(parents=True)
        arrays = (toy.decode(toy.embed(marked(rate, name, 80).tokens.long())) * 255).byte().permute(0, 2, 3, 1)
        for number, array in enumerate(arrays.numpy()):
            Image.fromarray(array).save(root / name / "red" / f"{number:03d}.png")
    return root


@pytest.fixture
def biased(monkeypatch):
    """The model that every name opens: a generator whose bias is known."""
    monkeypatch.setattr(stage, "load_model", lambda *_: MarkedToy(rate=0.85))


@pytest.fixture(scope="module")
def audited(pictures, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "load_model", lambda *_: MarkedToy(rate=0.85))
        out = tmp_path_factory.mktemp("audit") / "study"
        settings = settings_of(out, pictures, repair="reweight", judges="toy", published_effect=True)
        return settings, stage.audit(settings)


def test_the_page_needs_nothing_else_and_says_the_verdict(audited):
    _, page = audited
    text = page.read_text()
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)
    assert "The generator is biased: " in text
    assert text.count("<img") > 16
    assert "Share of &#39;with&#39; among neutral images: before 0.8" in text
    for name in ("audit_groups", "audit_lists", "audit_tokens", "audit_verdict", "audit_repair"):
        assert load_table(page.parent / f"{name}.json").rows
        assert f"<code>{name}</code>" in text


def test_the_last_line_says_what_the_repair_reached_and_cost(audited):
    settings, page = audited
    line = list(stage.told(settings))[-1]
    rows = load_table(page.parent / "audit_repair.json").where(when="after")
    assert line.startswith(
        f"Repaired by {settings.repair}, strength {rows[0]['strength']:.2f}: {rows[0]['rate']:.0%} ["
    )
    assert all(f"{row['judge']} recognises " in line for row in rows)
    assert f"of newly drawn images are {rows[0]['group']!r}, {rows[0]['verdict']}; " in line


def test_the_repair_is_written_so_that_it_can_be_used(audited):
    settings, page = audited
    path = page.parent / "repair.safetensors"
    with safe_open(path, "pt") as held:
        about = held.metadata()
    assert about["identity"] == MarkedToy(rate=0.85).identity
    assert about["mode"] == settings.repair
    steering = load_steering(path)
    bias = steering.bias(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 0)[0]
    assert bias[6] - bias[7] > 0.6
    assert MarkedToy(rate=0.85).with_steering(steering).identity != about["identity"]


def test_a_finished_audit_is_not_made_again_and_a_changed_one_is(audited, biased, monkeypatch):
    settings, page = audited
    before = page.stat().st_mtime_ns
    stage.audit(settings)
    assert page.stat().st_mtime_ns == before
    record = Study(settings.out).record("audit")
    monkeypatch.setattr(stage, "_work", lambda folder, *_: (folder / "again").write_text(""))
    stage.audit(replace(settings, neutral_images=301))
    assert Study(settings.out).record("audit")["key"] != record["key"]


def test_closing_lines_tell_the_verdict_and_what_to_know(pictures, tmp_path, biased):
    settings = settings_of(tmp_path / "thin", pictures, neutral_images=40)
    stage.audit(settings)
    lines = list(stage.told(settings))
    assert "'with'" in lines[0]
    assert any(line.startswith("note: only 40 neutral images") for line in lines)
    assert "No repair was asked for" in (tmp_path / "thin/audit/audit.html").read_text()


def test_nothing_to_mend_is_said(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "load_model", lambda *_: MarkedToy(rate=0.5))
    page = stage.audit(settings_of(tmp_path / "even", pictures, repair="suppress", judges="toy"))
    assert "No bias was found, so nothing was repaired." in page.read_text()
    assert not (page.parent / "audit_repair.json").exists()


@pytest.mark.parametrize(
    ("changed", "error", "why"),
    [
        ({"groups": ("a=concept:red",)}, ConfigError, r"1 group\(s\) given; an audit compares at least 2"),
        ({"neutral": ""}, ConfigError, "neutral is empty"),
        ({"neutral": "concept:mauve"}, ConfigError, "model 'toy' has no concept 'mauve'"),
        ({"repair": "pray"}, ConfigError, "repair='pray' must be one of none, reweight, everywhere, suppress"),
        ({"repair": "suppress", "neutral": "imagefolder:x"}, ConfigError, "so neutral must be concept:NAME"),
        ({"repair": "suppress", "neutral": "concept:red,blue", "judges": "toy"}, ConfigError, "draws 2 concepts"),
        ({"repair": "suppress", "judges": "zoo:fashion"}, ConfigError, "judge 'cnn' does not know 'red'"),
        ({"repair": "suppress", "judges": "toy"}, ModelError, "model 'toy' takes no bias"),
        ({"repair": "suppress", "judges": "/nowhere"}, ModelError, "no judges lie with '/nowhere'"),
        ({"reference": (0.2, 0.3, 0.5)}, ConfigError, r"3 reference share\(s\) given for 2 groups; give one for each"),
        ({"tolerance": 1.0, "audit_alpha": 0.0}, ConfigError, r"(?s)tolerance=1.0 must lie.*audit-alpha=0.0"),
    ],
)
def test_what_is_wrong_is_told(changed, error, why, pictures, tmp_path):
    with pytest.raises(error, match=why):
        stage.audit(settings_of(tmp_path / "study", pictures, **changed))


def test_groups_of_another_model_and_empty_ones_are_refused(pictures, tmp_path, toy_study, biased):
    with pytest.raises(StoreError, match="was written with 'toy'"):
        stage.audit(settings_of(tmp_path / "one", pictures, groups=(f"a={toy_study.folder}", "b=concept:red")))
    (tmp_path / "empty" / "red").mkdir(parents=True)
    with pytest.raises(DataError, match="empty"):
        stage.audit(
            settings_of(tmp_path / "two", pictures, groups=(f"a=imagefolder:{tmp_path / 'empty'}", "b=concept:red"))
        )
