"""A real Chromium without a window, driven over a pipe by its own protocol: https://chromedevtools.github.io/."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)
PATIENCE = 60.0
"""Seconds for what should take a moment: the machine may be busy."""


class Tab:
    """One page of a browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.to_browser, self.from_browser = to_browser, from_browser
        self.number, self.buffer, self.session, self.loads = 0, b"", "", 0
        self.faults: list[str] = []
        """What the page threw."""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser something, and wait for its answer."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            piece = os.read(self.from_browser, 1 << 16)
            assert piece, "the browser is gone"
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        self.loads += found.get("method") == "Page.loadEventFired"
        if found.get("method") == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(found["params"]["exceptionDetails"])[:500])
        return found

    def open(self, address: str) -> None:
        """Load a page, and wait until its script has run."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")
        self._load("Page.navigate", url=address)

    def reload(self) -> None:
        self._load("Page.reload")

    def _load(self, method: str, **parameters: Any) -> None:
        self.value("window.isOld = true")
        before = self.loads
        self.call(method, **parameters)
        while self.loads == before:
            self._next()
        # That may have been the empty page's, which comes late on a busy machine.
        while self.value("!window.isOld && document.readyState == 'complete'") is not True:
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, *keys: str) -> None:
        """Real keys, one after another."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, **(text if kind == "keyDown" else {}))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(folder: Path, *, width: int = 1440, height: int = 900) -> Iterator[Tab]:
    """A browser with a new profile in `folder`, where its downloads go, too."""
    assert BROWSER
    for_browser, to_browser = os.pipe()
    from_browser, by_browser = os.pipe()
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
    # The protocol wants descriptors 3 and 4; a shell moves them there whatever they are here.
    shell = f'exec 3<&{for_browser} 4>&{by_browser}; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command], pass_fds=(for_browser, by_browser), stderr=subprocess.DEVNULL
    )
    os.close(for_browser), os.close(by_browser)
    tab = Tab(to_browser, from_browser)
    try:
        tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        yield tab
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)
        os.close(to_browser), os.close(from_browser)
