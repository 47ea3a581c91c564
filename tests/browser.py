"""A headless Chromium for tests; they are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest


def chromium(downloads: str) -> Iterator:
    """A driver of the system's Chromium, which saves downloads in a folder; closed at the end."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    service = shutil.which("chromedriver")
    if binary is None or service is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--window-size=1100,1000"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": downloads})
    driver = webdriver.Chrome(options, webdriver.ChromeService(service))
    driver.set_script_timeout(120)
    driver.set_page_load_timeout(120)
    try:
        yield driver
    finally:
        driver.quit()


def errors(driver) -> list[str]:
    """What the browser's console complains about."""
    return [e["message"] for e in driver.get_log("browser") if e["level"] == "SEVERE"]
