"""Editing again, naively, from the formulas."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from vqcortex.editing.footprint import Place, derivative_along, dilated, measure_footprint
from vqcortex.editing.generator import FromGenerator
from vqcortex.editing.measure import measure_leak, similarity
from vqcortex.editing.protocol import Means, Task, embed
from vqcortex.editing.smallest import Smallest
from vqcortex.seeds import generator_for

CODES = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))


def decoder():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Upsample(scale_factor=2), nn.Conv2d(6, 3, 3, padding=1)
    )


def test_derivatives_are_those_of_small_steps():
    decode = decoder().double()
    embedded = torch.randn(1, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ways = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    positions, step = torch.tensor([0, 4, 5, 8]), 1e-5
    found = derivative_along(decode, embedded, positions, ways)
    for number, place in enumerate(positions.tolist()):
        move = torch.zeros_like(embedded)
        move[0, :, place // 3, place % 3] = ways[number] * step
        with torch.no_grad():
            slope = (decode(embedded + move) - decode(embedded - move)) / (2 * step)
        torch.testing.assert_close(found[number], slope[0].abs().mean(0), atol=1e-7, rtol=1e-6)


def test_a_footprint_is_the_share_of_change_within_each_distance():
    decode, place = decoder(), Place(grid=(3, 3), size=(6, 6))
    tokens = torch.randint(5, (2, 3, 3), generator=torch.Generator().manual_seed(4))
    found = measure_footprint(decode, CODES, torch.ones(5, dtype=torch.bool), tokens, ["a", "b"], place, each=3, seed=7)
    total = [0.0, 0.0, 0.0]
    for grid, name in zip(tokens, ["a", "b"], strict=True):
        source = generator_for(7, name, "footprint")
        positions = torch.randperm(9, generator=source)[:3]
        codes = torch.randint(5, (3,), generator=source)
        for position, code in zip(positions.tolist(), codes.tolist(), strict=True):
            other = grid.clone()
            other[position // 3, position % 3] = code
            with torch.no_grad():
                away = (decode(embed(other[None], CODES)) - decode(embed(grid[None], CODES)))[0].abs().mean(0)
            for row, column in itertools.product(range(6), range(6)):
                distance = max(abs(row // 2 - position // 3), abs(column // 2 - position % 3))
                total[distance] += float(away[row, column])
    shares = torch.tensor(total, dtype=torch.float64).cumsum(0) / sum(total)
    torch.testing.assert_close(found.swapped, shares, atol=1e-6, rtol=1e-5)


def test_dilation_marks_every_position_near_enough():
    free = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(5)) < 0.1
    found = dilated(free, 2)
    for image, row, column in itertools.product(range(3), range(5), range(6)):
        near = free[image, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].any()
        assert bool(found[image, row, column]) == bool(near)


def test_similarity_is_its_formula_window_by_window():
    one, other = torch.rand(2, 1, 3, 9, 8, generator=torch.Generator().manual_seed(6)).double()
    found = similarity(one, other)
    for row, column in ((0, 0), (4, 4), (8, 7), (2, 6)):
        values = []
        for channel in range(3):
            window = (slice(max(0, row - 3), row + 4), slice(max(0, column - 3), column + 4))
            x, y = one[0, channel][window].flatten(), other[0, channel][window].flatten()
            shared = ((x - x.mean()) * (y - y.mean())).mean()
            top = (2 * x.mean() * y.mean() + 1e-4) * (2 * shared + 9e-4)
            bottom = (x.mean() ** 2 + y.mean() ** 2 + 1e-4) * (x.var(unbiased=False) + y.var(unbiased=False) + 9e-4)
            values.append(float(top / bottom))
        assert abs(float(found[0, row, column]) - sum(values) / 3) < 1e-9


def test_a_leak_is_a_mean_over_the_pixels_outside():
    one, other = torch.rand(2, 1, 3, 6, 6, generator=torch.Generator().manual_seed(8))
    inside = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(9)) < 0.5
    found, near = measure_leak(one, other, inside), similarity(one, other)
    outside = [(row, column) for row in range(6) for column in range(6) if not inside[0, row, column]]
    away = [float((one - other)[0, :, row, column].abs().mean()) for row, column in outside]
    assert abs(float(found.mean_absolute) - sum(away) / len(away)) < 1e-6
    assert float(found.visible) == sum(one > 8 / 255 for one in away) / len(away)
    assert abs(float(found.ssim) - sum(float(near[0, row, column]) for row, column in outside) / len(outside)) < 1e-9


def test_a_slope_is_a_mean_over_the_way_to_the_mean_code_of_positions_that_do_not_touch():
    torch.manual_seed(1)
    chooser = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3))
    tokens = torch.randint(5, (2, 3, 4), generator=torch.Generator().manual_seed(14))
    free = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(15)) < 0.7
    alive = torch.tensor([True, True, False, True, True])
    task = Task(
        tokens=tokens, free=free, source=torch.tensor([0, 2]), target=torch.tensor([1, 0]), image_ids=("a", "b")
    )
    found = Smallest(path=3, sureness=50.0).slopes(
        task, tokens, Means(codebook=CODES, alive=alive, choosers=(chooser,))
    )
    middle = CODES[alive].mean(0)
    for image, row, column in itertools.product(range(2), range(3), range(4)):
        wanted = torch.zeros(3)
        for step in range(3) if free[image, row, column] else ():
            point = embed(tokens[[image]], CODES)
            for i, j in itertools.product(range(3), range(4)):
                if free[image, i, j] and i % 2 == row % 2 and j % 2 == column % 2:
                    point[0, :, i, j] += (step + 0.5) / 3 * (middle - point[0, :, i, j])
            point.requires_grad_()
            logits = chooser(point)[0]
            (logits[task.target[image]] - logits[task.source[image]]).backward()
            wanted += point.grad[0, :, row, column] / 3
        torch.testing.assert_close(found[image, :, row, column], wanted, atol=1e-6, rtol=1e-5)


class Linear(nn.Module):
    """Logits that are a sum over positions: the best swaps are those of the largest gain, whatever else is swapped."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(3, 3, 2, 3, generator=torch.Generator().manual_seed(10))  # (c, d, h, w)

    def forward(self, embedded):
        return torch.einsum("bdhw,cdhw->bc", embedded, self.weight)


def test_the_smallest_edit_is_the_shortest_there_is_where_swaps_add_up():
    tokens = torch.randint(5, (6, 2, 3), generator=torch.Generator().manual_seed(11))
    chooser, sure = Linear(), 1.5
    source, target = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
    task = Task(
        tokens=tokens, free=torch.ones_like(tokens, dtype=torch.bool), source=source, target=target,
        image_ids=tuple("abcdef"),
    )  # fmt: skip
    means = Means(codebook=CODES, alive=torch.ones(5, dtype=torch.bool), choosers=(chooser,))
    found = Smallest(sureness=sure, candidates=30)(task, means)

    def lead(grids):
        logits = chooser(embed(grids, CODES))
        return logits[:, 1] - logits[:, 0]

    for image, grid in enumerate(tokens):
        for size in range(7):
            wins = False
            for places in itertools.combinations(range(6), size):
                every = torch.tensor(list(itertools.product(range(5), repeat=size)), dtype=torch.int64)
                grids = grid.flatten().repeat(len(every), 1)
                grids[:, list(places)] = every
                wins = wins or bool((lead(grids.view(-1, 2, 3)) >= sure).any())
            if wins:
                break
        assert int((found[image] != grid).sum()) == size if wins else float(lead(found[image][None])) < sure


def test_the_generator_draws_each_position_given_those_before_it():
    def chances(grids, target):
        seen = grids.flatten(1).cumsum(1).roll(1, 1)
        seen[:, 0] = 0
        logits = torch.sin(seen[:, None] + torch.arange(5.0)[None, :, None] * (1 + target[:, None, None]))
        return logits.log_softmax(1).unflatten(2, grids.shape[1:])

    tokens = torch.randint(5, (3, 2, 3), generator=torch.Generator().manual_seed(12))
    free = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(13)) < 0.6
    free[:, 0, 0] = True
    task = Task(tokens=tokens, free=free, source=torch.tensor([0, 0, 1]), target=torch.tensor([1, 2, 2]),
                image_ids=("x", "y", "z"), seed=4)  # fmt: skip
    means = Means(codebook=CODES, alive=torch.tensor([True, True, False, True, True]), chances=chances)
    found = FromGenerator(draws=1)(task, means)
    for image, name in enumerate(task.image_ids):
        even = torch.rand(6, generator=generator_for(4, name, int(task.target[image]), 0, "resampled")).double()
        grid = tokens[image].clone()
        for place in range(6):
            if not free[image].flatten()[place]:
                continue
            chance = chances(grid[None], task.target[[image]])[0, :, place // 3, place % 3].exp().double()
            chance[2] = 0
            chance = chance / chance.sum()
            code, mass = 0, float(chance[0])
            while mass <= float(even[place]):
                code += 1
                mass += float(chance[code])
            grid[place // 3, place % 3] = code
        assert torch.equal(found[image], grid)
