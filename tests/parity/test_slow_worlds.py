"""Marks and tests of planted worlds again, naively, from their definitions."""

from __future__ import annotations

import pytest
import torch

from vqcortex.significance import sign_flip_p
from vqcortex.worlds.measure import find_codes, mark, mean_per_code

SOURCE = torch.Generator().manual_seed(3)
SCORES = torch.randint(6, (20, 15), generator=SOURCE).float()  # many ties
TRUTH = torch.rand(20, 15, generator=SOURCE) < 0.3
TRUTH[:, 0], TRUTH[:, 1] = True, False
TOKENS = torch.randint(9, (40, 3, 4), generator=SOURCE)
IMPORTANCE = torch.randn(TOKENS.shape, generator=SOURCE)
CONCEPT = torch.randint(2, (40,), generator=SOURCE)


def test_marks_are_those_counted_pair_by_pair_and_place_by_place():
    fast = mark(SCORES, TRUTH, top=4)
    for row, (scores, truth) in enumerate(zip(SCORES.tolist(), TRUTH.tolist(), strict=True)):
        ones = [one for one, true in zip(scores, truth, strict=True) if true]
        others = [one for one, true in zip(scores, truth, strict=True) if not true]
        wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in ones for b in others)
        assert float(fast.auroc[row]) == pytest.approx(wins / (len(ones) * len(others)))
        best = sorted(zip(scores, truth, strict=True), key=lambda one: (-one[0], one[1]))
        found = [true for _, true in best]
        assert float(fast.precision[row]) == pytest.approx(sum(found[: len(ones)]) / len(ones))
        assert float(fast.recall[row]) == pytest.approx(sum(found[:4]) / len(ones))
        assert int(fast.worst[row]) == max(place for place, true in enumerate(found, 1) if true)


def test_a_code_is_averaged_over_every_position_that_holds_it():
    fast = mean_per_code(TOKENS, IMPORTANCE, 9)
    for code in range(9):
        held = [
            value
            for token, value in zip(TOKENS.flatten().tolist(), IMPORTANCE.flatten().tolist(), strict=True)
            if token == code
        ]
        assert float(fast[code]) == pytest.approx(sum(held) / len(held))


def test_codes_are_found_by_differences_of_pairs_and_the_step_up_rule():
    IMPORTANCE[CONCEPT == 1] += 2.0 * (TOKENS[CONCEPT == 1] == 5)
    fast = find_codes(TOKENS, IMPORTANCE, CONCEPT, 9, draws=799, seed=2)
    ones, others = ([row for row in range(40) if CONCEPT[row] == wanted] for wanted in (1, 0))
    rows = []
    for code in range(9):
        values = [
            sum(float(IMPORTANCE[row, r, c]) for r in range(3) for c in range(4) if TOKENS[row, r, c] == code)
            for row in range(40)
        ]
        rows.append([values[a] - values[b] for a, b in zip(ones, others, strict=False)])
    p = sign_flip_p(torch.tensor(rows, dtype=torch.float64), draws=799, seed=2).tolist()
    assert fast.tested.tolist() == list(range(9))
    assert fast.p.tolist() == pytest.approx(p)
    ordered = sorted(p)
    passed = [place for place, one in enumerate(ordered, 1) if one <= 0.05 * place / 9]
    bound = ordered[max(passed) - 1] if passed else -1
    assert fast.codes.tolist() == [code for code in range(9) if p[code] <= bound]
    assert 5 in fast.codes.tolist()
