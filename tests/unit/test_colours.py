"""The eight colours of the toy world."""

from vqcortex.colours import COLOURS, colour_table


def test_a_colour_is_the_binary_digits_of_its_number():
    table = colour_table()
    assert table.shape == (8, 3)
    assert table[COLOURS.index("red")].tolist() == [1, 0, 0]
    assert table[COLOURS.index("cyan")].tolist() == [0, 1, 1]
    assert len(set(COLOURS)) == 8
