"""Random draws that belong to an image."""

import torch

from vqcortex.seeds import generator_for, number_for


def test_the_same_names_give_the_same_draws():
    a, b = (torch.rand(3, generator=generator_for(0, "cat/1", "noise")) for _ in range(2))
    assert torch.equal(a, b)


def test_seed_image_and_purpose_each_change_the_draw():
    numbers = {number_for(*key) for key in [(0, "a", "x"), (1, "a", "x"), (0, "b", "x"), (0, "a", "y")]}
    assert len(numbers) == 4
    assert all(0 <= number < 2**63 for number in numbers)


def test_a_known_number_stays_what_it_is():
    # Stored studies depend on it: a change here changes every draw ever made.
    assert number_for(0, "a") == 6841154156042874738
