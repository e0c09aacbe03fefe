from __future__ import annotations

import pytest
import torch
from leveled import TWO, LeveledAdapter, grids_of

from vqcortex.adapters.protocol import join_levels
from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError
from vqcortex.evaluation.fills import (
    Black,
    Grey,
    MeanCode,
    ResampledCodes,
    code_frequency,
    decoded,
    over_pixels,
)

CORNER = torch.tensor([[[True, False], [False, False]]])
TOKENS = torch.tensor([[[7, 7], [1, 2]]])
TOY = ToyAdapter(grid=(2, 2))


@pytest.mark.parametrize(("fill", "level"), [(Black(), 0.0), (Grey(), 0.5), (Grey(level=0.25), 0.25)])
def test_flat_fills_paint_the_block_of_a_position_and_nothing_else(fill, level):
    pixels = fill(TOY, TOKENS, CORNER, ["a"])
    expected = decoded(TOY, TOKENS).clone()
    expected[:, :, :4, :4] = level
    assert torch.equal(pixels, expected)


def test_decoded_pixels_that_are_passed_in_are_used_and_kept():
    pixels = torch.full((1, 3, 8, 8), 0.75)
    found = Black()(TOY, TOKENS, CORNER, ["a"], pixels)
    assert found[0, 0, 0, 0] == 0
    assert found[0, 0, 7, 7] == 0.75
    assert (pixels == 0.75).all()


def test_pixels_of_sizes_that_do_not_divide_belong_to_the_nearest_position():
    hidden = torch.tensor([[[True, False, True]]])
    wide = over_pixels(hidden, (2, 7))[0, 0]
    assert wide.tolist() == [True, True, True, False, False, True, True]  # columns 0-2, 3-4, 5-6


def test_the_mean_code_is_weighted_by_usage():
    frequency = torch.zeros(8)
    frequency[4], frequency[1] = 3.0, 1.0  # three times red, once blue
    pixels = MeanCode(frequency=frequency)(TOY, TOKENS, CORNER, ["a"])
    assert pixels[0, :, 0, 0].tolist() == [0.75, 0.0, 0.25]
    assert torch.equal(pixels[:, :, :, 4:], decoded(TOY, TOKENS)[:, :, :, 4:])


def test_the_mean_code_may_differ_from_position_to_position():
    frequency = torch.zeros(8, 2, 2)
    frequency[4], frequency[2, 0, 0] = 1.0, 1.0
    pixels = MeanCode(frequency=frequency)(TOY, TOKENS, torch.ones_like(CORNER), ["a"])
    assert pixels[0, :, 0, 0].tolist() == [0.5, 0.5, 0.0]
    assert pixels[0, :, 7, 7].tolist() == [1.0, 0.0, 0.0]


def test_codes_are_drawn_by_their_frequency():
    frequency = torch.tensor([0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    drawn = ResampledCodes(frequency=frequency).drawn(8, (10, 10), [str(i) for i in range(40)])
    counts = torch.bincount(drawn.flatten(), minlength=8) / drawn.numel()
    assert counts[[0, 2, 3, 4, 5, 7]].sum() == 0
    assert counts[1].item() == pytest.approx(0.75, abs=0.03)  # 4,000 draws: standard error 0.007


def test_a_code_that_is_never_used_is_not_drawn_even_at_the_edge(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, generator: torch.zeros(shape, dtype=dtype))
    frequency = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    assert ResampledCodes(frequency=frequency).drawn(8, (1, 1), ["a"]).item() == 2


def test_codes_can_be_drawn_by_position():
    frequency = torch.zeros(8, 2, 2)
    frequency[3, 0], frequency[5, 1] = 1.0, 1.0
    drawn = ResampledCodes(frequency=frequency).drawn(8, (2, 2), ["a", "b"])
    assert drawn.tolist() == [[[3, 3], [5, 5]]] * 2


def test_draws_belong_to_the_image_and_the_seed():
    fill = ResampledCodes(frequency=torch.ones(8))
    first, second = fill.drawn(8, (5, 5), ["a", "b"])
    assert torch.equal(fill.drawn(8, (5, 5), ["b"])[0], second)
    assert not torch.equal(first, second)
    assert not torch.equal(ResampledCodes(frequency=torch.ones(8), seed=1).drawn(8, (5, 5), ["a"])[0], first)


def test_frequencies_are_counted():
    tokens = torch.tensor([[[0, 1]], [[0, 2]]])
    assert code_frequency(tokens, 4).tolist() == [0.5, 0.25, 0.25, 0.0]
    by_position = code_frequency(tokens, 4, by_position=True)
    assert by_position[:, 0, 0].tolist() == [1, 0, 0, 0]
    assert by_position[:, 0, 1].tolist() == [0, 0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("frequency", "words"),
    [
        (torch.ones(7), r"frequency has shape \(7,\) but \(8,\) or \(8, 2, 2\) is needed"),
        (torch.ones(8, 2, 3), r"frequency has shape \(8, 2, 3\)"),
        (torch.zeros(8), "must be finite, not negative, and above 0"),
        (-torch.ones(8), "must be finite, not negative"),
        (torch.full((8,), torch.nan), "must be finite"),
    ],
)
@pytest.mark.parametrize("fill", [MeanCode, ResampledCodes])
def test_frequencies_that_mean_nothing_are_refused(fill, frequency, words):
    with pytest.raises(ConfigError, match=words):
        fill(frequency=frequency)(TOY, TOKENS, CORNER, ["a"])


def test_a_hidden_token_of_any_level_covers_its_part_of_the_picture():
    model = LeveledAdapter(TWO)
    tokens = grids_of(TWO, 1)
    top, bottom = torch.zeros(1, 2, 2, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)
    top[0, 0, 1], bottom[0, 3, 0] = True, True
    shown = Grey()(model, tokens, join_levels([top, bottom]), ["a"], torch.zeros(1, 3, 24, 24))[0, 0]
    wanted = torch.zeros(24, 24)
    wanted[:12, 12:], wanted[18:, :6] = 0.5, 0.5
    assert torch.equal(shown, wanted)
