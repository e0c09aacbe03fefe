import pytest
import torch

from vqcortex.errors import ModelError, UnknownName
from vqcortex.evaluation.sanity import CHECKS
from vqcortex.evaluation.sanity.protocol import Limits, examine, measured_difference, measured_independence

MAPS = torch.rand(10, 3, 3, generator=torch.Generator().manual_seed(0))


def test_networks_that_turn_the_order_round_do_not_cancel():
    found = measured_independence("c", MAPS, [MAPS, -MAPS], Limits())
    assert (found.value, found.verdict) == (1.0, "fail")
    assert found.reason.startswith("the maps keep the order they had")


def test_a_difference_has_a_sign():
    assert measured_difference("c", MAPS, -MAPS, Limits()).verdict == "pass"
    assert measured_difference("c", MAPS, MAPS, Limits()).reason.startswith("the maps hardly change")


@pytest.mark.parametrize("limit", [0.99, 1.0])
def test_a_value_at_the_limit_passes(limit):
    verdict = measured_difference("c", MAPS, MAPS, Limits(different=limit)).verdict
    assert verdict == ("pass" if limit == 1.0 else "fail")


def test_constant_maps_are_a_finding_of_their_own():
    most = MAPS.clone()
    most[:6] = 1
    found = measured_independence("c", MAPS, [most, MAPS], Limits())
    assert (found.verdict, found.value, found.low) == ("fail", None, None)
    assert found.reason.startswith("constant maps on 6 of 10 images")
    few = MAPS.clone()
    few[:2] = 1
    assert measured_independence("c", MAPS, [few], Limits()).value == 1.0


def test_a_method_that_refuses_a_random_network_has_failed(explained_by, changed):
    def refuse(*_):
        raise ModelError("no finite gradient; look at the weights")

    found = examine("randomised_weights", changed(explained_by("gradient"), score=refuse), Limits()).finding
    assert found.verdict == "fail"
    assert found.reason == "the method refused: no finite gradient; look at the weights"


def test_an_unknown_check_is_named(subject):
    with pytest.raises(UnknownName, match=r"no sanity check named 'shuffled_code'.*Did you mean 'shuffled_codes'"):
        examine("shuffled_code", subject, Limits())
    assert len(CHECKS) == 5
