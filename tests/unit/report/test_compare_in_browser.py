"""Opens the comparison page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import MARKS, click, emulate, ground, opened, started, too_wide
from comparing import comparison

from vqcortex.report.compare import render_compare

By = pytest.importorskip("selenium.webdriver.common.by").By

pytestmark = MARKS


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "methods compared.html"
    path.write_text(render_compare(comparison(), command="vqcortex compare --out STUDY"), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from started(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    yield from opened(browser, address)


def test_a_console_error_would_be_seen(browser: Any, address: str):
    browser.get(address)
    browser.execute_script("console.error('seen')")
    assert [entry["level"] for entry in browser.get_log("browser")] == ["SEVERE"]


def test_the_page_is_never_wider_than_its_window(page: Any):
    page.execute_script("document.querySelectorAll('details').forEach(function (one) { one.open = true })")
    for width in (360, 820, 1280):
        emulate(page, width=width, scheme="light")
        assert too_wide(page) <= 0, width


def test_everything_in_a_chart_lies_inside_it_and_no_name_over_another(page: Any):
    outside, over = page.execute_script(
        """
        var outside = [], over = [];
        document.querySelectorAll('.chart svg').forEach(function (one) {
          var box = one.getBoundingClientRect();
          one.querySelectorAll('circle, .line, .whisker, text').forEach(function (part) {
            var at = part.getBoundingClientRect();
            var over = [box.left - at.left, at.right - box.right, box.top - at.top, at.bottom - box.bottom];
            if (Math.max(...over) > 4)
              outside.push(part.outerHTML);
          });
          var tags = Array.from(one.querySelectorAll('.tag')).map(tag => [tag, tag.getBoundingClientRect()]);
          tags.forEach(([tag, at], place) => tags.slice(0, place).forEach(function ([other, its]) {
            if (at.left < its.right && its.left < at.right && at.top + 4 < its.bottom && its.top + 4 < at.bottom)
              over.push(tag.textContent + ' / ' + other.textContent);
          }));
        });
        return [outside, over];
        """
    )
    assert outside == []
    assert over == []
    assert len(page.find_elements(By.CSS_SELECTOR, ".frontchart .tag")) == 9


def test_the_theme_follows_the_system_until_the_reader_chooses(page: Any):
    light = ground(page)
    emulate(page, width=1280, scheme="dark")
    dark = ground(page)
    assert dark != light
    click(page, page.find_element(By.ID, "theme"))
    assert ground(page) == light
