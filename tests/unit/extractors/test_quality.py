"""Held-out figures against counts done by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vqcortex.calibration import expected_calibration_error
from vqcortex.errors import DataError
from vqcortex.extractors.quality import collected_logits, evaluate_extractor


class First(nn.Module):
    """Logits are the code of the first position."""

    def forward(self, embedded):
        return embedded[:, :, 0, 0]


def case(images=23, concepts=12):
    codebook = torch.randn(7, concepts, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 7, (images, 2, 2), generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, concepts, (images,), generator=torch.Generator().manual_seed(2))
    return codebook, tokens, labels


def test_figures_equal_those_of_a_plain_computation():
    codebook, tokens, labels = case()
    found = evaluate_extractor(First(), codebook, [(tokens[:10], labels[:10]), (tokens[10:], labels[10:])], 4, 2.0)
    logits = codebook[tokens[:, 0, 0]]
    place = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert list(found) == [
        "images", "temperature", "top1", "top3", "top5", "top10",
        "cross_entropy", "cross_entropy_calibrated", "ece", "ece_calibrated",
    ]  # fmt: skip
    assert found["images"] == 23
    for n in (1, 3, 5, 10):
        assert found[f"top{n}"] == pytest.approx((place < n).float().mean().item())
    assert found["cross_entropy"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found["cross_entropy_calibrated"] == pytest.approx(F.cross_entropy(logits / 2, labels).item(), rel=1e-5)
    assert found["ece"] == pytest.approx(expected_calibration_error(logits.softmax(1), labels), abs=1e-6)
    assert found["ece_calibrated"] == pytest.approx(
        expected_calibration_error((logits / 2).softmax(1), labels), abs=1e-6
    )


def test_the_batch_changes_no_figure():
    codebook, tokens, labels = case()
    whole = evaluate_extractor(First(), codebook, [(tokens, labels)], 512)
    assert evaluate_extractor(First(), codebook, [(tokens, labels)], 1) == pytest.approx(whole)


def test_few_concepts_have_no_top_five():
    codebook, tokens, labels = case(concepts=3)
    found = evaluate_extractor(First(), codebook, [(tokens, labels)])
    assert [key for key in found if key.startswith("top")] == ["top1", "top3"]
    assert found["top3"] == 1


def test_a_coin_has_the_cross_entropy_of_a_coin():
    found = evaluate_extractor(First(), torch.zeros(1, 2), [(torch.zeros(4, 1, 1).long(), torch.tensor([0, 1, 0, 1]))])
    assert found["cross_entropy"] == pytest.approx(math.log(2))
    assert found["ece"] == pytest.approx(0)


def test_no_images_are_an_error():
    with pytest.raises(DataError, match="0 images to evaluate"):
        evaluate_extractor(First(), torch.zeros(1, 2), [])
    with pytest.raises(DataError, match="0 images to take logits of"):
        collected_logits(First(), torch.zeros(1, 2), [])


def test_logits_are_collected_in_order():
    codebook, tokens, labels = case()
    logits, truth = collected_logits(First(), codebook, [(tokens[:5], labels[:5]), (tokens[5:], labels[5:])], 2)
    assert torch.equal(logits, codebook[tokens[:, 0, 0]].double())
    assert torch.equal(truth, labels)


def test_the_module_is_left_in_its_mode():
    codebook, tokens, labels = case()
    module = First().train()
    evaluate_extractor(module, codebook, [(tokens, labels)])
    assert module.training
