import torch

from vqcortex.attribution.baselines import mean_code
from vqcortex.evaluation.sanity.protocol import Limits
from vqcortex.evaluation.sanity.renumbered_codes import measure_renumbered_codes


def against_the_mean(codebook, uses):
    """Distance from a baseline that is computed from the codebook: every bit of it counts."""
    baseline = mean_code(codebook, uses)[None, :, None, None]
    return lambda module, embedded, concept, image_ids: ((embedded - baseline) * 1e3).sum(1)


def by_number(codebook):
    """The higher a code's number, the more important."""

    def score(module, embedded, concept, image_ids):
        return torch.cdist(embedded.flatten(2).transpose(1, 2), codebook).argmin(2).view(-1, 4, 4).float()

    return score


def moved(values, order):
    there = torch.empty_like(values)
    there[order] = values
    return there


def test_a_baseline_made_from_the_codebook_is_the_same_to_the_bit(subject, changed):
    rng = torch.Generator().manual_seed(0)
    codebook, uses = torch.randn(500, 3, generator=rng), torch.randint(0, 9999, (500,), generator=rng)
    tokens = torch.randint(0, 500, (24, 4, 4), generator=rng)
    many = changed(
        subject, codebook=codebook, tokens=tokens, score=against_the_mean(codebook, uses),
        renumbered=lambda order: against_the_mean(moved(codebook, order), moved(uses, order)),
    )  # fmt: skip
    for seed in range(5):
        found = measure_renumbered_codes(changed(many, original=many.maps()), Limits(seed=seed)).finding
        assert (found.verdict, found.value, found.limit) == ("pass", 0.0, 0.0)


def test_an_explainer_that_looks_at_the_numbers_fails(subject, changed):
    numbered = changed(
        subject, score=by_number(subject.codebook), renumbered=lambda order: by_number(moved(subject.codebook, order))
    )
    found = measure_renumbered_codes(changed(numbered, original=numbered.maps()), Limits()).finding
    assert found.verdict == "fail"
    assert found.value > 0.9
    assert "images change, by up to" in found.reason
    assert "the numbers of the codes, or their order, have a say" in found.reason


def test_the_last_bit_counts(subject, changed):
    def nearly(module, embedded, concept, image_ids):
        maps = subject.score(module, embedded, concept, image_ids)
        maps[3, 0, 0] = torch.nextafter(maps[3, 0, 0], torch.tensor(9.0))
        return maps

    found = measure_renumbered_codes(changed(subject, renumbered=lambda order: nearly), Limits()).finding
    assert (found.verdict, found.value) == ("fail", 1 / 24)
    assert found.reason.startswith("maps of 1 of 24 images change, by up to ")


def test_pooling_that_looks_at_the_numbers_fails(subject, changed):
    def uses(tokens, maps, concept):
        return torch.stack([tokens[concept == one].flatten().bincount(minlength=8) for one in range(8)])

    assert measure_renumbered_codes(changed(subject, pool=uses), Limits()).finding.verdict == "pass"
    low = measure_renumbered_codes(changed(subject, pool=lambda *of: uses(*of) * (torch.arange(8) < 4)), Limits())
    assert low.finding.verdict == "fail"
    assert "counts of codes where they matter change" in low.finding.reason


def test_it_can_be_left_out(subject, changed):
    assert measure_renumbered_codes(changed(subject, renumbered=None), Limits()).finding.verdict == "skipped"
