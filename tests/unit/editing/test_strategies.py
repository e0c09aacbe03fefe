"""What the strategies do beyond their contract, where the truth is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.editing.cells import BestCells
from vqcortex.editing.concept import ConceptTokens
from vqcortex.editing.controls import FrequencyCodes, RandomCodes
from vqcortex.editing.generator import FromGenerator
from vqcortex.editing.protocol import Means, Task, leads
from vqcortex.editing.searched import Searched
from vqcortex.editing.smallest import Smallest, colours
from vqcortex.errors import ConfigError

TOY = ToyAdapter()
ALL = torch.ones(8, dtype=torch.bool)
RED, BLUE, WHITE = 4, 1, 7


class Share(nn.Module):
    """Logit of a colour: as many nats as cells that have it."""

    def forward(self, embedded):
        away = (embedded[:, None] - TOY.codebook[None, :, :, None, None]).square().sum(2)
        return torch.exp(-3 * away).sum((2, 3))


def task_of(tokens, free=None, source=RED, target=BLUE, **other):
    free = torch.ones_like(tokens, dtype=torch.bool) if free is None else free
    count = len(tokens)
    return Task(
        tokens=tokens, free=free, source=torch.full((count,), source), target=torch.full((count,), target),
        image_ids=tuple(f"i{n}" for n in range(count)), **other,
    )  # fmt: skip


def means_of(**other):
    return Means(**{"codebook": TOY.codebook, "alive": ALL, "choosers": (Share(),), "decode": TOY.decode, **other})


def cells(count, code=RED, others=0):
    grid = torch.full((1, 16), others)
    grid[0, :count] = code
    return grid.view(1, 4, 4)


def test_the_smallest_edit_swaps_as_few_tokens_as_the_lead_needs():
    # Five red cells against none: each cell that turns from red to blue moves the lead by two.
    found = Smallest(sureness=0.9, path=1)(task_of(cells(5)), means_of())
    changed = found != cells(5)
    assert int(changed.sum()) == 3
    assert (found[changed] == BLUE).all()
    assert (cells(5)[changed] == RED).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_region_of_another_size_in_the_batch_changes_no_edit(seed):
    rng = torch.Generator().manual_seed(seed)
    tokens, order = torch.randint(8, (3, 4, 4), generator=rng), torch.randn(3, 16, generator=rng).argsort(1).argsort(1)
    free = (order < torch.tensor([[1], [5], [16]])).view(3, 4, 4)
    torch.manual_seed(seed)  # weights without the toy's equals: which of equals comes first is nobody's promise
    chooser = nn.Sequential(nn.Flatten(), nn.Linear(TOY.codebook.shape[1] * 16, 16), nn.Tanh(), nn.Linear(16, 8))
    means = means_of(choosers=(chooser.requires_grad_(False),))
    search = Smallest(sureness=9.0, candidates=4, path=1)
    together = search(task_of(tokens, free), means)
    alone = [search(task_of(tokens[[i]], free[[i]]), means) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_what_is_content_already_stays_as_it_is():
    tokens = cells(9, BLUE)
    assert torch.equal(Smallest(sureness=2.0)(task_of(tokens), means_of()), tokens)


def test_the_most_tokens_allowed_are_kept_even_where_the_target_is_missed():
    found = Smallest(sureness=5.0, most=2)(task_of(cells(8)), means_of())
    assert int((found != cells(8)).sum()) == 2


def test_swaps_that_no_chooser_misses_are_taken_back():
    task, means = task_of(cells(2)), means_of()
    found = torch.where(torch.arange(16).view(1, 4, 4) < 8, BLUE, cells(2))
    search = Smallest(sureness=0.9)
    value = search.values(task, found[:, None], means)[:, 0]
    kept = search._taken_back(task, found, value, means)
    assert float(search.values(task, kept[:, None], means)) >= 0.9 - 1e-4
    assert int((kept != cells(2)).sum()) < int((found != cells(2)).sum())


def test_positions_of_one_colour_never_touch():
    parts = colours((3, 4))
    assert parts.sum(0).tolist() == [[1] * 4] * 3
    for part in parts:
        places = part.nonzero()
        apart = (places[:, None] - places[None]).abs().amax(2)
        assert apart[~torch.eye(len(places), dtype=torch.bool)].min() >= 2
    assert len(colours((1, 4))) == 2


def test_where_the_first_candidates_do_not_help_more_are_tried():
    class Misleading(nn.Module):
        """The gradient points to white; only blue counts in the end."""

        def forward(self, embedded):
            blue = TOY.codebook[BLUE][None, :, None, None]
            exact = ((embedded - blue).abs().sum(1) < 1e-6).sum((1, 2)).float()
            logits = torch.zeros(len(embedded), 8)
            logits[:, BLUE] = 5 * exact + 0.01 * embedded.sum((1, 2, 3)) - 0.01 * embedded.detach().sum((1, 2, 3))
            return logits

    task, means = task_of(cells(1)), means_of(choosers=(Misleading(),))
    assert Smallest(sureness=3.0, candidates=48)(task, means).eq(BLUE).sum() == 1
    assert Smallest(sureness=3.0, candidates=16)(task, means).eq(BLUE).sum() == 1


def test_a_leak_budget_forbids_what_shows_outside():
    tokens = cells(5)
    inside = torch.zeros(1, 16, 16, dtype=torch.bool)
    inside[:, :4] = True  # pixels of the first row of tokens
    task = task_of(tokens, inside=inside)
    free = Smallest(sureness=2.0)(task, means_of())
    bound = Smallest(sureness=2.0, budget=0.0)(task, means_of())
    assert (free != tokens)[:, 1:].any() or int((free != tokens).sum()) >= 3
    assert not (bound != tokens)[:, 1:].any()


def test_a_whole_grid_leaks_nowhere_and_is_not_decoded_for_it():
    def decode(_):
        raise AssertionError("decoded")

    everywhere = task_of(cells(5), inside=torch.ones(1, 16, 16, dtype=torch.bool))
    found = Smallest(sureness=2.0, budget=0.0)(everywhere, means_of(decode=decode))
    assert torch.equal(found, Smallest(sureness=2.0)(everywhere, means_of()))


@pytest.mark.parametrize("seed", range(4))
def test_a_leak_is_asked_of_the_best_first_and_changes_no_edit(seed):
    rng = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    chooser = nn.Sequential(nn.Flatten(), nn.Linear(TOY.codebook.shape[1] * 16, 16), nn.Tanh(), nn.Linear(16, 8))
    inside = torch.zeros(3, 16, 16, dtype=torch.bool)
    inside[0, :8], inside[1] = True, True
    task = task_of(torch.randint(8, (3, 4, 4), generator=rng), inside=inside)
    budget, decoded = 0.05, []

    def decode(embedded):
        decoded.append(len(embedded))
        return TOY.decode(embedded)

    means = means_of(choosers=(chooser.requires_grad_(False),), decode=decode)

    class Eager(Smallest):
        """Every candidate is decoded, and none that leaks is worth anything."""

        def values(self, task, grids, means):
            worth = super().values(task, grids, means)
            for place in range(grids.shape[1]):
                leaks = super()._leaks(task, grids[:, place], means)
                worth[:, place] = worth[:, place].masked_fill(leaks, -torch.inf)
            return worth

    lazy = Smallest(sureness=3.0, budget=budget, candidates=16)(task, means)
    few, _ = sum(decoded), decoded.clear()
    assert torch.equal(lazy, Eager(sureness=3.0, budget=budget, candidates=16)(task, means))
    assert few < sum(decoded)
    unbound = Smallest(sureness=3.0, candidates=16)(task, means)
    assert not torch.equal(lazy, unbound)
    assert torch.equal(lazy[1], unbound[1])


def test_a_grid_behind_one_that_is_not_enough_is_not_taken():
    grids, least = cells(5)[:, None].repeat(2, 2, 1, 1), torch.tensor([1.00002, 1.00002], dtype=torch.float64)
    worth = torch.tensor([[1.00001, 1.00004], [3.0, 1.0]], dtype=torch.float64)  # the first two are equal, rounded
    task = task_of(cells(5).repeat(2, 1, 1))
    for budget in (None, 1.0):
        best, found = Smallest(budget=budget)._best(task, grids, worth, least, means_of())
        assert best[1] == 0
        assert found.tolist() == [-math.inf, 3.0]


def test_a_lead_over_all_others_is_asked_of_every_other_concept():
    lead = leads(
        [Share()], TOY.embed(cells(6, BLUE, others=WHITE)), torch.tensor([RED]), torch.tensor([BLUE]), "others"
    )
    assert float(lead) < 0  # ten white cells
    assert float(leads([Share()], TOY.embed(cells(6, BLUE)), torch.tensor([RED]), torch.tensor([BLUE]))) > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sureness": -1.0}, "sureness=-1.0 must be at least 0"),
        ({"over": "all"}, "over='all' must be one of source, others"),
        ({"budget": -0.1}, "budget=-0.1 must be at least 0"),
        ({"candidates": 0}, "candidates=0 must be at least 1"),
        ({"path": 0}, "path=0 must be at least 1"),
    ],
)
def test_a_wrong_setting_of_the_smallest_edit_says_what_would_be_right(wrong, said):
    with pytest.raises(ConfigError, match=said):
        Smallest(**wrong)


def test_a_leak_budget_needs_a_decoder():
    with pytest.raises(ConfigError, match="needs a decoder to keep a leak budget"):
        Smallest(budget=0.1)(task_of(cells(3)), means_of(decode=None))


def test_concept_tokens_go_where_they_usually_stand_and_nowhere_else():
    counts = torch.zeros(8, 4, 4, dtype=torch.int64)
    counts[BLUE, 0, 0], counts[WHITE, 0, 0], counts[WHITE, 2, 2] = 2, 5, 1
    means = means_of(listed={BLUE: torch.tensor([BLUE, WHITE, -1])}, places={BLUE: counts})
    found = ConceptTokens()(task_of(cells(0)), means)
    assert found[0, 0, 0] == found[0, 2, 2] == WHITE
    assert int((found != 0).sum()) == 2


def test_best_cells_put_the_code_of_largest_effect_and_nothing_that_harms():
    effect = torch.full((8, 4, 4), -1.0)
    effect[WHITE, 1, 1], effect[BLUE, 1, 1] = 0.5, 0.2
    found = BestCells()(task_of(cells(0)), means_of(effects={BLUE: effect}))
    assert found[0, 1, 1] == WHITE
    assert int((found != 0).sum()) == 1


def test_frequency_codes_are_the_most_frequent_that_do_not_stand_there():
    counts = torch.zeros(8, 4, 4, dtype=torch.int64)
    counts[BLUE], counts[WHITE] = 5, 3
    tokens = cells(4, BLUE)
    found = FrequencyCodes()(task_of(tokens), means_of(places={BLUE: counts}))
    assert torch.equal(found, torch.where(tokens == BLUE, WHITE, BLUE))


def test_random_codes_are_all_live_codes_alike():
    tokens = torch.full((200, 4, 4), RED)
    found = RandomCodes()(task_of(tokens), means_of(alive=ALL & (torch.arange(8) != 3)))
    share = found.flatten().bincount(minlength=8) / found.numel()
    assert share[RED] == share[3] == 0
    assert (share[[0, 1, 2, 5, 6, 7]] - 1 / 6).abs().max() < 0.03


def test_the_generator_draws_what_it_finds_likely_for_the_target():
    found = FromGenerator(draws=1)(task_of(torch.full((60, 4, 4), RED)), means_of(chances=TOY.log_probabilities))
    assert abs(float((found == BLUE).double().mean()) - (0.4 + 0.6 / 8)) < 0.05


def test_of_several_draws_the_one_stays_that_the_choosers_like_or_else_the_likeliest():
    task = task_of(torch.full((40, 4, 4), RED))
    means = means_of(chances=TOY.log_probabilities)
    one, many = (FromGenerator(draws=draws)(task, means) for draws in (1, 8))
    assert (many == BLUE).sum() > (one == BLUE).sum()
    alone = FromGenerator(draws=8)(task, means_of(chances=TOY.log_probabilities, choosers=()))
    assert (alone == BLUE).sum() > (one == BLUE).sum()
    with pytest.raises(ConfigError, match="draws=0 must be at least 1"):
        FromGenerator(draws=0)


def test_images_with_one_region_are_searched_together():
    asked = []

    def search(task, mask):
        asked.append((task.image_ids, int(mask.sum())))
        return torch.where(mask, WHITE, task.tokens)

    free = torch.zeros(3, 4, 4, dtype=torch.bool)
    free[0, 0], free[1, 1, 1], free[2, 0] = True, True, True
    found = Searched()(task_of(torch.full((3, 4, 4), RED), free), means_of(search=search))
    assert sorted(asked) == [(("i0", "i2"), 4), (("i1",), 1)]
    assert torch.equal(found == WHITE, free)
