"""Tables of codes against the slow and obvious way to search them."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from vqcortex.adapters import codes as module
from vqcortex.adapters.codes import (
    ROUNDING,
    Codes,
    LatticeCodes,
    StackedCodes,
    TableCodes,
    UnitCodes,
    best_logit,
    nearest_rows,
    rounding_of,
)
from vqcortex.adapters.protocol import Level, join_levels
from vqcortex.errors import ModelError, ShapeError

VALUES = {
    "LFQ": ([(-1.0, 1.0)] * 6, False),
    "LFQ, last bit least": ([(-1.0, 1.0)] * 6, True),
    "FSQ": ([(-1.0, -0.5, 0.0, 0.5), (-1.0, 0.0, 1.0), (-1.0, -0.5, 0.0, 0.5, 1.0)], False),
    "one value": ([(0.25,), (-1.0, 1.0)], False),
}


def random(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def table_of(values, last_is_least):
    """Every code by counting, in the slow way."""
    places = list(reversed(values)) if last_is_least else values
    rows = [tuple(reversed(row)) for row in itertools.product(*(reversed(places)))]  # the first place counts fastest
    return torch.tensor([tuple(reversed(row)) if last_is_least else row for row in rows])


def as_grid(rows):
    """Vectors (n, d) as (1, d, 1, n)."""
    return rows.T[None, :, None]


def slow_nearest(rows, table):
    """Distances in float64, the lower index in a tie."""
    return (rows.double()[:, None] - table.double()).square().sum(-1).argmin(1)


def slow_doubt(rows, table, share=ROUNDING):
    """Whether moving a vector by a share of its length, towards another code, could make that one nearer."""
    rows, table = rows.double(), table.double()
    distance = (rows[:, None] - table).square().sum(-1)
    best = distance.argmin(1)
    apart = (table[None] - table[best][:, None]).norm(dim=-1)
    turns = distance - distance.gather(1, best[:, None]) <= 2 * share * rows.norm(dim=1)[:, None] * apart
    return (turns & (apart > 0)).any(1)


# ---------------------------------------------------------------------------------------------------------------------
# nearest_rows


@given(
    st.integers(1, 40), st.integers(1, 6), st.integers(0, 1000), st.sampled_from([1e-3, 1.0, 1e3]),
    st.sampled_from([0.0, 1.0, 100.0]), st.integers(1, 3),
)  # fmt: skip
def test_the_nearest_row_is_that_of_the_slow_way(k, d, seed, scale, away, copies):
    """Also for codes far from the origin and close together, and for codes that stand in the table several times."""
    table = (random(k, d, seed=seed) * scale + away).repeat(copies, 1)
    rows = torch.cat([random(50, d, seed=seed + 1) * scale + away, table])
    choice = nearest_rows(as_grid(rows), table)
    assert torch.equal(choice.tokens[0, 0], slow_nearest(rows, table))
    assert torch.equal(choice.doubtful[0, 0], slow_doubt(rows, table))


def test_a_row_that_is_met_exactly_wins_and_the_lower_index_in_a_tie():
    table = torch.tensor([[3.0, 0], [1, 0], [1, 0], [-1, 0], [1, 0]])
    rows = torch.tensor([[1.0, 0], [0, 0], [0, 5], [2, 0]])
    assert nearest_rows(as_grid(rows), table).tokens.tolist() == [[[1, 1, 1, 0]]]


def test_two_equal_codes_leave_no_doubt_and_two_equally_near_ones_do():
    table = torch.tensor([[1.0, 0], [1, 0], [-1, 0]])
    assert nearest_rows(as_grid(torch.tensor([[0.9, 0], [0, 2.0]])), table).doubtful.tolist() == [[[False, True]]]


def test_a_remainder_is_as_uncertain_as_the_vector_it_is_left_of():
    table, rows = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1e-3]])
    assert not nearest_rows(as_grid(rows), table).doubtful.any()
    assert nearest_rows(as_grid(rows), table, reach=torch.full((1, 1, 1), 200.0)).doubtful.all()


def test_pieces_change_nothing(monkeypatch):
    table, embedded = random(30, 4), random(2, 4, 5, 6, seed=1)
    whole = nearest_rows(embedded, table)
    monkeypatch.setattr(module, "_PIECE", 70)  # two vectors at once
    pieces = nearest_rows(embedded, table)
    assert torch.equal(whole.tokens, pieces.tokens)
    assert torch.equal(whole.doubtful, pieces.doubtful)


def test_an_empty_batch_has_no_tokens():
    choice = nearest_rows(torch.zeros(0, 4, 2, 3), random(5, 4))
    assert choice.tokens.shape == choice.doubtful.shape == (0, 2, 3)
    assert choice.tokens.dtype == torch.int64


def test_half_precision_doubts_more_and_finds_every_code():
    table = random(200, 8)
    choice = nearest_rows(as_grid(table.bfloat16()), table.bfloat16())
    assert torch.equal(choice.tokens[0, 0], torch.arange(200))
    assert rounding_of(torch.bfloat16) > 0.01 > rounding_of(torch.float32) == rounding_of(torch.float64) == ROUNDING
    rows = as_grid(random(500, 8, seed=1))
    doubts = [nearest_rows(rows.to(kind), table.to(kind)).doubtful.sum() for kind in (torch.float32, torch.bfloat16)]
    assert doubts[1] > doubts[0]


def test_moving_within_the_rounding_turns_no_sure_choice():
    table, rows = random(50, 3), random(2000, 3, seed=1)
    sure = nearest_rows(as_grid(rows), table)
    for seed in range(5):
        moved = rows + F.normalize(random(2000, 3, seed=seed + 9), dim=1) * rows.norm(dim=1, keepdim=True) * ROUNDING
        same = nearest_rows(as_grid(moved), table).tokens == sure.tokens
        assert (same | sure.doubtful).all()
    assert sure.doubtful.sum() < 10


# ---------------------------------------------------------------------------------------------------------------------
# best_logit


def test_the_largest_logit_is_chosen_and_a_near_second_is_a_doubt():
    logits = torch.tensor([[1.0, 2.0, 0.0], [5.0, 5.0 - 1e-6, 0.0]])
    choice = best_logit(as_grid(logits))
    assert choice.tokens.tolist() == [[[1, 0]]]
    assert choice.doubtful.tolist() == [[[False, True]]]
    assert torch.equal(choice.logits, as_grid(logits))


def test_one_code_is_never_doubtful():
    assert not best_logit(torch.zeros(2, 1, 3, 3)).doubtful.any()
    assert not nearest_rows(torch.zeros(2, 1, 3, 3), torch.ones(1, 1)).doubtful.any()


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def filled(kind, k=20, d=5):
    codes = kind(k, d)
    codes.weight.data = random(k, d, scale=3.0)
    return codes


@pytest.mark.parametrize("kind", [TableCodes, UnitCodes])
def test_a_table_gives_back_its_rows(kind):
    codes = filled(kind)
    assert isinstance(codes, Codes)
    tokens = torch.randint(0, 20, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    embedded = codes.embed(tokens)
    assert embedded.shape == (2, 5, 3, 4)
    assert torch.equal(embedded[1, :, 2, 0], codes.table()[tokens[1, 2, 0]])
    assert torch.equal(codes.nearest(embedded).tokens, tokens)
    assert (codes.k, codes.d) == (20, 5)
    assert not codes.weight.requires_grad


def test_unit_codes_are_compared_by_angle():
    codes, rows = filled(UnitCodes), random(100, 5, seed=1)
    assert torch.allclose(codes.table().norm(dim=1), torch.ones(20))
    by_angle = (F.normalize(rows, dim=1).double() @ F.normalize(codes.weight, dim=1).double().T).argmax(1)
    assert torch.equal(codes.nearest(as_grid(rows)).tokens[0, 0], by_angle)
    longer = codes.nearest(as_grid(rows * 7))
    assert torch.equal(longer.tokens[0, 0], by_angle)


@pytest.mark.parametrize("name", VALUES)
def test_a_lattice_is_the_table_that_counting_gives(name):
    values, last_is_least = VALUES[name]
    codes, table = LatticeCodes(values, last_is_least=last_is_least), table_of(values, last_is_least)
    assert isinstance(codes, Codes)
    assert (codes.k, codes.d) == tuple(table.shape)
    assert torch.equal(codes.table(), table)
    everything = torch.arange(codes.k)[None, None]
    assert torch.equal(codes.embed(everything), as_grid(table))
    assert torch.equal(codes.nearest(as_grid(table)).tokens, everything)


@pytest.mark.parametrize("name", VALUES)
def test_the_nearest_lattice_point_is_that_of_the_slow_way(name):
    values, last_is_least = VALUES[name]
    codes, rows = LatticeCodes(values, last_is_least=last_is_least), random(300, len(values), seed=4)
    choice = codes.nearest(as_grid(rows))
    assert torch.equal(choice.tokens[0, 0], slow_nearest(rows, table_of(values, last_is_least)))
    assert not choice.doubtful.any()


def test_a_value_near_a_border_is_a_doubt_and_zero_is_no_bit():
    codes = LatticeCodes([(-1.0, 1.0)] * 2)
    choice = codes.nearest(as_grid(torch.tensor([[0.0, 1.0], [1e-7, -1.0], [0.5, 0.5], [1e-4, 100.0]])))
    assert choice.tokens.tolist() == [[[2, 1, 3, 3]]]
    assert choice.doubtful.tolist() == [[[True, True, False, True]]]


def test_a_table_too_big_to_be_written_down_is_refused_and_not_needed():
    codes = LatticeCodes([(-1.0, 1.0)] * 40)
    with pytest.raises(ModelError, match="a table of 1099511627776 codes of 40 numbers is too big"):
        codes.table()
    tokens = torch.tensor([[[0, 2**40 - 1, 2**39, 12345678901]]])
    assert torch.equal(codes.nearest(codes.embed(tokens)).tokens, tokens)


def test_gradients_go_through_an_embedding_and_not_into_the_lattice():
    codes = LatticeCodes([(-1.0, 1.0)] * 3)
    assert not codes.embed(torch.tensor([[[1, 2]]])).requires_grad
    assert codes.nearest(random(1, 3, 2, 2).requires_grad_()).tokens.shape == (1, 2, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Stacks


@pytest.fixture
def stacked():
    first, second = filled(TableCodes, 6), filled(UnitCodes, 9)
    levels = (
        Level(name="top", grid=(1, 2), codes=(0, 6)),
        Level(name="bottom", grid=(2, 2), codes=(6, 15)),
    )
    return StackedCodes([first, second], levels)


def test_a_stack_numbers_its_codes_through(stacked):
    assert isinstance(stacked, Codes)
    first, second = stacked.parts
    assert (stacked.k, stacked.d) == (15, 5)
    assert torch.equal(stacked.table(), torch.cat([first.table(), second.table()]))
    everything = torch.arange(15)[None, None]
    assert torch.equal(stacked.embed(everything), as_grid(stacked.table()))


def test_a_stack_looks_for_each_level_in_its_own_codebook(stacked):
    tokens = join_levels([torch.tensor([[[0, 5]]]), torch.tensor([[[6, 14], [7, 9]]])])
    choice = stacked.nearest(stacked.embed(tokens))
    assert torch.equal(choice.tokens, tokens)
    assert choice.doubtful.shape == tokens.shape
    # A code of the other level finds the nearest of its own.
    strange = stacked.nearest(stacked.embed(torch.full_like(tokens, 3))).tokens
    assert (strange[0, 0, :2] == 3).all()
    assert (strange[0, 0, 2:] >= 6).all()


def test_a_stack_wants_whole_rows(stacked):
    with pytest.raises(ShapeError, match=r"a row of 2 levels has shape \(1, 5, 1, 5\)"):
        stacked.nearest(torch.zeros(1, 5, 1, 5))
