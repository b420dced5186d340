"""Headless Chromium, and a page in it as a person uses it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_S = 20.0


class Page:
    """One page; `until` asks it again and again."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str, width: int = 1280, dark: bool = False) -> None:
        """Load it afresh in a window of that width and scheme."""
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.look(width, dark)
        self.driver.get(url)

    def look(self, width: int, dark: bool = False) -> None:
        """Another width, another scheme."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        likes = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in likes.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def ask(self, script: str, *arguments: object) -> Any:
        """The value of an expression in the page."""
        return self.driver.execute_script(f"return {script}", *arguments)

    def until(self, script: str, *arguments: object) -> Any:
        """The first value of an expression that is true."""
        ends = time.monotonic() + PATIENCE_S
        while not (value := self.ask(script, *arguments)):
            assert time.monotonic() < ends, f"{script} did not hold; the page says: {self.text('body')[:2000]}"
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> str:
        """What a person reads there."""
        found = "document.querySelector(arguments[0])"
        return str(self.ask(f"{found}?.innerText ?? {found}?.textContent ?? ''", selector))

    def click(self, selector: str) -> None:
        """As with a mouse, where people see it."""
        self.ask("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        self.driver.find_element("css selector", selector).click()

    def press(self, *keys: str) -> None:
        """Keys, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def lit(self) -> set[str]:
        """The ids of the states and parents that stand out."""
        return set(self.ask("[...document.querySelectorAll('svg .lit')].map((element) => element.id)"))

    def complaints(self) -> list[str]:
        """What the browser says of the page: errors, and what its policy forbade."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all; a new one without a profile."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        missing = "no chromium or no chromedriver here: apt-get install chromium chromium-driver"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield running
    running.quit()


@pytest.fixture
def page(driver: Any) -> Page:
    """The browser's page; at the end it must have had nothing to complain of."""
    return Page(driver)


@pytest.fixture
def film_path(tmp_path: Path) -> Path:
    """Where a test leaves a flight record to be opened."""
    return tmp_path / "flight.jsonl"
