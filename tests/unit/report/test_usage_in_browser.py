"""Opens the usage page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import MARKS, broken_pictures, click, emulate, ground, opened, started, too_wide
from leveled import LeveledAdapter, grids_of, study_of

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import Adapter, Level, one_level
from vqcortex.concepts.usage import levels_table, usage_table
from vqcortex.pipelines.settings import UsageSettings
from vqcortex.pipelines.usage import gather_usage
from vqcortex.report.usage import render_usage
from vqcortex.tokens.store import open_store

By = pytest.importorskip("selenium.webdriver.common.by").By

pytestmark = MARKS

MANY = tuple(
    Level(name=f"scale {one}", grid=(one, one), codes=(300 * one, 300 * one + 300)) for one in (1, 2, 3, 4, 6, 8)
)


def written(folder: Path, model: Adapter, levels: tuple[Level, ...]) -> str:
    store = open_store(study_of(folder / "study", model, [grids_of(levels, 40)]).path("tokens"))
    exhibit = gather_usage(store, model, UsageSettings())
    tables = levels_table(exhibit.usage), usage_table(exhibit.usage)
    path = folder / "usage of codes.html"
    path.write_text(render_usage(exhibit, *tables, command="vqcortex usage --out STUDY"), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        "toy": written(tmp_path_factory.mktemp("toy"), load_model("toy"), one_level((4, 4), 5)),
        "many": written(tmp_path_factory.mktemp("many"), LeveledAdapter(MANY), MANY),
        "blind": written(tmp_path_factory.mktemp("blind"), LeveledAdapter(MANY, abilities=()), MANY),
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from started(tmp_path_factory.mktemp("profile"))


@pytest.fixture(params=["toy", "many", "blind"])
def page(browser: Any, addresses: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Any]:
    yield from opened(browser, addresses[request.param])


def test_a_console_error_would_be_seen(browser: Any, addresses: dict[str, str]):
    browser.get(addresses["toy"])
    browser.execute_script("console.error('seen')")
    assert [entry["level"] for entry in browser.get_log("browser")] == ["SEVERE"]


def test_the_page_is_never_wider_than_its_window(page: Any):
    page.execute_script("document.querySelectorAll('details').forEach(function (one) { one.open = true })")
    for width in (360, 820, 1280):
        emulate(page, width=width, scheme="light")
        assert too_wide(page) <= 0, width


def test_every_picture_is_drawn_and_no_point_of_a_curve_lies_outside_its_chart(page: Any):
    count, broken = broken_pictures(page)
    assert broken == []
    assert (count > 0) == (page.find_elements(By.CSS_SELECTOR, ".atlas") != [])
    outside = page.execute_script(
        """
        return Array.from(document.querySelectorAll('.rankchart svg')).flatMap(function (one) {
          var box = one.getBoundingClientRect();
          return Array.from(one.querySelectorAll('circle, .line, .diagonal, .empty, text')).filter(function (part) {
            var at = part.getBoundingClientRect();
            return at.left < box.left - 3 || at.right > box.right + 3
              || at.top < box.top - 3 || at.bottom > box.bottom + 3;
          }).map(part => part.outerHTML);
        });
        """
    )
    assert outside == []


def test_the_theme_follows_the_system_until_the_reader_chooses(page: Any):
    light = ground(page)
    emulate(page, width=1280, scheme="dark")
    dark = ground(page)
    assert dark != light
    click(page, page.find_element(By.ID, "theme"))
    assert ground(page) == light
