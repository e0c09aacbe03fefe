"""A repair brings the toy back to even rates, and its price is told."""

from dataclasses import replace

import pytest
import torch
from auditing import MARK, PLAIN, MarkedToy, marked
from safetensors.torch import save_file

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, ModelError
from vqcortex.judges import load_judges
from vqcortex.pipelines.audit import audit_neutral, learn_groups
from vqcortex.pipelines.groups import Grids
from vqcortex.pipelines.repair import (
    excessive_codes,
    full_steering,
    load_steering,
    repair_generator,
    repair_table,
    save_steering,
)
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


def test_every_image_is_pushed_only_until_it_is_decided(found):
    steering = full_steering(found, BIASED, "reweight")(1.0)
    nothing, nowhere = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    first = steering.bias(nothing, nowhere, 0)[0]
    assert first[PLAIN] - first[MARK] > 1
    # The first position tells the group, so that no code after it is preferred to another.
    for code in (MARK, PLAIN):
        after = steering.bias(torch.tensor([[code]]), torch.tensor([0]), 1)[0]
        assert (after[:6] - after[0]).abs().max() < 0.05
    table = full_steering(found, BIASED, "everywhere")(1.0).table
    assert table[:, 1:].abs().max() > 0.01


@pytest.mark.parametrize("mode", ["reweight", "suppress"])
def test_a_repair_is_written_and_read(found, tmp_path, mode):
    repaired = repair_generator(found, BIASED, draw, replace(SETTINGS, repair=mode, repair_tries=1))
    path = tmp_path / "repair.safetensors"
    save_steering(repaired, BIASED, path)
    read = load_steering(path)
    assert read.identity == repaired.steering.identity
    again = BIASED.with_steering(read).generate(torch.zeros(20, dtype=torch.int64), [f"{i}" for i in range(20)], 0)
    wanted = BIASED.with_steering(repaired.steering).generate(
        torch.zeros(20, dtype=torch.int64), [f"{i}" for i in range(20)], 0
    )
    assert torch.equal(again, wanted)


def test_what_is_no_repair_is_refused(tmp_path):
    path = tmp_path / "repair.safetensors"
    with pytest.raises(ModelError, match="does not exist"):
        load_steering(path)
    path.write_bytes(b"{}")
    with pytest.raises(ModelError, match="cannot be read"):
        load_steering(path)
    save_file({"weights": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="is no repair: it holds weights"):
        load_steering(path)
    save_file({"table": torch.zeros(3, 4)}, path)
    with pytest.raises(ModelError, match=r"is no repair: a code bias has shape \(3, 4\)"):
        load_steering(path)
    parts = {"evidence": torch.zeros(2, 3, 4, 4), "before": torch.zeros(2), "rates": torch.ones(2)}
    save_file({**parts, "weight": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=r"is no repair: evidence \(2, 3, 4, 4\), before \(2,\)"):
        load_steering(path)


def test_suppressing_forbids_the_code_that_carries_it(found):
    repaired = repair_generator(found, BIASED, draw, replace(SETTINGS, repair="suppress"))
    assert excessive_codes(found, 0, SETTINGS)[0] == MARK
    assert repaired.steering.table[MARK].isneginf().all()
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
