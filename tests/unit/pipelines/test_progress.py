"""Progress that shows nothing still passes everything through."""

from vqcortex.pipelines.progress import Quiet


def test_quiet_passes_items_and_takes_ticks():
    assert list(Quiet().track([1, 2], "t", 2)) == [1, 2]
    with Quiet().bar("t", 1) as advance:
        advance()
