"""A `hybra serve` of one's own for a test: started, watched, killed. Standard library only."""

import http.client
import json
import re
import subprocess
import tempfile
import time


class Server:
    """The server's process and address; `with` ends it."""

    def __init__(self, hybra, model, options=()):
        self.command = [str(hybra), "serve", *([str(model)] if model else []), "--port", "0",
                        *map(str, options)]
        self.process = self.port = None

    def start(self, seconds=600):
        self.log = tempfile.NamedTemporaryFile(mode="w+", suffix=".log")
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with {self.process.returncode}: {self.said()}")
            found = re.search(r"http://[^ ]*?:(\d+)", self.said())
            if found:
                self.port = int(found.group(1))
                if self.status() == 200:
                    return self
            time.sleep(0.02)
        raise SystemExit(f"the server was not ready within {seconds} s: {self.said()}")

    def said(self):
        with open(self.log.name, encoding="utf-8", errors="replace") as log:
            return log.read()

    def status(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status
        except OSError:
            return None

    def ask(self, body, path="/v1/chat/completions", timeout=600):
        """Status and object of one reply."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")

    def resident(self):
        """Bytes of memory."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            lines = dict(line.split(":", 1) for line in status if ":" in line)
        return int(lines["VmRSS"].split()[0]) * 1024

    def kill(self):
        """As a power cut would."""
        self.process.kill()
        self.process.wait()
        self.log.close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()
