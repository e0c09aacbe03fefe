"""The serial engine: in order, and no further than asked."""

from vqcortex.engine.protocol import Serial


def test_results_come_in_order():
    assert list(Serial().map(lambda x: x * x, [3, 1, 2])) == [9, 1, 4]


def test_nothing_is_done_before_it_is_asked_for():
    done = []
    found = Serial().map(done.append, iter([1, 2, 3]))
    next(found)
    assert done == [1]
