import pytest

from vqcortex.evaluation.sanity.protocol import Limits
from vqcortex.evaluation.sanity.randomised_weights import measure_randomised_weights


def test_an_explainer_that_reads_the_network_passes(subject):
    found = measure_randomised_weights(subject, Limits()).finding
    assert (found.verdict, found.reason) == ("pass", "")
    assert found.value <= 0.2
    assert found.low < found.value < found.high


def test_an_edge_detector_fails_with_the_number(explained_by):
    outcome = measure_randomised_weights(explained_by("edges"), Limits())
    assert outcome.finding.verdict == "fail"
    assert outcome.finding.value == 1.0
    assert {step.signed for step in outcome.curve} == {1.0}


def test_the_curve_goes_from_the_logits_down_both_ways(subject):
    curve = measure_randomised_weights(subject, Limits(steps=3)).curve
    assert [(one.kind, one.step) for one in curve] == [
        (kind, step) for step in (1, 2, 3) for kind in ("cascading", "independent")
    ]
    assert [one.layers for one in curve[::2]] == [("6",), ("3",), ("1", "0")]
    assert curve[0].signed == curve[1].signed  # the first step is alone and all there is above
    assert all(one.low <= one.signed <= one.high for one in curve)


def test_constant_maps_fail_and_are_called_so(explained_by):
    outcome = measure_randomised_weights(explained_by("nothing"), Limits())
    assert outcome.finding.reason.startswith("constant maps on 24 of 24 images")
    assert {(one.signed, one.magnitude, one.flat) for one in outcome.curve} == {(None, None, 24)}


@pytest.mark.parametrize("images", [1, 7])
def test_too_few_images_are_no_evidence(explained_by, images):
    found = measure_randomised_weights(explained_by("edges", images=images), Limits()).finding
    assert found.verdict == "skipped"
    assert found.reason == f"{images} images say nothing of a mean correlation; at least 8 are needed"


def test_a_grid_of_two_positions_has_no_order_to_speak_of(subject, changed):
    small = changed(subject, tokens=subject.tokens[:, :1, :2], original=subject.original[:, :1, :2])
    assert "a 1x2 grid has too few positions" in measure_randomised_weights(small, Limits()).finding.reason
