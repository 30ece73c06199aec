"""A headless browser, by the WebDriver protocol: JSON over HTTP, for which Python has all."""

import base64
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ports import free_port

PROGRAMS = ("chromedriver", "chromium")
MISSING = not all(map(shutil.which, PROGRAMS))

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """A page in a browser.

    Args:
        session: URL of the session.
    """

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, page: Path, width: int, height: int, scheme: str) -> None:
        """Shows a file, after what the logs hold of earlier ones, and waits for its charts."""
        _post(f"{self._session}/url", url="about:blank")
        self._log("browser"), self._log("performance")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.cdp("Emulation.setDeviceMetricsOverride", **size)
        self.cdp("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.cdp("Emulation.setEmulatedMedia", media="", features=[feature])
        _post(f"{self._session}/url", url=page.as_uri())
        self.wait("return document.documentElement.dataset.drawn")

    def visit(self, url: str, condition: str) -> None:
        """Shows the page of a URL, and waits until a script returns something true."""
        _post(f"{self._session}/url", url=url)
        self.wait(condition)

    def promised(self, script: str, *values: Any) -> Any:
        """What the promise of a JavaScript function, called with values, is fulfilled with."""
        call = f"({script})(...[...arguments].slice(0, -1)).then([...arguments].at(-1))"
        return _post(f"{self._session}/execute/async", script=call, args=values)

    def run(self, script: str) -> Any:
        """The value of JavaScript that returns one."""
        return _post(f"{self._session}/execute/sync", script=script, args=[])

    def wait(self, condition: str) -> None:
        """Until a script returns something true; at most the timeout of scripts, 30 s."""
        met = f"(() => {{ {condition} }})()"
        look = f"() => {{ if ({met}) done(); else setTimeout(look, 50) }}"
        script = f"const done = arguments[0], look = {look}; look()"
        _post(f"{self._session}/execute/async", script=script, args=[])

    def cdp(self, command: str, **parameters: Any) -> Any:
        """What Chrome's own protocol answers."""
        return _post(f"{self._session}/goog/cdp/execute", cmd=command, params=parameters)

    def complaints(self) -> list[str]:
        """The warnings and errors on the console since the page was opened."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """The URLs that were asked for since the page was opened, but for data that they hold."""
        events = (json.loads(entry["message"])["message"] for entry in self._log("performance"))
        sent = (event for event in events if event["method"] == "Network.requestWillBeSent")
        urls = (event["params"]["request"]["url"] for event in sent)
        return [url for url in urls if not url.startswith("data:")]

    def screenshot(self, path: Path) -> None:
        """Writes a picture of the whole page."""
        shot = self.cdp("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def _log(self, kind: str) -> list[dict[str, str]]:
        return _post(f"{self._session}/se/log", type=kind)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, which ends with the context."""
    port = free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], **quiet)
    base = f"http://127.0.0.1:{port}"
    try:
        _until_ready(base)
        options = {
            "binary": shutil.which("chromium"),
            "args": [*FLAGS, f"--user-data-dir={profile}"],
        }
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
        made = _post(f"{base}/session", capabilities={"alwaysMatch": wanted})
        session = f"{base}/session/{made['sessionId']}"
        try:
            yield Browser(session)
        finally:
            _open(urllib.request.Request(session, method="DELETE"))
    finally:
        driver.terminate()
        driver.wait()


def _until_ready(base: str) -> None:
    for _ in range(300):
        try:
            if _open(urllib.request.Request(f"{base}/status"))["ready"]:
                return
        except OSError:
            pass
        subprocess.run(["sleep", "0.1"], check=True)
    raise TimeoutError("chromedriver does not answer")


def _post(url: str, /, **body: Any) -> Any:
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    return _open(urllib.request.Request(url, data, headers))


def _open(request: urllib.request.Request) -> Any:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=100) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None
