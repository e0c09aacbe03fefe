"""A repair brings the toy back to even rates, and its price is told."""

from dataclasses import replace

import pytest
import torch
from auditing import MARK, MarkedToy, marked

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, ModelError
from vqcortex.judges import load_judges
from vqcortex.pipelines.audit import audit_neutral, learn_groups
from vqcortex.pipelines.groups import Grids
from vqcortex.pipelines.repair import excessive_codes, full_bias, repair_generator, repair_table
from vqcortex.pipelines.settings import AuditSettings

BIASED = MarkedToy(rate=0.85)
SETTINGS = AuditSettings(
    groups=("with=a", "without=b"), neutral="concept:red", width=8, depth=2, epochs=8, minibatch=32, rate=1e-2, keep=2,
    top=4, repair="reweight",
)  # fmt: skip


def draw(model, what, images=400):
    ids = tuple(f"{what}/{number}" for number in range(images))
    return Grids(tokens=model.generate(torch.zeros(images, dtype=torch.int64), ids, 0).int(), image_ids=ids)


@pytest.fixture(scope="module")
def found():
    groups = {"with": marked(1.0, "with", 300), "without": marked(0.0, "without", 300)}
    return audit_neutral(learn_groups(groups, BIASED, SETTINGS), draw(BIASED, "neutral"), SETTINGS)


@pytest.mark.parametrize("mode", ["reweight", "everywhere"])
def test_reweighting_makes_it_even(found, mode):
    repaired = repair_generator(found, BIASED, draw, replace(SETTINGS, repair=mode))
    assert found.rates.rate[0].item() == pytest.approx(0.85, abs=0.05)
    assert repaired.after.rates.rate[0].item() == pytest.approx(0.5, abs=0.07)
    assert repaired.tries[0].strength == 0
    assert 0.8 < repaired.strength < 1.2


def test_what_is_decided_is_not_pushed_any_more(found):
    # The first position tells the group, so that none after it needs a push.
    assert full_bias(found, BIASED, everywhere=False)[:, 0, 0].abs().max() > 0.5
    assert full_bias(found, BIASED, everywhere=False)[:, 1:].abs().max() < 0.01
    assert full_bias(found, BIASED, everywhere=True)[:, 1:].abs().max() > 0.01


def test_suppressing_forbids_the_code_that_carries_it(found):
    repaired = repair_generator(found, BIASED, draw, replace(SETTINGS, repair="suppress"))
    assert excessive_codes(found, 0, SETTINGS)[0] == MARK
    assert repaired.bias[MARK].isneginf().all()
    assert repaired.after.rates.rate[0].item() < 0.05


def test_the_price_is_told_by_every_judge_before_and_after(found):
    repaired = repair_generator(found, BIASED, draw, SETTINGS)
    table = repair_table(repaired, BIASED, load_judges("toy"), "red", SETTINGS)
    assert [(row["when"], row["judge"]) for row in table.rows] == [
        ("before", "soft"), ("before", "hard"), ("after", "soft"), ("after", "hard"),
    ]  # fmt: skip
    before, after = table.rows[0], table.rows[2]
    assert (before["strength"], after["strength"]) == (0.0, repaired.strength)
    assert after["frechet"] < before["frechet"]
    assert after["recognised"] == pytest.approx(before["recognised"], abs=0.05)


def test_a_judge_without_the_concept_is_named(found):
    repaired = repair_generator(found, BIASED, draw, replace(SETTINGS, repair_tries=1))
    with pytest.raises(ConfigError, match="judge 'soft' does not know 'mauve'; it knows: "):
        repair_table(repaired, BIASED, load_judges("toy"), "red", SETTINGS, "mauve")
    with pytest.raises(ModelError, match="no judge says what the repair cost"):
        repair_table(repaired, BIASED, (), "red", SETTINGS)


def test_a_model_that_takes_no_bias_is_refused(found):
    with pytest.raises(ModelError, match="model 'toy' takes no bias"):
        repair_generator(found, ToyAdapter(), draw, SETTINGS)


def test_nothing_in_excess_is_nothing_to_suppress(found):
    even = audit_neutral(found.learned, marked(0.5, "even", 300), SETTINGS)
    with pytest.raises(ConfigError, match="nothing to suppress"):
        excessive_codes(even, 0, SETTINGS)
