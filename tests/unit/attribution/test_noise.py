from __future__ import annotations

import pytest
import torch

from vqcortex.attribution import noise
from vqcortex.attribution.noise import SAMPLINGS, sampling_problems, unit_noises

LIKE = torch.empty(2, 3, 10, 10)


def drawn(draws: int, sampling: str, seed: int = 0, like: torch.Tensor = LIKE, ids=("a", "b")) -> torch.Tensor:
    return torch.stack(list(unit_noises(like, ids, draws, sampling, seed)))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_draw_is_standard_normal(sampling):
    for one in drawn(3, sampling):
        assert float(one.mean()) == pytest.approx(0, abs=0.15)
        assert float(one.std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_numbers_belong_to_seed_and_image(sampling):
    both = drawn(3, sampling)
    assert torch.equal(drawn(3, sampling, like=LIKE[:1], ids=("b",))[:, 0], both[:, 1])
    assert not torch.allclose(both[:, 0], both[:, 1])
    assert not torch.allclose(drawn(3, sampling, seed=1), both)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_type_follows_and_the_numbers_stay(sampling):
    double = drawn(2, sampling, like=LIKE.double())
    assert double.dtype == torch.float64
    assert torch.equal(double.float(), drawn(2, sampling))


def test_antithetic_draws_come_in_opposite_pairs_and_an_odd_last_one_alone():
    found = drawn(5, "antithetic")
    assert torch.equal(found[1], -found[0])
    assert torch.equal(found[3], -found[2])
    assert torch.equal(found[0::2], drawn(3, "plain"))


def test_stratified_draws_visit_every_slice_of_the_normal_once_in_every_coordinate():
    share = torch.special.ndtr(drawn(8, "quasi").double())
    assert torch.equal(
        (share * 8).floor().sort(0).values, torch.arange(8.0).double().view(8, 1, 1, 1, 1).expand_as(share)
    )
    assert not torch.equal(share[:, 0, 0, 0, 0].argsort(), share[:, 0, 0, 0, 1].argsort())


def test_an_unknown_way_of_drawing_is_named():
    assert list(sampling_problems("sobol")) == ["sampling='sobol' must be one of plain, antithetic, quasi"]


@pytest.mark.parametrize("mode", [False, True], ids=["usual", "inference"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_threads_change_no_number(sampling, mode, monkeypatch):
    like, ids = torch.empty(5, 3, 4, 4), tuple("abcde")
    monkeypatch.setattr(noise, "WORTH_THREADS", 1)
    found, before = [], torch.get_num_threads()
    try:
        with torch.inference_mode(mode):
            for threads in (1, 3):
                torch.set_num_threads(threads)
                found.append(drawn(2, sampling, like=like, ids=ids))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
