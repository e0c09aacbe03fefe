"""Opens the page in a real browser and clicks through it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import MARKS, broken_pictures, click, emulate, ground, opened, started, too_wide

from vqcortex.exhibit import Exhibit
from vqcortex.report.page import render_page

By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
Select = pytest.importorskip("selenium.webdriver.support.ui").Select

pytestmark = MARKS


@pytest.fixture(scope="module")
def address(exhibit: Exhibit, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "a study.html"
    path.write_text(render_page(exhibit), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from started(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    yield from opened(browser, address)


def visible(page: Any, what: str) -> list[str]:
    """Ids or keys of what is displayed."""
    found = [one for one in page.find_elements(By.CSS_SELECTOR, what) if one.is_displayed()]
    return [one.get_attribute("id") or one.get_attribute("data-key") for one in found]


def test_a_console_error_would_be_seen(browser: Any, address: str):
    browser.get(address)
    browser.execute_script("setTimeout(function () { throw new Error('seen') }); console.error('this too')")
    browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert len([entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]) == 2


def test_every_concept_tab_shows_its_panel_and_no_other(page: Any, exhibit: Exhibit):
    tabs = page.find_elements(By.CSS_SELECTOR, "[role=tab]")
    assert len(tabs) == len(exhibit.concepts)
    for number, tab in enumerate(tabs):
        click(page, tab)
        assert visible(page, ".panel") == [f"concept-{number}"]
        assert tab.get_attribute("aria-selected") == "true"


def test_arrow_keys_walk_the_tabs_around_the_end(page: Any, exhibit: Exhibit):
    tabs = page.find_elements(By.CSS_SELECTOR, "[role=tab]")
    click(page, tabs[0])
    tabs[0].send_keys(Keys.ARROW_RIGHT)
    assert visible(page, ".panel") == ["concept-1"]
    tabs[1].send_keys(Keys.HOME)
    tabs[0].send_keys(Keys.ARROW_LEFT)
    assert visible(page, ".panel") == [f"concept-{len(exhibit.concepts) - 1}"]


def test_a_link_to_a_concept_opens_it(page: Any, address: str):
    page.get("about:blank")
    page.get(f"{address}#concept-3")
    assert visible(page, ".panel") == ["concept-3"]


def test_the_overlay_goes_and_comes_and_changes_its_strength(page: Any):
    overlay = page.find_element(By.CSS_SELECTOR, ".panel:not([hidden]) img.overlay")
    box = page.find_element(By.ID, "overlay")
    assert overlay.is_displayed()
    click(page, box)
    assert not overlay.is_displayed()
    click(page, box)
    before = float(overlay.value_of_css_property("opacity"))
    page.find_element(By.ID, "opacity").send_keys(Keys.END)
    assert float(overlay.value_of_css_property("opacity")) == 1 > before


@pytest.mark.parametrize("level", ["image", "concept", "codebook"])
def test_every_choice_of_evidence_shows_one_variant(page: Any, level: str):
    form = page.find_element(By.CSS_SELECTOR, f'form.chooser[data-level="{level}"]')
    selects = form.find_elements(By.TAG_NAME, "select")
    key = ["0"] * len(selects)
    for place, select in enumerate(selects):
        key[place] = "1"
        Select(select).select_by_value("1")
        assert visible(page, f'.variant[data-level="{level}"]') == ["-".join(key)]


def test_the_theme_follows_the_system_until_the_reader_chooses(page: Any):
    light = ground(page)
    emulate(page, width=1280, scheme="dark")
    dark = ground(page)
    assert dark != light
    button = page.find_element(By.ID, "theme")
    click(page, button)
    assert ground(page) == light
    click(page, button)
    assert ground(page) == dark
    emulate(page, width=1280, scheme="light")
    assert ground(page) == dark


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_the_page_is_never_wider_than_its_window(page: Any, width: int):
    emulate(page, width=width, scheme="light")
    assert too_wide(page) <= 0
    page.execute_script("document.querySelectorAll('details').forEach(function (one) { one.open = true })")
    assert too_wide(page) <= 0


def test_every_picture_is_drawn(page: Any):
    count, broken = broken_pictures(page)
    assert count > 150
    assert broken == []
