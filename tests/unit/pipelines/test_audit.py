"""What an audit measures, on a toy whose bias is known."""

from dataclasses import replace

import pytest
import torch
from auditing import MARK, PLAIN, MarkedToy, marked

from vqcortex.errors import ConfigError, DataError
from vqcortex.pipelines.audit import audit_neutral, audit_tables, learn_groups, overlays
from vqcortex.pipelines.groups import Grids
from vqcortex.pipelines.settings import AuditSettings

MODEL = MarkedToy()
SETTINGS = AuditSettings(
    groups=("with=a", "without=b"), neutral="concept:red", width=8, depth=2, epochs=8, minibatch=32, rate=1e-2, keep=2,
    top=4, interval_resamples=100,
)  # fmt: skip
GROUPS = {"with": marked(1.0, "with", 300), "without": marked(0.0, "without", 300)}


@pytest.fixture(scope="module")
def learned():
    return learn_groups(GROUPS, MODEL, SETTINGS)


def first(images):
    one = GROUPS["with"]
    return Grids(tokens=one.tokens[:images], image_ids=one.image_ids[:images])


def named(found):
    return {one.name: one for one in audit_tables(found, SETTINGS)}


def test_a_biased_set_is_told_with_its_rate_its_codes_and_their_excess(learned):
    neutral = marked(0.8, "neutral", 400)
    found = audit_neutral(learned, neutral, SETTINGS)
    truth = float((neutral.tokens[:, 0, 0] == MARK).double().mean())
    assert found.word == "biased"
    assert found.rates.rate[0].item() == pytest.approx(truth, abs=0.02)
    tables = named(found)
    best = tables["audit_tokens"].where(group="with", rank=1)[0]
    assert best["code"] == MARK
    assert best["excess_low"] > 0.2
    assert tables["audit_tokens"].where(group="without", rank=1)[0]["code"] == PLAIN
    assert "'with'" in tables["audit_verdict"].where(kind="verdict")[0]["text"]
    row = tables["audit_lists"].rows[0]
    assert row["delta"] > row["expected"] + 0.2
    assert row["paired_p"] < 0.01
    assert "published_half_delta" not in row


def test_an_even_set_is_not_called_biased(learned):
    found = audit_neutral(learned, marked(0.5, "even", 2000), SETTINGS)
    assert found.word in ("even", "undecided")
    assert (found.carriers.excess_q > 0.01).all()


def test_the_reference_says_what_is_even(learned):
    uneven = replace(learned, reference=torch.tensor([0.8, 0.2], dtype=torch.float64))
    assert audit_neutral(uneven, marked(0.8, "neutral", 400), SETTINGS).word != "biased"
    assert audit_neutral(uneven, marked(0.5, "even", 400), SETTINGS).word == "biased"


def test_the_published_effect_is_half_and_only_on_demand(learned):
    found = audit_neutral(learned, marked(0.8, "neutral", 100), SETTINGS)
    row = audit_tables(found, replace(SETTINGS, published_effect=True))[1].rows[0]
    assert row["published_half_delta"] == row["delta"] / 2


def test_overlays_outline_the_codes_that_decide(learned):
    found = audit_neutral(learned, marked(0.8, "neutral", 100), SETTINGS)
    shown = overlays(found, MODEL, 0.05)
    assert [one.title for one in shown] == [
        "Known images: with", "Neutral images called with", "Known images: without", "Neutral images called without",
    ]  # fmt: skip
    assert shown[0].cells[:, 0, 0].all()
    assert shown[0].pictures.shape == (8, 16, 16, 3)


def test_batches_change_no_figure(learned):
    neutral = marked(0.8, "neutral", 50)
    one, other = (audit_neutral(learned, neutral, replace(SETTINGS, batch=batch)) for batch in (50, 7))
    assert torch.equal(one.called, other.called)
    for name in ("rate", "low", "high", "answered"):
        assert torch.equal(getattr(one.rates, name), getattr(other.rates, name))


def test_thin_sets_are_warned_of(learned):
    assert any("only 10 neutral images" in one for one in audit_neutral(learned, marked(0.8, "x", 10), SETTINGS).notes)


@pytest.mark.parametrize(
    ("groups", "error", "why"),
    [
        ({"with": GROUPS["with"]}, ConfigError, r"1 attribute group\(s\) given"),
        ({**GROUPS, "none": first(0)}, DataError, r"group 'none' has 0 image\(s\)"),
        ({**GROUPS, "one": first(1)}, DataError, r"group 'one' has 1 image\(s\)"),
        ({**GROUPS, "few": first(9)}, DataError, "group 'few' has 9 images; at least 10"),
    ],
)
def test_groups_too_few_or_too_small_are_refused(groups, error, why):
    with pytest.raises(error, match=why):
        learn_groups(groups, MODEL, SETTINGS)


def test_a_perfect_confounder_is_refused_before_anything_is_trained():
    labelled = {
        name: Grids(tokens=one.tokens, image_ids=one.image_ids, labels=(f"only {name}",) * len(one))
        for name, one in GROUPS.items()
    }
    with pytest.raises(DataError, match="perfectly confounded"):
        learn_groups(labelled, MODEL, SETTINGS)


def test_groups_that_are_alike_give_no_rate():
    alike = {"a": marked(0.5, "a", 300), "b": marked(0.5, "b", 300)}
    learned = learn_groups(alike, MODEL, replace(SETTINGS, epochs=3, rate=1e-4))
    with pytest.raises(DataError, match="cannot tell the groups apart"):
        audit_neutral(learned, marked(0.5, "even", 50), SETTINGS)


def test_no_neutral_image_is_refused(learned):
    with pytest.raises(DataError, match=r"group 'neutral' has 0 image\(s\)"):
        audit_neutral(learned, first(0), SETTINGS)
