"""A real Chromium, driven over its DevTools protocol: it types, clicks, plays and looks."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import websocket  # of jupyterlab's requirements

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Browser:
    """One page. `addresses` are those of all that it asked for, `errors` what its console says."""

    def __init__(self, folder: Path, microphone: Path | None = None):
        program = next((found for name in NAMES if (found := shutil.which(name))), None)
        if program is None:
            pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path")
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "--mute-audio"]
        command += ["--disable-background-networking", "--disable-component-update"]
        command += ["--disable-dev-shm-usage", "--remote-allow-origins=*"]
        if microphone is not None:
            command += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
            command += [f"--use-file-for-fake-audio-capture={microphone}"]
        self._process = subprocess.Popen(
            [*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.addresses, self.errors, self._number = [], [], 0
        port = self._wait_for(lambda: (folder / "DevToolsActivePort").read_text().split()[0])
        at = f"http://127.0.0.1:{port}/json/list"
        pages = self._wait_for(lambda: [
            one for one in json.load(urllib.request.urlopen(at)) if one["type"] == "page"
        ])  # fmt: skip
        self._socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=300)
        for domain in ("Page", "Runtime", "Network", "DOM", "Accessibility"):
            self.command(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_for(self, look, seconds=120):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if found := look():
                    return found
            except (OSError, IndexError):
                pass
            time.sleep(0.1)
        raise AssertionError("the browser did not start")

    def command(self, method, **params):
        """The result of a DevTools command."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message):
        name, params = message.get("method"), message.get("params", {})
        if name == "Network.requestWillBeSent":
            self.addresses.append(params["request"]["url"])
        elif name == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"].get("text", ""))
        elif name == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(" ".join(str(one.get("value", "")) for one in params["args"]))

    def run(self, script, gesture=True):
        """The value of a JavaScript expression; promises are awaited."""
        found = self.command(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True,
            userGesture=gesture,
        )  # fmt: skip
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script, seconds=240):
        """Wait until an expression is true; its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.run(script):
                return found
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds} s: {script}\n{self.text()}")

    def open(self, url, width=1280, height=900):
        """Load a page at a size of the window."""
        self.resize(width, height)
        self.command("Page.navigate", url=url)
        self.until("document.querySelector('#speak') !== null")

    def resize(self, width, height):
        """The size of the window in CSS pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def text(self):
        """All that can be read."""
        return self.run("document.body.innerText")

    def click(self, selector):
        """Click an element as a mouse does, at its middle."""
        place = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.press(*place)

    def press(self, x, y):
        """A click at a point of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.command(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    def click_named(self, name, role="button"):
        """Click what a screen reader calls `name`."""
        self.press(*self._middle(self.named(name, role)))

    def wait_for_name(self, name, role="button", seconds=240):
        """Wait until something has that name."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if any(one["role"] == role and one["name"].startswith(name) for one in self.nodes()):
                return
            time.sleep(0.2)
        self.named(name, role)

    def named(self, name, role="button"):
        """The node of the accessibility tree with a role and a name."""
        for node in self.nodes():
            if node["role"] == role and node["name"].startswith(name):
                return node
        raise AssertionError(f"no {role} is called {name!r}: {self.nodes()}")

    def nodes(self):
        """[{role, name, node}] as a screen reader meets them."""
        tree = self.command("Accessibility.getFullAXTree")["nodes"]
        return [
            {
                "role": node["role"]["value"],
                "name": node.get("name", {}).get("value", ""),
                "node": node.get("backendDOMNodeId"),
            }
            for node in tree
            if not node.get("ignored") and "role" in node
        ]

    def _middle(self, node):
        self.command("DOM.scrollIntoViewIfNeeded", backendNodeId=node["node"])
        box = self.command("DOM.getBoxModel", backendNodeId=node["node"])["model"]["content"]
        return sum(box[0::2]) / 4, sum(box[1::2]) / 4

    def type(self, text):
        """Type into what has the focus, in place of what it holds."""
        self.run("document.activeElement.select()")
        if text:
            self.command("Input.insertText", text=text)
        else:
            self.key("Backspace", 8)

    def key(self, name, code=0, text=""):
        """Press one key."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.command(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name,
                windowsVirtualKeyCode=code, **more,
            )  # fmt: skip

    def give_file(self, selector, path):
        """Choose a file in a file field."""
        root = self.command("DOM.getDocument")["root"]["nodeId"]
        node = self.command("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.command("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def picture(self, path, whole=True):
        """A screenshot of the page as a PNG file."""
        found = self.command("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(found["data"]))
