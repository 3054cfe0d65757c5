"""A real browser for pages: headless chromium, told what to do over its DevTools protocol."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
_PATIENCE_S = 300.0


class Tab:
    """One page that is open."""

    def __init__(self, wire: ClientConnection) -> None:
        self._wire = wire
        self._number = 0
        self.errors: list[str] = []
        """What scripts threw and the policy blocked."""
        for domain in ("Runtime", "Log", "Page"):
            self._call(f"{domain}.enable")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait for an expression to be true."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < deadline, (script, self.run("document.body.innerText"), self.errors)
            time.sleep(0.02)

    def fill(self, element: str, text: str) -> None:
        """Put a text where somebody would type it."""
        field = f"document.getElementById({json.dumps(element)})"
        self.run(f"{field}.value = {json.dumps(text)}; {field}.dispatchEvent(new Event('change'))")

    def click(self, words: str) -> None:
        """The last button that says this and can be clicked."""
        button = f"[...document.querySelectorAll('button')].filter((b) => b.textContent === {json.dumps(words)}).at(-1)"
        self.until(f"{button} && !{button}.disabled")
        self.run(f"{button}.click()")

    def text(self, element: str) -> str:
        """What stands there."""
        return str(self.run(f"document.getElementById({json.dumps(element)}).innerText"))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._wire.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            told = json.loads(self._wire.recv(timeout=_PATIENCE_S))
            if told.get("id") == self._number:
                assert "error" not in told, (method, told)
                result: dict[str, Any] = told["result"]
                return result
            if told["method"] == "Runtime.exceptionThrown":
                self.errors.append(told["params"]["exceptionDetails"]["exception"]["description"])
            if told["method"] == "Log.entryAdded" and told["params"]["entry"]["source"] in ("security", "violation"):
                self.errors.append(told["params"]["entry"]["text"])


@contextmanager
def tab(url: str, home: Path) -> Iterator[Tab]:
    """A page in a browser of its own, which ends with it. `home`: for the browser's files."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={home}"]
    # It leaves a directory for its socket behind, which must have a short path.
    with (
        tempfile.TemporaryDirectory(prefix="ch", dir="/tmp", ignore_cleanup_errors=True) as sockets,
        (home / "chromium.log").open("wb") as log,
    ):
        environment = {**os.environ, "TMPDIR": sockets}
        browser = subprocess.Popen(["chromium", *options, "about:blank"], env=environment, stdout=log, stderr=log)
        try:
            with connect(_page(browser, home), max_size=None, open_timeout=_PATIENCE_S, ping_interval=None) as wire:
                opened = Tab(wire)
                opened._call("Page.navigate", url=url)
                opened.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")
                yield opened
        finally:
            browser.terminate()
            browser.wait(_PATIENCE_S)


def _page(browser: "subprocess.Popen[bytes]", home: Path) -> str:
    """Where the first page listens: the browser writes its port down when it has one."""
    port = home / "DevToolsActivePort"
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and browser.poll() is None:
        if port.exists() and "\n" in (told := port.read_text()):
            listed = f"http://127.0.0.1:{told.split()[0]}/json/list"
            for page in httpx.get(listed, trust_env=False, timeout=_PATIENCE_S).json():
                if page["type"] == "page":
                    return str(page["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError((home / "chromium.log").read_text())
