"""What every fill and every control arm owes its caller, asked of every registered name."""

from __future__ import annotations

import pytest
import torch

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.evaluation import ARMS, FILLS
from vqcortex.evaluation.arms import Arm, hide_top, score_arms
from vqcortex.evaluation.choose import arms_for, fills_for
from vqcortex.evaluation.codebook_level import measure_codebook_level, random_codes
from vqcortex.evaluation.concept_level import frequency_lists, measure_concept_level
from vqcortex.evaluation.drop import measure_drop
from vqcortex.evaluation.fills import Fill, decoded, filler, over_pixels
from vqcortex.evaluation.values import join_evidence
from vqcortex.judges.toy import toy_judges

IDS = ["a", "b", "c", "d", "e"]
CONCEPT = torch.tensor([1, 4, 4, 7, 2])
TOY = ToyAdapter(grid=(4, 3))
TOKENS = TOY.generate(CONCEPT, IDS, seed=5)
COUNTS = torch.stack([torch.bincount(TOKENS[c == CONCEPT].flatten(), minlength=8) for c in range(8)])
HIDDEN = hide_top(torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(0)), 4)
WHITE = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 1])


def fill_named(name, frequency=WHITE):
    return fills_for([name], frequency=frequency)[0]


def arm_named(name):
    return arms_for([name], counts=COUNTS)[0]


def test_there_is_something_to_ask():
    assert set(FILLS) == {"black", "grey", "mean_code", "resampled_codes"}
    assert set(ARMS) == {"random", "centre", "brightness", "token_frequency"}


@pytest.mark.parametrize("name", sorted(FILLS))
def test_a_fill_knows_its_name_and_its_place(name):
    fill = fill_named(name)
    assert isinstance(fill, Fill)
    assert fill.name == name
    assert fill.where in ("pixels", "tokens")


@pytest.mark.parametrize("name", sorted(FILLS))
def test_a_fill_changes_hidden_positions_and_no_other(name):
    tokens = TOKENS.clamp(max=6).clamp(min=1)  # no black and no white, so that every fill must show
    before, after = decoded(TOY, tokens), fill_named(name)(TOY, tokens, HIDDEN, IDS)
    changed = (before != after).any(1)  # (b, H, W)
    assert torch.equal(changed, over_pixels(HIDDEN, TOY.size))


@pytest.mark.parametrize("name", sorted(FILLS))
def test_a_fill_of_nothing_changes_nothing(name):
    nothing = torch.zeros_like(HIDDEN)
    assert torch.equal(fill_named(name)(TOY, TOKENS, nothing, IDS), decoded(TOY, TOKENS))


@pytest.mark.parametrize("name", sorted(FILLS))
def test_a_fill_of_everything_leaves_nothing_of_the_image(name):
    everything = torch.ones_like(HIDDEN)
    fill = fill_named(name, torch.ones(8))
    other = TOKENS.flip(0)
    assert torch.equal(fill(TOY, TOKENS, everything, IDS), fill(TOY, other, everything, IDS))


@pytest.mark.parametrize("name", sorted(FILLS))
def test_a_fill_gives_the_same_with_or_without_the_decoded_image(name):
    fill = fill_named(name, torch.ones(8))
    given = fill(TOY, TOKENS, HIDDEN, IDS, decoded(TOY, TOKENS))
    assert torch.equal(fill(TOY, TOKENS, HIDDEN, IDS), given)


@pytest.mark.parametrize("name", sorted(FILLS))
def test_company_changes_no_fill(name):
    fill = fill_named(name, torch.ones(8))
    together = fill(TOY, TOKENS, HIDDEN, IDS)
    for i in (3, 0, 4):
        assert torch.equal(fill(TOY, TOKENS[[i]], HIDDEN[[i]], [IDS[i]])[0], together[i])


@pytest.mark.parametrize("name", sorted(FILLS))
def test_a_fill_made_ready_for_many_maskings_does_what_it_does_for_one(name):
    fill, image = fill_named(name), torch.tensor([3, 0, 3])
    ready = filler(fill, TOY, TOKENS, IDS, decoded(TOY, TOKENS))
    one_by_one = fill(TOY, TOKENS[image], HIDDEN[:3], [IDS[i] for i in image.tolist()])
    assert torch.equal(ready(image, HIDDEN[:3]), one_by_one)


@pytest.mark.parametrize("name", sorted(ARMS))
def test_an_arm_knows_its_name(name):
    assert isinstance(arm_named(name), Arm)
    assert arm_named(name).name == name


@pytest.mark.parametrize("name", sorted(ARMS))
@pytest.mark.parametrize("n", range(13))
def test_every_arm_hides_exactly_n(name, n):
    scores = arm_named(name)(TOY, TOKENS, CONCEPT, IDS)
    assert hide_top(scores, n).flatten(1).sum(1).tolist() == [n] * 5


@pytest.mark.parametrize("name", sorted(ARMS))
def test_hiding_more_keeps_what_was_hidden(name):
    scores = arm_named(name)(TOY, TOKENS, CONCEPT, IDS)
    assert all((hide_top(scores, n + 1) | ~hide_top(scores, n)).all() for n in range(12))


@pytest.mark.parametrize("name", sorted(ARMS))
def test_company_changes_no_arm(name):
    arm = arm_named(name)
    together = arm(TOY, TOKENS, CONCEPT, IDS)
    for i in (3, 0, 4):
        assert torch.equal(arm(TOY, TOKENS[[i]], CONCEPT[[i]], [IDS[i]])[0], together[i])


def image_level(rows, batch=64):
    tokens, concept, ids = TOKENS[rows], CONCEPT[rows], IDS[rows]
    scores = score_arms(arms_for(sorted(ARMS), counts=COUNTS), TOY, tokens, concept, ids, batch=batch)
    fills = fills_for(sorted(FILLS), frequency=torch.ones(8))
    return measure_drop(TOY, toy_judges(), tokens, concept, ids, scores, (1, 4, 12), fills, batch=batch)


def concept_level(rows, batch=64):
    lists = {"concept_tokens": torch.arange(8)[:, None], "last": torch.arange(8).flip(0)[:, None]}
    fills = fills_for(sorted(FILLS), frequency=torch.ones(8))
    tokens, concept, ids = TOKENS[rows], CONCEPT[rows], IDS[rows]
    return measure_concept_level(TOY, toy_judges(), tokens, concept, ids, lists, fills, batch=batch)


def codebook_level(rows, batch=64):
    tokens, concept, ids = TOKENS[rows], CONCEPT[rows], IDS[rows]
    free = torch.ones(TOY.grid, dtype=torch.bool)
    searched = {"random_codes": random_codes(tokens, free, 8, ids, restarts=2)}
    target = (concept + 1) % 8
    return measure_codebook_level(TOY, toy_judges(), tokens, concept, target, ids, searched, batch=batch)


LEVELS = [image_level, concept_level, codebook_level]


@pytest.mark.parametrize("level", LEVELS)
def test_evidence_depends_on_no_batch_and_no_company(level):
    whole = level(slice(None))
    parts = join_evidence([level(slice(3, 5)), level(slice(0, 3))])
    again = level(slice(None), batch=2)
    order = [parts.image_ids.index(name) for name in whole.image_ids]
    assert whole.conditions == parts.conditions == again.conditions
    for name, values in whole.metrics.items():
        torch.testing.assert_close(again.metrics[name], values)
        torch.testing.assert_close(parts.metrics[name][:, :, order], values)
    assert torch.equal(parts.touched[:, order], whole.touched)


def test_areas_are_equal_where_they_should_be():
    found = image_level(slice(None))
    assert all((found.touched[i] == one.chosen).all() for i, one in enumerate(found.conditions))
    matched = concept_level(slice(None))
    rows = [i for i, one in enumerate(matched.conditions) if one.masking == "area_matched"]
    assert len(rows) == 2 * 4
    assert (matched.touched[rows] == matched.touched[rows[0]]).all()


def test_when_everything_is_hidden_all_arms_agree():
    found = image_level(slice(None))
    for fill in FILLS:
        rows = [i for i, one in enumerate(found.conditions) if one.chosen == 12 and one.fill == fill]
        drops = found.metrics["probability_drop"][rows]
        torch.testing.assert_close(drops, drops[:1].expand_as(drops))


def test_the_concept_list_of_the_toy_is_its_colour():
    assert torch.equal(frequency_lists(COUNTS, 1)[CONCEPT, 0], CONCEPT)
