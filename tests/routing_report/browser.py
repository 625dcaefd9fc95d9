"""A headless Chromium, driven over the pipe of its DevTools protocol: no port, no web socket, no driver."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def _find() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        # Ubuntu's package is a stub that only says what to install.
        if path and subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return path
    return None


CHROMIUM = _find()

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]

_KEYS = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    " ": (32, " "),
    "PageUp": (33, ""),
    "End": (35, ""),
    "Home": (36, ""),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
}


class Page:
    """One tab. `events` holds what it reported: requests, console messages, exceptions."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._number, self._buffer, self._session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(method)
            if answer.get("id") != self._number:
                self.events.append(answer)
                continue
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            return answer["result"]

    def _next(self, method: str, seconds: float = 60.0) -> dict[str, Any]:
        limit = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            if not select.select([self._receive], [], [], max(0.0, limit - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium does not answer {method}.")
            self._buffer += os.read(self._receive, 1 << 20)
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """Opens a file and waits until its scripts have run."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(
                answer["exceptionDetails"]["exception"].get("description", answer["exceptionDetails"]["text"])
            )
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 20.0) -> None:
        """Waits until a JavaScript expression is true."""
        limit = time.monotonic() + seconds
        while not self.evaluate(condition):
            if time.monotonic() > limit:
                raise TimeoutError(f"{condition} does not come true.")
            time.sleep(0.02)

    def open_tables(self) -> None:
        """Opens every table of the page and waits for its rows."""
        self.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
        self.wait("[...document.querySelectorAll('details.numbers')].every(details => details.querySelector('tbody'))")

    def text(self, selector: str) -> str:
        """What an element shows."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")

    def press(self, *keys: str) -> None:
        """Presses keys as a keyboard does: they go to what has the focus."""
        for key in keys:
            code, text = _KEYS[key]
            common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def point(self, selector: str, x: float, y: float) -> None:
        """Moves the pointer to a place of an element, in shares of its width and height."""
        box = self.evaluate(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); return e.getBoundingClientRect().toJSON() }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        place = {"x": box["left"] + x * box["width"], "y": box["top"] + y * box["height"]}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **place)

    def scheme(self, scheme: str) -> None:
        """Makes the page believe that its reader prefers "light" or "dark"."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, height: int) -> bytes:
        """A PNG of the page from its top to `height` pixels, as wide as the window."""
        clip = {"x": 0, "y": 0, "width": self.evaluate("innerWidth"), "height": height, "scale": 1}
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(answer["data"])

    def pdf(self) -> bytes:
        """The page as it would be printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])

    def problems(self) -> list[str]:
        """Errors and warnings of the console, and exceptions, since `open`."""
        self.evaluate("0")
        found = []
        for event in self.events:
            method, parameters = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(json.dumps(parameters["exceptionDetails"]))
            elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                found.append(parameters["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(parameters["args"]))
        return found

    def requests(self) -> list[str]:
        """Addresses that were asked for since `open`."""
        self.evaluate("0")
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]


@contextmanager
def chromium(profile_folder: Path) -> Iterator[Page]:
    """A fresh browser with one tab; its settings and cache live in `profile_folder`."""
    assert CHROMIUM is not None, "Chromium is not installed"
    to_browser, send = os.pipe()
    receive, from_browser = os.pipe()

    def as_descriptors_3_and_4() -> None:
        # Copied upwards first: 3 or 4 may be one of the pipe's own numbers.
        spare = [os.dup2(descriptor, number) for descriptor, number in ((to_browser, 60), (from_browser, 61))]
        for descriptor, number in zip(spare, (3, 4), strict=True):
            os.dup2(descriptor, number)

    process = subprocess.Popen(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={profile_folder}"],
        preexec_fn=as_descriptors_3_and_4,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        page = Page(send, receive)
        yield page
        with suppress(OSError, RuntimeError, TimeoutError):
            page._session = None
            page.call("Browser.close")
    finally:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(send)
        os.close(receive)
