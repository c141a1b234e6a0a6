"""A headless Chromium, driven over its DevTools pipe: Python's standard library and nothing else.

What always holds: the browser talks to the address under test alone, and ends with the block that
started it.
"""

import base64
import json
import os
import subprocess
import tempfile
import time

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars
--disable-dev-shm-usage --remote-debugging-pipe""".split()


class Page:
    """One tab of a browser of its own."""

    def __init__(self, binary):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command_read, self.command = os.pipe()
        self.reply, reply_write = os.pipe()

        def pipes():  # Chromium reads from 3 and writes to 4.
            ends = os.dup(command_read), os.dup(reply_write)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self.process = subprocess.Popen(
            [binary, *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"],
            preexec_fn=pipes, close_fds=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(command_read)
        os.close(reply_write)
        self.bytes, self.next_id, self.session = b"", 0, None
        self.problems, self.canned = [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        self.profile.cleanup()

    def call(self, method, **params):
        self.next_id += 1
        message = {"id": self.next_id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.command, json.dumps(message).encode() + b"\0")
        wanted = self.next_id
        while True:
            message = self.receive()
            if message.get("id") == wanted:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                return message["result"]

    def receive(self):
        while b"\0" not in self.bytes:
            more = os.read(self.reply, 1 << 20)
            if not more:
                raise AssertionError("the browser has ended")
            self.bytes += more
        raw, _, self.bytes = self.bytes.partition(b"\0")
        message = json.loads(raw)
        self.event(message)
        return message

    def event(self, message):
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"].get("exception", {}).get("description"))
        if message.get("method") == "Log.entryAdded" and params["entry"]["source"] == "security":
            self.problems.append(params["entry"]["text"])
        if message.get("method") == "Fetch.requestPaused":
            self.answer(params["requestId"])

    def answer(self, request):
        status, kind, body = self.canned.pop(0)
        self.next_id += 1
        params = {"requestId": request, "responseCode": status,
                  "responseHeaders": [{"name": "content-type", "value": kind}],
                  "body": base64.b64encode(body.encode()).decode()}
        message = {"id": self.next_id, "sessionId": self.session,
                   "method": "Fetch.fulfillRequest", "params": params}
        os.write(self.command, json.dumps(message).encode() + b"\0")

    def can(self, *replies):
        """Answers the next chat requests with these (status, content type, body), not the server."""
        self.canned = list(replies)
        if replies:
            self.call("Fetch.enable", patterns=[{"urlPattern": "*/v1/chat/completions"}])
        else:
            self.call("Fetch.disable")

    def js(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True,
                           returnByValue=True)
        if "exceptionDetails" in result:
            raise AssertionError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, expression, seconds=30):
        """Waits until the expression holds."""
        end = time.time() + seconds
        while True:
            try:
                value = self.js(expression)
            except AssertionError as error:
                # The page is being replaced: the next look finds the new one.
                if "navigated or closed" not in str(error) or time.time() > end:
                    raise
                value = None
            if value:
                return value
            if time.time() > end:
                text = self.js("document.body.innerText")
                raise AssertionError(f"never came true: {expression}\nThe page says:\n{text}")
            time.sleep(0.02)

    def goto(self, url):
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && "
                   "document.querySelector('#model')?.textContent !== ''")

    def size(self, width, height, mobile=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=mobile)

    def scheme(self, name):
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": name}])

    def key(self, key, shift=False, text=None):
        code = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, " ": 32,
                "Home": 36, "End": 35}[key]
        text = {"Enter": "\r", " ": " "}.get(key, text)
        base = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code,
                "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **base,
                  **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **base)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def click(self, selector):
        """Clicks where the element is seen, as a user would."""
        box = self.until(f"""(() => {{
            const node = document.querySelector({json.dumps(selector)});
            if (!node || node.hidden || node.disabled) return null;
            node.scrollIntoView({{block: 'center'}});
            const r = node.getBoundingClientRect();
            return r.width ? [r.x + r.width / 2, r.y + r.height / 2] : null; }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left",
                      clickCount=1)

    def shot(self, path):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))
