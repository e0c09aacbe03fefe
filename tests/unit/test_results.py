"""Tables that say what their columns mean."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from vqcortex.results import Column, Table, Traversal, Trust, load_table, save_table, stamped

COLUMNS = {
    "arm": Column(unit="name", meaning="Who chose."),
    "value": Column(unit="logits", meaning="Drop.", better="higher"),
}


def table() -> Table:
    return Table("drops", COLUMNS, [{"arm": "tis", "value": 0.5}, {"arm": "random", "value": None}])


def test_a_table_comes_back_as_it_was_saved(tmp_path):
    save_table(table(), tmp_path)
    assert load_table(tmp_path / "drops.json") == table()


def test_columns_keep_their_order(tmp_path):
    turned = {name: COLUMNS[name] for name in ("value", "arm")}
    save_table(Table("drops", turned, []), tmp_path)
    assert list(load_table(tmp_path / "drops.json").columns) == ["value", "arm"]


def test_units_and_direction_travel_in_the_parquet_file(tmp_path):
    save_table(table(), tmp_path)
    arrow = pq.read_table(tmp_path / "drops.parquet")
    assert json.loads(arrow.schema.metadata[b"vqcortex"])["value"]["better"] == "higher"
    assert arrow.to_pylist() == table().rows


def test_rows_must_have_every_column():
    with pytest.raises(ValueError, match=r"row 0 of table 'drops' has \['arm'\]"):
        Table("drops", COLUMNS, [{"arm": "tis"}])


def test_where_keeps_matching_rows():
    assert table().where(arm="tis") == [{"arm": "tis", "value": 0.5}]


def test_relevance_of_a_code_is_its_mean_effect_over_positions():
    effect = torch.arange(8.0).view(2, 2, 2)
    none = torch.empty(0)
    found = Traversal(
        concept=0, effect=effect, images=1, cells=torch.empty(0, 3, dtype=torch.int64),
        estimated=none, measured=none, measured_error=none,
    )  # fmt: skip
    assert found.code_relevance.tolist() == [1.5, 5.5]


def test_trust_of_a_concept_is_its_own_and_unknown_where_nothing_is_known():
    trust = Trust(level="high", concepts={"cat": Trust(level="low", reasons=("bad: x",))})
    assert trust.of("cat").level == "low"
    assert trust.of("dog") == Trust()
    assert Trust(reasons=("not known: never measured",)).of("cat").reasons == ("not known: never measured",)


def test_a_stamped_table_has_one_more_column():
    table = Table("t", {"concept": Column(unit="name", meaning="x")}, [{"concept": "cat"}, {"concept": "dog"}])
    found = stamped(table, Trust(level="high", concepts={"cat": Trust(level="low")}))
    assert [row["trust"] for row in found.rows] == ["low", "unknown"]
    assert list(found.columns) == ["concept", "trust"]
