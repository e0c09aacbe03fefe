"""A headless browser for tests of pages; importing this skips the tests where there is none to drive."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver")
Service = pytest.importorskip("selenium.webdriver.chrome.service").Service

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
)
PATIENCE = 600  # seconds: a browser on a busy machine may take long to start

MARKS = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium with chromedriver on the PATH"),
]


def started(profile: Path) -> Iterator[Any]:
    """A browser with an empty profile, ended afterwards."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    driver.command_executor.client_config.timeout = PATIENCE
    yield driver
    driver.quit()


def opened(browser: Any, address: str) -> Iterator[Any]:
    """A page, newly opened at desk width; nothing may be said on the console while a test uses it."""
    emulate(browser, width=1280, scheme="light")
    browser.get(address)
    browser.execute_script("localStorage.clear(); delete document.documentElement.dataset.theme;")
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def emulate(browser: Any, width: int, scheme: str) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def ground(page: Any) -> str:
    return str(page.execute_script("return getComputedStyle(document.body).backgroundColor"))


def click(page: Any, element: Any) -> None:
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()


def too_wide(page: Any) -> int:
    """Pixels by which the page is wider than its window."""
    return int(page.execute_script("return document.documentElement.scrollWidth - innerWidth"))


def broken_pictures(page: Any) -> tuple[int, list[str]]:
    """How many pictures a page has, and which of them cannot be drawn."""
    count, broken = page.execute_async_script(
        """
        var done = arguments[0], all = Array.from(document.images);
        Promise.all(all.map(one => one.decode().then(() => null, () => one.alt || one.className)))
          .then(found => done([all.length, found.filter(one => one !== null)]));
        """
    )
    return count, broken
