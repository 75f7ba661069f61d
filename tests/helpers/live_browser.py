"""A Chromium that a test clicks in: the DevTools protocol over two pipes, without a further package."""

import base64
import json
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from browser import CHROMIUM, FLAGS

_TIMEOUT_S = 30.0


class LivePage:
    """One page of a headless browser of its own; a context manager."""

    def __init__(self, tmp: Path, *flags: str, width: int = 1200, height: int = 900) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        options = [flag for flag in FLAGS if not flag.startswith("--virtual-time")]
        command = [
            str(CHROMIUM), *options, f"--user-data-dir={tmp / 'live-profile'}", "--remote-debugging-pipe", *flags,
        ]  # fmt: skip
        # The browser reads commands from descriptor 3 and writes events to descriptor 4. Not sh, which knows no
        # descriptor of two digits.
        self._browser = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", *command],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._buffer = 0, b""
        self.events: list[dict[str, Any]] = []
        """what the browser has reported, such as console messages"""
        target = self._send("Target.createTarget", {"url": "about:blank"}, session="")["targetId"]
        attached = self._send("Target.attachToTarget", {"targetId": target, "flatten": True}, session="")
        self._session: str = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self._send(f"{domain}.enable")
        self._width, self._height = width, height
        self.resize(width, height)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._out)
        try:
            self._browser.wait(10)
        except subprocess.TimeoutExpired:
            self._browser.kill()
            self._browser.wait()
        os.close(self._in)

    def resize(self, width: int, height: int, *, is_dark: bool = False) -> None:
        """Set the size of the window and the colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._send("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._send("Emulation.setEmulatedMedia", {"features": [scheme]})

    def clear(self) -> None:
        """Leave the page, restore the window, and forget what was reported."""
        self._send("Page.navigate", {"url": "about:blank"})
        self.wait("document.readyState === 'complete' && location.href === 'about:blank'")
        self.resize(self._width, self._height)
        self.events.clear()

    def open(self, address: str) -> None:
        """Load a page, and wait until it is complete."""
        self.run("window.isLeft = true")
        self._send("Page.navigate", {"url": address})
        self.wait("!window.isLeft && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it becomes."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        result = self._send("Runtime.evaluate", asked)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, timeout_s: float = _TIMEOUT_S) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + timeout_s
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"{condition} did not become true: {self.text()[-1500:]}"
            time.sleep(0.02)

    def text(self, selector: str = "body") -> str:
        """The text of the first element that a selector finds, as it is seen."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        """Click the first element that a selector finds, with the mouse."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            event = {"type": kind, "x": box[0], "y": box[1], "button": "left", "clickCount": 1}
            self._send("Input.dispatchMouseEvent", event)

    def press(self, key: str, *, code: int = 0, text: str = "") -> None:
        """Press and release a key: `press("Tab", code=9)`, `press("a", code=65, text="a")`."""
        named = {"key": key, "windowsVirtualKeyCode": code}
        self._send("Input.dispatchKeyEvent", {"type": "keyDown", **named, "text": text})
        self._send("Input.dispatchKeyEvent", {"type": "keyUp", **named})

    def choose_files(self, selector: str, *files: Path) -> None:
        """Choose files in a file input, as its dialog does."""
        root = self._send("DOM.getDocument")["root"]["nodeId"]
        node = self._send("DOM.querySelector", {"nodeId": root, "selector": selector})["nodeId"]
        self._send("DOM.setFileInputFiles", {"nodeId": node, "files": [str(file) for file in files]})

    def photograph(self, path: Path) -> None:
        """Write a PNG of the whole page."""
        size = self._send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 6000), "scale": 1}
        taken = self._send(
            "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True, "format": "png"}
        )
        path.write_bytes(base64.b64decode(taken["data"]))

    @property
    def complaints(self) -> list[str]:
        """Errors on the console: exceptions, refused loads, breaches of the content security policy."""
        self.run("0")  # what was reported before this answer has arrived
        found = []
        for event in self.events:
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(str(event["params"]["entry"]))
        return found

    def _send(
        self, method: str, parameters: dict[str, Any] | None = None, session: str | None = None
    ) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters or {}}
        if session is None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self._number:
                assert "error" not in found, (method, found["error"])
                return dict(found["result"])
            if "method" in found:
                self.events.append(found)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))
