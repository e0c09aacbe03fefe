"""The sanity stage, on the toy world."""

import shutil

import pytest
import torch
from engines import Pickling

from vqcortex.errors import ConfigError, UnknownName
from vqcortex.evaluation.sanity import CHECKS
from vqcortex.extractors.train import TrainData
from vqcortex.pipelines.run import narrowed
from vqcortex.pipelines.sanity import MOST, load_findings, permuted_data, sanity, told
from vqcortex.pipelines.settings import SanitySettings
from vqcortex.pipelines.study import Study
from vqcortex.pipelines.tokens import make_tokens


@pytest.fixture
def copied(toy_study, tmp_path):
    shutil.copytree(toy_study.folder, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def settings(toy_settings, copied):
    return lambda **changed: narrowed(toy_settings(copied, **changed), "SanitySettings")


def test_every_check_has_a_row_and_the_explanation_passes_the_exact_one(toy_study):
    rows = {row["check"]: row for row in toy_study.table("sanity").rows}
    assert set(rows) == set(CHECKS)
    assert rows["renumbered_codes"]["verdict"] == "pass"
    assert rows["renumbered_codes"]["value"] == 0.0
    assert {row["images"] for row in rows.values()} == {16}
    assert all(row["verdict"] in ("pass", "fail") for row in rows.values())


def test_the_curve_reaches_the_embedding_both_ways(toy_study):
    rows = toy_study.table("sanity_cascade").rows
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("cascading", 1), ("cascading", 2), ("independent", 1), ("independent", 2),
    ]  # fmt: skip
    # The default is an ensemble: all of it is randomised together, the logits of each first.
    assert {layer.partition(".")[0] for layer in rows[0]["layers"]} == {"conv8", "pictures"}
    assert "pictures.head" in rows[0]["layers"]


def test_a_method_of_one_extractor_randomises_that_one_alone(settings, copied):
    sanity(settings(method="gradient_x_embedding", permuted_epochs=0))
    rows = Study(copied).table("sanity_cascade").rows
    assert all(layer.startswith("conv8.") for row in rows for layer in row["layers"])
    assert one_of(Study(copied).table("sanity").rows, "renumbered_codes")["value"] == 0.0


def test_neither_engine_nor_batch_size_has_a_say(toy_study, settings, copied, hashes):
    shutil.rmtree(copied / "sanity")
    engine = Pickling()
    sanity(settings(method="tis@pictures", permuted_epochs=0), engine=engine)
    whole = Study(copied).table("sanity").rows
    assert set(engine.names) == {"_codes_of_shard", "_check"}
    shutil.rmtree(copied / "sanity")
    sanity(settings(method="tis@pictures", permuted_epochs=0, batch=5))
    for one, two in zip(whole, Study(copied).table("sanity").rows, strict=True):
        assert one == pytest.approx(two, abs=1e-6)
    assert one_of(whole, "permuted_labels")["verdict"] == "skipped"


def one_of(rows, check):
    return next(row for row in rows if row["check"] == check)


def test_findings_belong_to_a_method_and_to_tokens(toy_study, settings, copied, toy_settings):
    method = SanitySettings().method
    assert [one.check for one in load_findings(toy_study, method)] == sorted(CHECKS)
    assert load_findings(toy_study, "tis") is None
    make_tokens(narrowed(toy_settings(copied, per_concept=40), "TokensSettings"))
    assert load_findings(Study(copied), method) is None
    shutil.rmtree(copied / "sanity")
    assert load_findings(Study(copied), method) is None


def test_closing_lines_say_verdict_number_and_limit(toy_study, toy_settings):
    lines = told(narrowed(toy_settings(toy_study.folder), "SanitySettings"))
    assert len(lines) == 5
    assert "pass: renumbered_codes, share of images whose map changed 0, at most 0 allowed" in lines


def test_an_unknown_method_is_told_before_anything_is_done(settings, copied, hashes):
    before = hashes(copied)
    with pytest.raises(UnknownName, match="no attribution method named 'tiss'"):
        sanity(settings(method="tiss"))
    with pytest.raises(UnknownName, match="asks extractor 'se_resnet', which this study does not have"):
        sanity(settings(method="tis@se_resnet"))
    assert hashes(copied) == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sanity_images": 7}, "sanity-images=7 must be at least 8"),
        ({"sanity_draws": 0}, "sanity-draws=0 must be at least 1"),
        ({"sanity_steps": 0}, "sanity-steps=0 must be at least 1"),
        ({"permuted_epochs": -1}, "permuted-epochs=-1 must be at least 0"),
        ({"independent_limit": 1.5}, r"independent-limit=1\.5 must lie in 0 to 1"),
        ({"different_limit": float("nan")}, "different-limit=nan must lie in -1 to 1"),
    ],
)
def test_settings_out_of_range_are_told(tmp_path, changed, said):
    with pytest.raises(ConfigError, match=said):
        sanity(SanitySettings(out=tmp_path, **changed))
    assert list(tmp_path.iterdir()) == []


def test_permuted_labels_are_the_same_labels_at_other_images():
    count = MOST + 500
    tokens = torch.arange(count).view(-1, 1, 1)
    data = TrainData(
        tokens=tokens, labels=torch.arange(count) % 4, validation_tokens=tokens[:80],
        validation_labels=torch.arange(80) % 4,
    )  # fmt: skip
    found, again = permuted_data(data, 1), permuted_data(data, 1)
    assert len(found.tokens) == len(found.tokens.unique()) == MOST
    truth = found.tokens[:, 0, 0] % 4
    assert 0.2 < float((found.labels == truth).float().mean()) < 0.3
    assert torch.equal(found.labels.bincount(), truth.bincount())
    assert torch.equal(found.validation_labels.bincount(), torch.tensor([20] * 4))
    assert torch.equal(found.labels, again.labels)
    assert not torch.equal(found.labels, permuted_data(data, 2).labels)
