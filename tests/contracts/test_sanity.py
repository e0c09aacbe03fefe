"""What every sanity check owes its caller, asked of every registered name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.attribution.protocol import build_method
from vqcortex.evaluation.sanity import CHECKS
from vqcortex.evaluation.sanity.protocol import LEAST_IMAGES, Limits, Subject, examine
from vqcortex.evaluation.sanity.randomise import layer_groups, randomised
from vqcortex.extractors.protocol import build_extractor, look_up

TOY = ToyAdapter()
CONCEPT = torch.arange(16) % 8
IDS = [f"image {number}" for number in range(16)]
TOKENS = TOY.generate(CONCEPT, IDS, seed=1)
MODULE = build_extractor("conv8", 3, (4, 4), 8, seed=0, width=8).eval()
LIMITS = Limits(draws=1, steps=1)


def explained(codebook):
    method = build_method("noisy_gradient_x_embedding", codebook=codebook, draws=1)
    return lambda module, embedded, concept, ids: method(module, embedded, concept, ids)


def subject() -> Subject:
    score = explained(TOY.codebook)
    other = randomised(MODULE, layer_groups(MODULE, 1)[0], seed=3)
    return Subject(
        module=MODULE, score=score, codebook=TOY.codebook, tokens=TOKENS, concept=CONCEPT, image_ids=IDS,
        original=score(MODULE, look_up(TOY.codebook, TOKENS), CONCEPT, IDS), concepts=8, retrained=other,
        renumbered=lambda order: explained(TOY.codebook),
    )  # fmt: skip


def flat(module, embedded, concept, image_ids):
    return torch.zeros(len(embedded), 4, 4)


def test_there_is_something_to_ask():
    assert len(CHECKS) == 5


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_check_says_what_it_found_and_says_it_again(name):
    found, again = (examine(name, subject(), LIMITS) for _ in range(2))
    assert found == again
    assert found.finding.check == name
    assert found.finding.verdict in ("pass", "fail")
    assert (found.finding.verdict == "pass") == (found.finding.value <= found.finding.limit)
    assert bool(found.finding.reason) == (found.finding.verdict == "fail")


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_check_leaves_everything_as_it_was(name):
    given = subject()
    before = {key: value.clone() for key, value in MODULE.state_dict().items()}
    tensors = [value.clone() for value in (given.codebook, given.tokens, given.concept, given.original)]
    flags = [weight.requires_grad for weight in MODULE.parameters()]
    state = torch.get_rng_state()
    examine(name, given, LIMITS)
    assert all(torch.equal(value, before[key]) for key, value in MODULE.state_dict().items())
    after = (given.codebook, given.tokens, given.concept, given.original)
    assert all(torch.equal(*pair) for pair in zip(tensors, after, strict=True))
    assert [weight.requires_grad for weight in MODULE.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_no_check_tells_a_number_that_is_none(name):
    given = replace(subject(), score=flat, original=torch.zeros(16, 4, 4), renumbered=lambda order: flat)
    found = examine(name, given, LIMITS).finding
    if name == "renumbered_codes":
        assert (found.verdict, found.value) == ("pass", 0.0)
    else:
        assert (found.verdict, found.value) == ("fail", None)
        assert "constant maps on 16 of 16 images" in found.reason


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_correlation_over_few_images_is_not_taken(name):
    few = LEAST_IMAGES - 1
    given = subject()
    small = replace(
        given, tokens=TOKENS[:few], concept=CONCEPT[:few], image_ids=IDS[:few], original=given.original[:few]
    )
    found = examine(name, small, LIMITS).finding
    if name == "renumbered_codes":  # exact, so it needs no more than one
        assert (found.verdict, found.images) == ("pass", few)
    else:
        assert (found.verdict, found.value) == ("skipped", None)
        assert "7 images say nothing" in found.reason
