"""A headless Chromium for tests, driven over its debugging pipe: no driver and no package needed.

The DevTools protocol, JSON messages that end in a zero byte, on file descriptors 3 and 4 of the
browser (https://chromedevtools.github.io/devtools-protocol, --remote-debugging-pipe).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 120  # a shared machine may be slow
_KEYS = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "End": 35, " ": 32}


class Page:
    """A page in the browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        #: Addresses that anything was requested from, and messages of errors in scripts.
        self.requested: list[str] = []
        self.errors: list[str] = []
        self._target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self._call(f"{domain}.enable")

    def open(self, address: str) -> None:
        """Load a page and wait for it."""
        self._call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def close(self) -> None:
        """Close the page, as a person closes a tab; nothing can be asked of it afterwards."""
        self._session = None
        self._call("Target.closeTarget", targetId=self._target)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; raises AssertionError with what it throws."""
        found = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + _SECONDS
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"not within {_SECONDS} s: {expression}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press and release a key, as a person would."""
        values = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        self._call("Input.dispatchKeyEvent", type="rawKeyDown", **values)
        self._call("Input.dispatchKeyEvent", type="keyUp", **values)

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """Set the size of the window, in CSS pixels."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone},
        )

    def prefer(self, scheme: str) -> None:
        """Say that the reader prefers `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """Write what is in the window as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"]))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._answers], [], [], _SECONDS)[0], "the browser is silent"
            block = os.read(self._answers, 1 << 16)
            assert block, "the browser ended"
            self._rest += block
        line, self._rest = self._rest.split(b"\0", 1)
        return json.loads(line)


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a browser with its profile in `folder`.

    Where there is none the test is skipped; with REQUIRE_BROWSER=1 in the environment it fails.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        without = pytest.fail if os.environ.get("REQUIRE_BROWSER") == "1" else pytest.skip
        without(f"no headless browser here: none of {', '.join(NAMES)} on the PATH")
    (commands_out, commands_in), (answers_out, answers_in) = os.pipe(), os.pipe()
    # 3 and 4 in the browser; bash puts them there, for the numbers here are any.
    command = f'exec "$0" "$@" 3<&{commands_out} 4>&{answers_in}'
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
    quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update")
    more = ("--disable-sync", "--disable-quic", "--remote-debugging-pipe")
    process = subprocess.Popen(
        ["bash", "-c", command, program, *flags, *quiet, *more, f"--user-data-dir={folder}"],
        pass_fds=(commands_out, answers_in),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands_out)
    os.close(answers_in)
    try:
        yield Page(commands_in, answers_out)
    finally:
        process.kill()
        process.wait()
        os.close(commands_in)
        os.close(answers_out)
