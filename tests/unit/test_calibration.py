"""Temperature and calibration error against numbers worked out by hand."""

import math

import pytest
import torch

from vqcortex.calibration import COLDEST, HOTTEST, calibration_gaps, expected_calibration_error, fit_temperature


def test_error_of_one_bin_is_confidence_minus_accuracy():
    probabilities = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.9, 0.1]])
    assert expected_calibration_error(probabilities, torch.tensor([0, 1, 0, 1])) == pytest.approx(0.9 - 0.75)


def test_error_of_two_bins_is_weighted_by_their_images():
    probabilities = torch.tensor([[1.0, 0.0], [0.6, 0.4], [0.4, 0.6], [0.4, 0.6]])
    # one image sure and wrong; three at 0.6 of which two are right
    expected = 1 / 4 * 1.0 + 3 / 4 * abs(0.6 - 2 / 3)
    assert expected_calibration_error(probabilities, torch.tensor([1, 0, 1, 0])) == pytest.approx(expected)


def test_opposite_gaps_in_one_bin_cancel_and_in_two_do_not():
    probabilities = torch.tensor([[0.80, 0.20], [0.60, 0.40]])
    labels = torch.tensor([1, 0])  # gaps +0.8 and -0.4
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(0.2)
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(0.6)


def test_a_bin_holds_its_upper_edge():
    gaps = calibration_gaps(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 0]), bins=2)
    assert gaps.tolist() == [-0.5, 0.0]


def test_gaps_of_parts_add_up_to_those_of_the_whole():
    torch.manual_seed(0)
    probabilities, labels = torch.randn(50, 4).softmax(1), torch.randint(0, 4, (50,))
    parts = sum(calibration_gaps(probabilities[i : i + 7], labels[i : i + 7]) for i in range(0, 50, 7))
    torch.testing.assert_close(parts, calibration_gaps(probabilities, labels))


def test_error_equals_a_loop_over_bins():
    torch.manual_seed(1)
    probabilities, labels = (3 * torch.randn(300, 5)).softmax(1).double(), torch.randint(0, 5, (300,))
    confidence, guess = probabilities.max(1)
    total = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            accuracy = (guess == labels)[inside].double().mean()
            total += inside.sum().item() / 300 * abs(confidence[inside].mean() - accuracy).item()
    assert expected_calibration_error(probabilities, labels) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.5])
def test_temperature_of_two_classes_has_a_closed_form(temperature):
    # 3 of 4 images are right at logit difference g: the best temperature makes sigmoid(g / T) = 3/4.
    g = temperature * math.log(3)
    logits = torch.tensor([[g, 0.0]] * 4)
    assert fit_temperature(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(temperature, rel=1e-5)


def test_temperature_is_where_the_cross_entropy_is_lowest():
    torch.manual_seed(2)
    logits, labels = 4 * torch.randn(400, 6), torch.randint(0, 6, (400,))
    logits[torch.arange(400), labels] += 4
    best = fit_temperature(logits, labels)
    loss = lambda t: torch.nn.functional.cross_entropy(logits.double() / t, labels).item()  # noqa: E731
    assert 1 < best < HOTTEST
    assert loss(best) < min(loss(best * 1.01), loss(best / 1.01))


def test_temperature_stays_in_its_range():
    sure = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    assert fit_temperature(sure, torch.tensor([0, 1])) == pytest.approx(COLDEST)
    assert fit_temperature(sure, torch.tensor([1, 0])) == pytest.approx(HOTTEST)
