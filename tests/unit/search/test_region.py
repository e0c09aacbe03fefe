from __future__ import annotations

import pytest
import torch

from vqcortex.errors import ConfigError
from vqcortex.search.region import region_mask


@pytest.mark.parametrize(
    ("text", "grid", "rows", "columns"),
    [
        ("all", (3, 5), range(3), range(5)),
        ("centre", (16, 16), range(6, 10), range(6, 10)),
        ("centre", (7, 7), range(2, 4), range(2, 4)),
        ("centre", (1, 2), range(1), range(1)),
        ("2:6,0:4", (8, 8), range(2, 6), range(4)),
        (" 0:1 , 1:2 ", (1, 2), range(1), range(1, 2)),
    ],
)
def test_a_region_covers_its_rows_and_columns(text, grid, rows, columns):
    wanted = torch.tensor([[i in rows and j in columns for j in range(grid[1])] for i in range(grid[0])])
    assert torch.equal(region_mask(text, grid), wanted)


@pytest.mark.parametrize("text", ["", "middle", "2:6", "1:2;0:4", "-1:2,0:4"])
def test_text_that_is_no_region_is_named(text):
    with pytest.raises(ConfigError, match=f"cannot read region '{text}'"):
        region_mask(text, (4, 4))


@pytest.mark.parametrize("text", ["2:2,0:4", "3:2,0:4", "0:5,0:4", "0:4,1:9"])
def test_a_region_that_is_empty_or_outside_is_named(text):
    with pytest.raises(ConfigError, match="is empty or outside the grid of 4 rows and 4 columns"):
        region_mask(text, (4, 4))
