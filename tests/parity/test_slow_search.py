"""The codebook level again, naively, from the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.search.embedding import EmbeddingOptimisation
from vqcortex.search.random_codes import RandomCodes
from vqcortex.search.selection import TokenSelection
from vqcortex.search.traverse import swap_effects, verify_cells
from vqcortex.seeds import generator_for

TOY = ToyAdapter()
IDS = ["x", "y"]
STEPS, RATE, SEED, SPREAD = 30, 0.05, 7, 0.3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 6, 3, padding=1)
        self.out = nn.Linear(6 * 16, 8)

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        return self.out(self.mix(embedded).tanh().flatten(1))


@pytest.fixture
def extractor() -> nn.Module:
    torch.manual_seed(3)
    return Net().eval()


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    tokens = TOY.generate(torch.tensor([0, 3]), IDS, seed=0)
    free = torch.zeros(4, 4, dtype=torch.bool)
    free[0, 2] = free[1:3, 1:3] = True
    return tokens, free, torch.tensor([7, 1])


def places(free: Tensor) -> list[tuple[int, int]]:
    return [(i, j) for i in range(4) for j in range(4) if free[i, j]]


def slow_swap_effects(extractor, tokens, codebook, concept):
    effect = torch.zeros(len(codebook), 4, 4)
    for grid in tokens:
        point = codebook[grid].permute(2, 0, 1)[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(extractor(point)[0, concept], point)
        for code in range(len(codebook)):
            for i in range(4):
                for j in range(4):
                    effect[code, i, j] += gradient[0, :, i, j] @ (codebook[code] - codebook[grid[i, j]])
    return effect


def slow_verify(extractor, tokens, codebook, concept, cells):
    means, errors = [], []
    for code, i, j in cells.tolist():
        changes = []
        for grid in tokens:
            edited = grid.clone()
            edited[i, j] = code
            logits = [extractor(codebook[one].permute(2, 0, 1)[None])[0, concept].item() for one in (grid, edited)]
            changes.append(logits[1] - logits[0])
        mean = sum(changes) / len(changes)
        variance = sum((one - mean) ** 2 for one in changes) / (len(changes) - 1)
        means.append(mean)
        errors.append(math.sqrt(variance / len(changes)))
    return torch.tensor(means), torch.tensor(errors)


def slow_start(grid, free, name, restart, codebook, start):
    """The first code of each free position (None: the mean) and the perturbation of the logits."""
    count = len(places(free))
    moved = SPREAD * torch.randn(count, len(codebook), generator=generator_for(SEED, name, restart, "start"))
    if start == "image":
        return [int(grid[i, j]) for i, j in places(free)], moved
    if start == "random":
        rng = generator_for(SEED, name, restart, "start codes")
        return torch.randint(len(codebook), (count,), generator=rng).tolist(), moved
    return None, moved


def embedding_with(grid, free, codes, codebook):
    embedded = codebook[grid].permute(2, 0, 1)[None].clone()
    for number, (i, j) in enumerate(places(free)):
        embedded[0, :, i, j] = codes[number]
    return embedded


def tokens_with(grid, free, chosen):
    grid = grid.clone()
    for number, (i, j) in enumerate(places(free)):
        grid[i, j] = chosen[number]
    return grid


def slow_token_selection(extractor, grid, free, target, name, restart, codebook, start, end):
    first, logits = slow_start(grid, free, name, restart, codebook, start)
    for number, code in enumerate(first or []):
        logits[number, code] = logits[number].max() + math.log(len(codebook) - 1)
    logits.requires_grad_()
    adam = torch.optim.Adam([logits], lr=RATE)
    rng = generator_for(SEED, name, restart, "gumbel")
    for step in range(STEPS):
        temperature = 1 + (end - 1) * step / (STEPS - 1)
        noise = -(-torch.rand(logits.shape, generator=rng).log()).log()
        soft = ((logits + noise) / temperature).softmax(1)
        hard = torch.zeros_like(soft)
        for row, weights in zip(hard, soft, strict=True):
            row[weights.argmax()] = 1
        chosen = (hard + soft - soft.detach()) @ codebook
        loss = -extractor(embedding_with(grid, free, chosen, codebook))[0, target]
        adam.zero_grad()
        loss.backward()
        adam.step()
    return tokens_with(grid, free, logits.argmax(1))


def slow_embedding_optimisation(extractor, grid, free, target, name, restart, codebook, start):
    first, moved = slow_start(grid, free, name, restart, codebook, start)
    mean = codebook.mean(0)
    base = codebook[first] if first else mean.expand(len(moved), -1)
    point = (
        base + sum(moved[:, [v]] * (codebook[v] - mean) for v in range(len(codebook))) / len(codebook) ** 0.5
    ).clone()
    point.requires_grad_()
    adam = torch.optim.Adam([point], lr=RATE)
    for _ in range(STEPS):
        loss = -extractor(embedding_with(grid, free, point, codebook))[0, target]
        adam.zero_grad()
        loss.backward()
        adam.step()
    away = (point.detach()[:, None] - codebook).square().sum(2).tolist()
    chosen = [min(range(len(codebook)), key=row.__getitem__) for row in away]
    return tokens_with(grid, free, torch.tensor(chosen))


def test_swap_effects_equal_a_loop_over_images_codes_and_positions(extractor, case):
    tokens, _, _ = case
    fast = swap_effects(extractor, TOY.embed(tokens), tokens, TOY.codebook, 4)
    torch.testing.assert_close(fast, slow_swap_effects(extractor, tokens, TOY.codebook, 4), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_verified_cells_equal_one_swap_at_a_time(extractor, case, batch):
    tokens, _, _ = case
    cells = torch.tensor([[0, 0, 0], [7, 3, 3], [2, 1, 2], [5, 0, 3]])
    mean, error = verify_cells(extractor, [tokens], TOY.codebook, 4, cells, batch=batch)
    slow_mean, slow_error = slow_verify(extractor, tokens, TOY.codebook, 4, cells)
    torch.testing.assert_close(mean, slow_mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(error, slow_error, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("start", ["image", "mean", "random"])
@pytest.mark.parametrize("end", [1.0, 0.2])
def test_token_selection_equals_one_image_at_a_time(extractor, case, start, end):
    tokens, free, target = case
    search = TokenSelection(
        steps=STEPS,
        rate=RATE,
        seed=SEED,
        restarts=2,
        spread=SPREAD,
        start=start,
        schedule="linear",
        temperature_end=end,
    )
    found = search(extractor, TOY.codebook, tokens, free, target, IDS).tokens
    for b, name in enumerate(IDS):
        for r in range(2):
            slow = slow_token_selection(extractor, tokens[b], free, target[b], name, r, TOY.codebook, start, end)
            assert torch.equal(found[b, r], slow)
    assert not torch.equal(found[:, 0], tokens)


@pytest.mark.parametrize("start", ["image", "mean", "random"])
def test_embedding_optimisation_equals_one_image_at_a_time(extractor, case, start):
    tokens, free, target = case
    search = EmbeddingOptimisation(steps=STEPS, rate=RATE, seed=SEED, restarts=2, spread=SPREAD, start=start)
    found = search(extractor, TOY.codebook, tokens, free, target, IDS).tokens
    for b, name in enumerate(IDS):
        for r in range(2):
            slow = slow_embedding_optimisation(extractor, tokens[b], free, target[b], name, r, TOY.codebook, start)
            assert torch.equal(found[b, r], slow)


def test_random_codes_equal_one_draw_per_image_and_restart(extractor, case):
    tokens, free, target = case
    alive = torch.tensor([True, False, True, True, False, False, False, True])
    found = RandomCodes(seed=SEED, restarts=3, alive=alive)(extractor, TOY.codebook, tokens, free, target, IDS).tokens
    for b, name in enumerate(IDS):
        for r in range(3):
            rng = generator_for(SEED, name, r, "random codes")
            chosen = [[0, 2, 3, 7][one] for one in torch.randint(4, (5,), generator=rng).tolist()]
            assert torch.equal(found[b, r], tokens_with(tokens[b], free, torch.tensor(chosen)))
