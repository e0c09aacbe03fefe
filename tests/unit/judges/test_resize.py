"""Pictures of any size at the one size of a judge."""

import pytest
import torch

from vqcortex.judges.resize import squared


def test_an_image_of_the_right_size_is_left_alone():
    image = torch.rand(1, 3, 8, 8)
    assert squared(image, 8) is image


@pytest.mark.parametrize("size", [(4, 4), (256, 256), (7, 30), (30, 7), (9, 9)])
def test_any_image_becomes_a_square_of_the_same_range(size):
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    small = squared(image, 8)
    assert small.shape == (2, 3, 8, 8)
    assert 0 <= small.min() <= small.max() <= 1


def test_what_shrinks_is_averaged_and_not_sampled():
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * torch.ones(1, 3, 1, 1)
    torch.testing.assert_close(squared(board.float(), 8)[..., 1:-1, 1:-1], torch.full((1, 3, 6, 6), 0.5))


def test_company_changes_nothing():
    images = torch.rand(5, 3, 20, 20)
    torch.testing.assert_close(torch.cat([squared(one[None], 8) for one in images]), squared(images, 8))
