from vqcortex.evaluation.sanity.permuted_labels import measure_permuted_labels
from vqcortex.evaluation.sanity.protocol import Limits


def test_maps_of_another_network_are_other_maps(subject, changed, other_network):
    found = measure_permuted_labels(changed(subject, retrained=other_network(5)), Limits()).finding
    assert found.verdict == "pass"


def test_an_explainer_that_does_not_notice_fails(explained_by, other_network):
    found = measure_permuted_labels(explained_by("edges", retrained=other_network(5)), Limits()).finding
    assert (found.verdict, found.value) == ("fail", 1.0)


def test_a_network_that_learned_the_same_fails(subject, changed, other_network):
    assert measure_permuted_labels(changed(subject, retrained=other_network()), Limits()).finding.verdict == "fail"


def test_without_such_a_network_there_is_nothing_to_say(subject):
    found = measure_permuted_labels(subject, Limits()).finding
    assert (found.verdict, found.reason) == ("skipped", "no extractor was trained on permuted labels")
