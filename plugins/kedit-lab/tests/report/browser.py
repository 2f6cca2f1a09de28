"""A headless Chromium, driven through chromedriver's plain HTTP."""

import base64
import json
import re
import shutil
import subprocess
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)
MISSING = next(
    (f"{one} is not installed" for one in ("chromium", "chromedriver") if not shutil.which(one)), ""
)
"""Why no browser can be started; empty where one can."""


class NoBrowserError(Exception):
    """A browser is installed but does not start."""


class Browser:
    """One page at a time, with what it asked of the network and what it complained of."""

    def __init__(self, port, profile):
        self._root = f"http://127.0.0.1:{port}/session"
        self._opener = build_opener(ProxyHandler({}))
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {
                "binary": shutil.which("chromium"),
                "args": [*FLAGS, f"--user-data-dir={profile}"],
            },
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        try:
            answer = self._ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        except HTTPError as error:
            with error:
                raise NoBrowserError(json.load(error)["value"]["message"]) from None
        self._root += f"/{answer['sessionId']}"

    def open(self, path, width=1280, dark=False):
        """Open a file as a screen of that width shows it; what was logged before is forgotten."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.complaints(), self.requests()
        self._ask("POST", "/url", {"url": path.absolute().as_uri()})

    def run(self, script, *given):
        """Return what a script returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": given})

    def click(self, selector):
        """Click as a mouse does, where the element is in the way of the pointer."""
        self._ask("POST", f"/element/{self._element(selector)}/click", {})

    def hover(self, selector, x, y):
        """Move the mouse to a share of an element's width and height."""
        place = self.run(
            "const one = document.querySelector(arguments[0]); one.scrollIntoView({block: 'center'});"
            "const box = one.getBoundingClientRect();"
            "return [box.left + arguments[1] * box.width, box.top + arguments[2] * box.height];",
            *(selector, x, y),
        )
        move = {"type": "pointerMove", "x": round(place[0]), "y": round(place[1]), "duration": 0}
        mouse = {"type": "pointer", "id": "mouse", "actions": [move]}
        self._ask("POST", "/actions", {"actions": [mouse]})

    def press(self, selector, key):
        """Press a key on an element."""
        self.run("document.querySelector(arguments[0]).focus()", selector)
        self._ask("POST", f"/element/{self._element(selector)}/value", {"text": key})

    def complaints(self):
        """Return what the console says since it was last asked."""
        return [one["message"] for one in self._ask("POST", "/se/log", {"type": "browser"})]

    def requests(self):
        """Return the addresses that were asked for since this was last asked."""
        logged = self._ask("POST", "/se/log", {"type": "performance"})
        sent = (json.loads(one["message"])["message"] for one in logged)
        named = (one for one in sent if one["method"] == "Network.requestWillBeSent")
        return [one["params"]["request"]["url"] for one in named]

    def picture(self, path):
        """Write the whole page as PNG."""
        whole = {"format": "png", "captureBeyondViewport": True}
        path.write_bytes(base64.b64decode(self.devtools("Page.captureScreenshot", whole)["data"]))

    def devtools(self, command, given):
        """Return the answer of a command of the DevTools protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": given})

    def close(self):
        self._ask("DELETE", "", None)

    def _element(self, selector):
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        return next(iter(found.values()))

    def _ask(self, verb, path, body):
        data = None if body is None else json.dumps(body).encode()
        asked = Request(self._root + path, data=data, method=verb)
        asked.add_header("Content-Type", "application/json")
        with self._opener.open(asked, timeout=60) as answer:
            return json.load(answer)["value"]


@contextmanager
def browser(profile):
    """Yield a browser with an empty profile; it is gone at the end."""
    driver = subprocess.Popen(
        [shutil.which("chromedriver"), "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        lines = (re.search(r"success\w* on port (\d+)", line) for line in driver.stdout)
        port = next((found[1] for found in lines if found), None)
        if port is None:
            raise NoBrowserError("chromedriver ended at once")
        one = Browser(port, profile)
        try:
            yield one
        finally:
            one.close()
    finally:
        driver.terminate()
        driver.wait(10)
        driver.stdout.close()
