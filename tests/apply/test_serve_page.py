"""The server's pages in a real browser, driven over its DevTools pipe."""

import base64
import json
import os
import shutil
import subprocess
from time import monotonic

import pytest

from tests.apply.serving import CLASSES, KINDS, MARKUP, ask, grey, load, pictures, png, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
DROP = """(async () => {
  const bytes = Uint8Array.from(atob("BYTES"), letter => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
  const dropped = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
  document.getElementById("drop").dispatchEvent(dropped);
})()"""


class Browser:
    """A page in headless Chromium. Its messages are JSON between zero bytes, on descriptors 3 and 4."""

    def __init__(self, folder):
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "chromium", CHROMIUM, *options],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        for handle in (theirs_in, theirs_out):
            os.close(handle)
        self._number, self._rest, self.events = 0, b"", []
        self._session = None
        target = next(own for own in self.call("Target.getTargets")["targetInfos"] if own["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (found := self._receive()).get("id") != self._number:
            self.events.append(found)
        assert "error" not in found, found
        return found["result"]

    def _receive(self):
        while b"\0" not in self._rest:
            part = os.read(self._in, 65536)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def value(self, expression):
        """What a piece of JavaScript gives."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression):
        end = monotonic() + 30
        while not (found := self.value(expression)):
            assert monotonic() < end, self.value("document.body.innerText")
        return found

    def press(self, key, code, text=""):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def until_told(self, method):
        end = monotonic() + 30
        while not any(own.get("method") == method for own in self.events):
            assert monotonic() < end, method
            self.value("1")  # events come before its answer

    def close(self):
        os.close(self._out)
        self._process.wait()
        os.close(self._in)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


def shown(browser):
    """Adapters and their classes and percentages, as they stand on the page."""
    return browser.value(
        """[...document.querySelectorAll("section")].map(section => [section.querySelector("h2").textContent,
        [...section.querySelectorAll("li")].map(
            line => [...line.querySelectorAll("span")].map(cell => cell.textContent))])"""
    )


def test_an_image_that_is_dropped_shows_the_top_5_of_every_adapter(folder, browser):
    names = {"first": "first", "second": MARKUP, "third": "third"}
    adapters = {names[name]: own for name, own in load(folder).items()}
    content = png(pictures(1)[0])
    with serving(adapters, max_pixels=10_000) as (port, _):
        browser.call("Page.navigate", url=f"http://127.0.0.1:{port}/")
        browser.until(
            "document.title === 'losa-cache' && document.getElementById('title').textContent.endsWith('tiny0')"
        )

        browser.value(DROP.replace("BYTES", base64.b64encode(content).decode()))
        browser.until("document.getElementById('status').textContent === 'dropped.png: 3 adapters'")
        answer = ask(port, "/predict?top_k=5", content)[1]["predictions"]
        expected = [
            [name, [[own["class"], f"{100 * own['probability']:.1f} %"] for own in answer[name]]]
            for name in names.values()
        ]
        assert shown(browser) == expected
        assert browser.value("document.title") == "losa-cache"  # no name has run as markup
        assert browser.value("document.querySelectorAll('section img').length") == 0
        browser.until("document.getElementById('preview').naturalWidth === 8")

        browser.value(DROP.replace("BYTES", base64.b64encode(b"no image").decode()))
        error = browser.until("document.querySelector('#status.error')?.textContent")
        assert error == ask(port, "/predict", b"no image")[1]["error"]
        assert shown(browser) == []


def test_keyboard_and_narrow_screens(folder, browser, tmp_path):
    (tmp_path / "chosen.png").write_bytes(png(grey()))
    with serving(load(folder)) as (port, _):
        browser.call("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=True)
        browser.call("Page.navigate", url=f"http://127.0.0.1:{port}/")
        browser.until("document.getElementById('title')?.textContent.endsWith('tiny0')")
        browser.press("Tab", 9)
        assert browser.value("document.activeElement.id") == "file"
        assert browser.value("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
        browser.call("Page.setInterceptFileChooserDialog", enabled=True)
        browser.press("Enter", 13, "\r")
        browser.until_told("Page.fileChooserOpened")
        root = browser.call("DOM.getDocument")["root"]["nodeId"]
        file = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        browser.call("DOM.setFileInputFiles", files=[str(tmp_path / "chosen.png")], nodeId=file)
        browser.until("document.getElementById('status').textContent === 'chosen.png: 3 adapters'")
        assert [name for name, _ in shown(browser)] == list(KINDS)
        assert {own for _, lines in shown(browser) for own, _ in lines} <= set(CLASSES)
        assert browser.value("document.documentElement.scrollWidth") <= 320

        browser.call("Page.navigate", url=f"http://127.0.0.1:{port}/docs")
        browser.until("document.querySelectorAll('h2').length === 7")
        assert browser.value("document.documentElement.scrollWidth") <= 320
        origin = f"http://127.0.0.1:{port}/"
        asked = [
            own["params"]["request"]["url"]
            for own in browser.events
            if own.get("method") == "Network.requestWillBeSent"
        ]
        assert f"{origin}openapi.json" in asked
        logged = [own["params"] for own in browser.events if own.get("method") in ("Runtime.exceptionThrown",)]
        assert logged == []
        assert all(url.startswith(("http://127.0.0.1:", "blob:", "data:")) for url in asked)
