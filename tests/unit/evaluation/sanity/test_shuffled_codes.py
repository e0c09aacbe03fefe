from vqcortex.evaluation.sanity.protocol import Limits
from vqcortex.evaluation.sanity.shuffled_codes import measure_shuffled_codes


def test_maps_that_are_read_off_the_codes_change(subject):
    found = measure_shuffled_codes(subject, Limits()).finding
    assert found.verdict == "pass"
    assert -1 <= found.value <= 0.5


def test_maps_that_only_know_the_place_fail(explained_by):
    found = measure_shuffled_codes(explained_by("place"), Limits()).finding
    assert (found.verdict, found.value) == ("fail", 1.0)
