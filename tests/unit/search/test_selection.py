from __future__ import annotations

import math

import pytest
import torch

from vqcortex.errors import ConfigError
from vqcortex.search.problem import pose
from vqcortex.search.selection import TokenSelection, gumbel, start_logits, straight_through, temperature_at
from vqcortex.seeds import generator_for

FREE = torch.tensor([[True, False, True]])


def problem(codes: int = 6, **more):
    codebook = torch.randn(codes, 2, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[[0, 1, 2]], [[3, 2, 1]]])
    return pose(codebook, tokens, FREE, torch.tensor([1, 0]), ["a", "b"], **more)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2.0, 2.0, 2.0, 2.0, 2.0]),
        ("linear", [2.0, 1.625, 1.25, 0.875, 0.5]),
        ("cosine", [2.0, 0.5 + 0.75 * (1 + math.sqrt(0.5)), 1.25, 0.5 + 0.75 * (1 - math.sqrt(0.5)), 0.5]),
    ],
)
def test_the_temperature_goes_from_the_first_to_the_last_step(schedule, expected):
    found = [temperature_at(step, 5, 2.0, 0.5, schedule) for step in range(5)]
    assert found == pytest.approx(expected)


def test_a_single_step_has_the_first_temperature():
    assert temperature_at(0, 1, 2.0, 0.5, "linear") == 2.0


def test_the_written_out_gradient_equals_autograd():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, generator=rng, requires_grad=True)
    codes, gradient = torch.randn(7, 4, generator=rng), torch.randn(2, 3, 4, generator=rng)
    soft = logits.softmax(2)
    (wanted,) = torch.autograd.grad(((soft @ codes) * gradient).sum(), logits)
    torch.testing.assert_close(straight_through(gradient, codes, soft.detach()), wanted)


def test_gumbel_noise_has_the_gumbel_mean_and_spread():
    noise = gumbel([generator_for(0, name) for name in "abcd"], torch.empty(4, 5, 20000))
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.std().item() == pytest.approx(math.pi / math.sqrt(6), rel=0.01)


def test_gumbel_noise_of_a_row_knows_nothing_of_the_others():
    together = gumbel([generator_for(0, name) for name in "ab"], torch.empty(2, 3, 4))
    alone = gumbel([generator_for(0, "b")], torch.empty(1, 3, 4))
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])


def test_even_a_draw_of_zero_gives_finite_noise(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, *, generator, out: out.zero_())
    assert gumbel([generator_for(0)], torch.empty(1, 1, 2)).isfinite().all()


@pytest.mark.parametrize(("margin", "above"), [(None, math.log(5)), (0.25, 0.25)])
def test_the_images_code_starts_the_margin_above_every_other(margin, above):
    logits = start_logits(TokenSelection(margin=margin, spread=1.0), problem())
    assert logits.argmax(2).tolist() == [[0, 2], [3, 1]]
    best = logits.topk(2, dim=2).values
    torch.testing.assert_close(best[..., 0] - best[..., 1], torch.full((2, 2), above))


def test_the_default_margin_makes_the_image_code_drawn_half_of_the_time():
    logits = start_logits(TokenSelection(spread=0.0), problem())
    torch.testing.assert_close(logits.softmax(2).amax(2), torch.full((2, 2), 0.5))


def test_from_the_mean_every_code_starts_alike():
    assert not start_logits(TokenSelection(spread=0.0, start="mean"), problem()).any()


@pytest.mark.parametrize("start", ["image", "mean", "random"])
def test_the_best_codes_of_a_linear_extractor_are_found(start):
    rows = problem()
    torch.manual_seed(0)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 2))
    search = TokenSelection(steps=100, rate=0.3, start=start)
    trace = search(linear, rows.codebook, rows.grids, FREE, rows.target, ["a", "b"])
    worth = rows.codebook @ linear[1].weight.detach().view(2, 2, 3)[rows.target]  # (b, k, w)
    assert torch.equal(trace.tokens[:, 0, FREE], worth.argmax(1)[:, FREE[0]])


def test_a_single_live_code_is_all_there_is_to_choose():
    rows = problem()
    alive = torch.arange(6) == 4
    search = TokenSelection(steps=2, alive=alive)
    extractor = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 2))
    trace = search(extractor, rows.codebook, rows.grids, FREE, rows.target, ["a", "b"])
    assert (trace.tokens[:, :, FREE] == 4).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature_end": math.nan}, "temperature_end=nan must be above 0"),
        ({"margin": 0.0}, "margin=0.0 must be above 0 and finite, or None"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        TokenSelection(**wrong)
