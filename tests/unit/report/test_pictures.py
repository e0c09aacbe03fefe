from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vqcortex.report import pictures


def opened(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1])))


def colourful(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)


def test_a_small_picture_comes_back_pixel_for_pixel():
    pixels = colourful(28, 20)
    address = pictures.picture_address(pixels)
    assert address.startswith("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(opened(address).convert("RGB")), pixels)


def test_a_grey_picture_comes_back_too_and_costs_less():
    grey = np.repeat(colourful(28, 28)[..., :1], 3, 2)
    np.testing.assert_array_equal(np.asarray(opened(pictures.picture_address(grey)).convert("RGB")), grey)
    assert len(pictures.picture_address(grey)) < len(pictures.picture_address(colourful(28, 28)))


def test_a_photograph_is_reduced_and_keeps_its_shape():
    address = pictures.picture_address(colourful(256, 512))
    assert address.startswith("data:image/jpeg;base64,")
    assert opened(address).size == (192, 96)


@pytest.mark.parametrize(("side", "shown"), [(12, 12), (64, 64), (200, 64)])
def test_a_strip_holds_its_pictures_side_by_side(side: int, shown: int):
    assert opened(pictures.strip_address(colourful(6, side, side), 64)).size == (6 * shown, shown)


def test_a_strip_keeps_the_order_of_its_pictures():
    patches = colourful(3, 4, 4)
    strip = np.asarray(opened(pictures.strip_address(patches)).convert("RGB"))
    np.testing.assert_array_equal(strip, np.concatenate(list(patches), 1))


def test_an_overlay_is_warm_above_zero_cool_below_and_clear_at_zero():
    pixels = pictures.overlay_pixels(np.array([[2.0, -1.0, 0.0]], np.float32))
    assert tuple(pixels[0, 0]) == (*pictures.WARM, 255)
    assert tuple(pixels[0, 1]) == (*pictures.COOL, 128)
    assert pixels[0, 2, 3] == 0


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_overlay_without_any_importance_is_clear(value: float):
    assert pictures.overlay_pixels(np.full((2, 3), value, np.float32))[..., 3].tolist() == [[0] * 3] * 2


def test_the_highest_cells_come_best_first_and_ties_in_reading_order():
    scores = np.array([[0.0, 3.0], [3.0, np.nan], [5.0, -1.0]], np.float32)
    assert pictures.top_cells(scores, 4) == [(2, 0), (0, 1), (1, 0), (0, 0)]


def test_more_cells_than_there_are_gives_all_of_them():
    assert len(pictures.top_cells(np.zeros((2, 2), np.float32), 9)) == 4


def test_a_cell_is_drawn_where_it_is():
    assert pictures.cells_path([(1, 2)]) == "M2 1h1v1h-1z"


def test_an_outline_runs_only_where_free_meets_fixed():
    free = np.zeros((4, 4), bool)
    free[1:3, 1:3] = True
    path = pictures.outline_path(free)
    assert path.count("h1") == path.count("v1") == 4
    assert "M2 2" not in path.replace("M2 3", "")  # nothing inside the region


def test_a_strip_repeats_the_outline_once_per_picture_even_at_the_edge():
    everywhere = np.ones((2, 2), bool)
    assert pictures.strip_outline(everywhere, 3).count("v1") == 3 * 4
    assert "M5 0h1" in pictures.strip_outline(everywhere, 3)
