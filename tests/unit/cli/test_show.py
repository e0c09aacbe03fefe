"""Bars and tables."""

from vqcortex.cli.show import Bars, print_table


def test_bars_pass_items_through_and_write_to_standard_error(capsys):
    assert list(Bars().track([1, 2], "counting", 2)) == [1, 2]
    found = capsys.readouterr()
    assert found.out == ""


def test_a_table_has_heads_and_cells(capsys):
    print_table(("name", "k"), [("toy", 8)])
    assert "toy" in capsys.readouterr().out
