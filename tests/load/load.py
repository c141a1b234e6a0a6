#!/usr/bin/env python3
"""Twice the load that a server can take, from a public load generator (locust).

First one client alone, then half as many clients as the server has places, then twice as many as it
has places and queue for. Every client asks for a streamed chat reply, waits for its end, and asks again; one that gets a
429 waits as long as Retry-After says. It passes if

- no request fails except with 429, and some do get one;
- every stream is complete: pieces, one finish reason, the usage, then [DONE];
- the time between tokens (95th percentile) is at most 3 times that of the client alone;
- the server's memory does not grow in the second half of the run by more than 5 %.

Example:
  pip install -r tests/load/requirements.txt
  tests/load/load.py --hybra target/release/hybra hybrid-0.5b.gguf --out record.json
"""

from gevent import monkey

monkey.patch_all()

import argparse
import json
import pathlib
import random
import statistics
import sys
import time

import gevent
from locust import HttpUser, constant, task
from locust.env import Environment

from server import Server

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Seen:
    """What the clients saw in one run."""

    def __init__(self):
        self.gaps, self.first, self.failures = [], [], []
        self.complete = self.refused = self.tokens = 0


class Client(HttpUser):
    wait_time = constant(0)
    seen, tokens, words = Seen(), 64, 40

    @task
    def chat(self):
        seen = type(self).seen
        text = " ".join(random.choice(["ab", "cd", "ef", "gh", "kl"]) for _ in range(self.words))
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": self.tokens,
                "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        begun = time.perf_counter()
        with self.client.post("/v1/chat/completions", json=body, stream=True,
                              catch_response=True) as response:
            if response.status_code == 429:
                seen.refused += 1
                response.success()
                gevent.sleep(float(response.headers["retry-after"]))
                return
            if response.status_code != 200:
                seen.failures.append(f"{response.status_code} {response.text[:200]}")
                response.failure("status")
                return
            problem = self.read(response, begun, seen)
            if problem:
                seen.failures.append(problem)
                response.failure(problem)
            else:
                seen.complete += 1
                response.success()

    def read(self, response, begun, seen):
        """What is wrong with a stream, or None."""
        last, usage, finished, done = None, None, 0, False
        for line in response.iter_lines(chunk_size=None):
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                done = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return f"error in the stream: {event}"
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                finished += choice["finish_reason"] is not None
                delta = choice["delta"]
                if delta.get("content") or delta.get("reasoning_content"):
                    now = time.perf_counter()
                    (seen.first if last is None else seen.gaps).append(now - (last or begun))
                    last = now
        if not done or finished != 1 or usage is None:
            return f"incomplete: done {done}, finish reasons {finished}, usage {usage}"
        if usage["completion_tokens"] != self.tokens:
            return f"{usage['completion_tokens']} tokens instead of {self.tokens}"
        seen.tokens += self.tokens
        return None


def run(server, users, seconds):
    """One run, with samples of the server's memory."""
    Client.seen = seen = Seen()
    environment = Environment(user_classes=[Client], host=f"http://127.0.0.1:{server.port}")
    runner = environment.create_local_runner()
    runner.start(users, spawn_rate=users)
    memory, begun = [], time.monotonic()
    while time.monotonic() - begun < seconds:
        gevent.sleep(seconds / 40)
        memory.append(server.resident())
    runner.stop()
    runner.quit()
    p = statistics.quantiles(seen.gaps, n=20) if len(seen.gaps) > 1 else [float("nan")] * 19
    half = memory[len(memory) // 2:]
    return {
        "users": users, "seconds": seconds, "complete": seen.complete, "refused": seen.refused,
        "failures": len(seen.failures), "failure_examples": seen.failures[:3],
        "tokens_per_second": seen.tokens / seconds,
        "first_token_median_s": statistics.median(seen.first or [float("nan")]),
        "gap_median_s": p[9], "gap_p95_s": p[18],
        "resident_bytes": {"half": half[0], "end": memory[-1], "max": max(memory)},
    }


def main():
    about, _, example = __doc__.partition("Example:")
    parser = argparse.ArgumentParser(description=about, epilog="example:" + example,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", nargs="?", help="[default: the model inside the binary]")
    add("--hybra", type=pathlib.Path, default=ROOT / "target/release/hybra")
    add("--places", type=int, default=8, help="sequences that run at once")
    add("--queue", type=int, default=8, help="requests that wait")
    add("--seconds", type=float, default=60, help="of each run")
    add("--tokens", type=int, default=64, help="of each reply")
    add("--out", type=pathlib.Path, help="write the numbers here")
    args = parser.parse_args()
    Client.tokens = args.tokens
    options = ["--max-num-seqs", args.places, "--max-queue", args.queue]
    with Server(args.hybra, args.model, options) as server:
        alone = run(server, 1, args.seconds)
        light = run(server, max(args.places // 2, 1), args.seconds)
        heavy = run(server, 2 * (args.places + args.queue), args.seconds)
    half, end = heavy["resident_bytes"]["half"], heavy["resident_bytes"]["end"]
    checks = {
        "no failed request": all(row["failures"] == 0 for row in (alone, light, heavy)),
        "some were told to wait": heavy["refused"] > 0,
        "streams were completed": all(row["complete"] > 0 for row in (alone, light, heavy)),
        "time between tokens at most 3 times": heavy["gap_p95_s"] <= 3 * alone["gap_p95_s"],
        "memory flat": end <= 1.05 * half,
    }
    result = {"places": args.places, "queue": args.queue, "tokens": args.tokens,
              "alone": alone, "light": light, "heavy": heavy, "checks": checks}
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
