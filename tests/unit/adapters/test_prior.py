"""The prior: cached and uncached sampling agree, draws belong to images."""

import pytest
import torch

from vqcortex.adapters.prior import PriorSettings, Sampling, TokenPrior, draw, guided
from vqcortex.errors import ConfigError
from vqcortex.seeds import generator_for


def small() -> TokenPrior:
    torch.manual_seed(0)
    return TokenPrior(PriorSettings(codes=11, positions=6, concepts=3, width=16, layers=2, heads=2)).double().eval()


IDS = [f"image/{i}" for i in range(7)]
CONCEPT = torch.tensor([0, 1, 2, 0, 1, 2, 0])


@torch.no_grad()
def slow_sample(prior: TokenPrior, concept: torch.Tensor, ids: list[str], sampling: Sampling) -> torch.Tensor:
    """Without a cache, one image at a time, walking the distribution code by code."""
    grids = []
    for one, name in zip(concept, ids, strict=True):
        uniform = torch.rand(6, generator=generator_for(0, name, "prior"), dtype=torch.float64)
        tokens: list[int] = []
        for step in range(6):
            logits = prior(one[None], torch.tensor([tokens], dtype=torch.int64))[0, -1] / sampling.temperature
            if sampling.top_k:
                kept = set(logits.topk(sampling.top_k).indices.tolist())
                logits = torch.tensor([x if i in kept else -torch.inf for i, x in enumerate(logits.tolist())])
            code, passed = -1, 0.0
            while passed <= uniform[step]:
                code += 1
                passed += logits.double().softmax(0)[code].item()
            tokens.append(code)
        grids.append(tokens)
    return torch.tensor(grids)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_k=4)])
def test_the_cache_draws_what_the_naive_loop_draws(sampling):
    prior = small()
    with torch.no_grad():
        fast = prior.sample(CONCEPT, IDS, 0, sampling)
    assert torch.equal(fast, slow_sample(prior, CONCEPT, IDS, sampling))


def test_company_and_order_change_no_draw():
    prior = small()
    with torch.no_grad():
        together = prior.sample(CONCEPT, IDS, 0, Sampling())
        backwards = prior.sample(CONCEPT.flip(0), IDS[::-1], 0, Sampling()).flip(0)
        alone = torch.cat([prior.sample(CONCEPT[[i]], [IDS[i]], 0, Sampling()) for i in range(7)])
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards)


def test_no_image_id_draws_no_grid():
    assert small().sample(CONCEPT[:0], [], 0, Sampling()).shape == (0, 6)


def test_top_one_is_the_likeliest_code():
    logits = torch.tensor([[0.0, 3.0, 1.0]]).repeat(5, 1)
    assert draw(logits, torch.linspace(0, 0.999, 5), Sampling(top_k=1)).tolist() == [1] * 5


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    drawn = draw(logits.expand(10_000, 3), (torch.arange(10_000) + 0.5) / 10_000, Sampling())
    assert drawn.bincount().tolist() == [2000, 5000, 3000]


def test_a_uniform_number_next_to_one_stays_in_the_table():
    nearly = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert draw(torch.zeros(1, 256), nearly, Sampling()).item() == 255


def test_top_p_keeps_the_likeliest_codes_until_they_reach_it():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().expand(100, 4)
    uniform = (torch.arange(100) + 0.5) / 100

    def kept(**sampling):
        return draw(logits, uniform, Sampling(**sampling)).unique().tolist()

    assert kept(top_p=0.01) == [1]
    assert kept(top_p=0.6) == [1, 3]
    assert kept(top_p=0.8) == [1, 2, 3]
    assert kept(top_p=1.0) == [0, 1, 2, 3]
    assert kept(top_p=0.8, top_k=2) == [1, 3]
    assert kept(top_p=0.7, temperature=0.5) == [1]  # sharper: the first has 0.72 of it all


def test_of_equally_likely_codes_top_p_keeps_the_lower():
    uniform = (torch.arange(100) + 0.5) / 100
    assert draw(torch.zeros(100, 8), uniform, Sampling(top_p=0.3)).unique().tolist() == [0, 1, 2]


def always(bias):
    """A push that does not look at what was drawn."""
    return lambda drawn: bias[:, drawn.shape[1]][None]


def test_a_push_is_told_what_was_drawn():
    prior, told = small(), []

    def push(drawn):
        told.append(drawn)
        if not drawn.shape[1]:
            return torch.zeros(1, 11)
        return torch.full((len(drawn), 11), -torch.inf).scatter_(1, drawn[:, -1:] + 1, 0.0)

    drawn = prior.sample(CONCEPT, IDS, 0, Sampling(), lambda before: push(before % 9))
    assert [one.shape for one in told] == [(len(IDS), place) for place in range(6)]
    assert torch.equal(drawn[:, 1:], drawn[:, :-1] % 9 + 1)


def test_a_forbidden_code_is_never_drawn_and_no_bias_changes_nothing():
    prior, bias = small(), torch.zeros(11, 6)
    plain = prior.sample(CONCEPT, IDS, 0, Sampling())
    assert torch.equal(prior.sample(CONCEPT, IDS, 0, Sampling(), always(bias)), plain)
    bias[plain[0, 2], 2] = -torch.inf
    steered = prior.sample(CONCEPT, IDS, 0, Sampling(), always(bias))
    assert (steered[:, 2] != plain[0, 2]).all()
    assert torch.equal(steered[:, :2], plain[:, :2])


def test_a_bias_is_added_to_the_logits():
    prior, bias = small(), torch.zeros(11, 6)
    bias[:, 0] = torch.linspace(0, 3, 11)
    ids = [f"many/{number}" for number in range(3000)]
    concept = torch.zeros(3000, dtype=torch.int64)
    drawn = prior.sample(concept, ids, 0, Sampling(), always(bias))[:, 0].bincount(minlength=11) / 3000
    wanted = (prior(concept[:1], torch.zeros(1, 0, dtype=torch.int64))[0, 0] + bias[:, 0]).softmax(0)
    torch.testing.assert_close(drawn.double(), wanted.detach(), atol=0.03, rtol=0)


def test_guidance_goes_from_no_class_through_the_class_and_beyond():
    asked, plain = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    assert torch.equal(guided(asked, plain, 0.0), plain)
    assert torch.equal(guided(asked, plain, 1.0), asked)
    assert guided(asked, plain, 3.0).tolist() == [[4.0, -5.0]]


def test_guidance_stays_out_of_the_words_that_older_identities_were_made_of():
    assert repr(Sampling(top_k=5, guidance=2.0)) == "Sampling(temperature=1.0, top_k=5, top_p=None)"


def test_a_prior_without_an_empty_class_refuses_guidance():
    with pytest.raises(ConfigError, match=r"guidance=2 needs a class that stands for none.*knows the 3"):
        small().sample(CONCEPT, IDS, 0, Sampling(guidance=2.0))
