"""A report in a real browser: opened, clicked, typed into and looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Page:
    """A report in the browser."""

    def __init__(self, driver: Any, report: Path) -> None:
        self.driver, self.url = driver, (report / "index.html").as_uri()

    def visit(self, place: str = "", width: int = 1200, height: int = 900) -> None:
        """Open it anew at a place behind #, and wait for the cards."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get(self.url + place)
        if "tab=" not in place:
            self.until(lambda: self("return document.body.dataset.ready !== undefined"))

    def __call__(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, happens: Callable[[], Any]) -> None:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 30, 0.02, [StaleElementReferenceException]).until(lambda _: happens())

    def all(self, css: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", css))

    def count(self, css: str) -> int:
        return len(self.all(css))

    def ids(self) -> list[str]:
        return list(self("return [...document.querySelectorAll('.card .id')].map(e => e.textContent)"))

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def point(self, target: Any) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).move_to_element(target).perform()

    def asked(self) -> list[str]:
        """The addresses that were asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
