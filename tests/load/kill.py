#!/usr/bin/env python3
"""kill -9 at random moments under load, again and again; then it must start and serve correctly.

Clients ask all the time, long prompts and short ones, so that snapshots are written to the cache
directory when the server dies. After every start the same questions are asked greedily: the
answers must be, to the token, those of a server that was never killed and has no cache directory.
Python 3.8 or later, standard library only.

Example:
  tests/load/kill.py --hybra target/release/hybra --times 20
"""

import argparse
import pathlib
import random
import sys
import tempfile
import threading
import time

from server import Server

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUESTIONS = ["c=b-7;b=0;d=c*9;d?", "a=3;b=a+4;b?", "x=2;y=x*3;z=y-1;z?"]


def question(text, turns=0):
    earlier = [{"role": role, "content": text} for _ in range(turns)
               for role in ("user", "assistant")]
    return {"messages": [*earlier, {"role": "user", "content": text}], "temperature": 0,
            "max_tokens": 64}


def bodies():
    """Short ones, and conversations that are long enough to be kept."""
    return [question(text, turns) for text in QUESTIONS for turns in (0, 6, 12)]


def text(reply):
    status, body = reply
    if status != 200:
        raise SystemExit(f"{status}: {body}")
    return body["choices"][0]["message"]


def ask_forever(server, stop, asked):
    while not stop.is_set():
        try:
            status, _ = server.ask(random.choice(bodies()), timeout=30)
            asked.append(status)
        except (OSError, ValueError):
            time.sleep(0.01)
        except Exception:  # a reply that was cut off by the kill
            time.sleep(0.01)


def main():
    about, _, example = __doc__.partition("Example:")
    parser = argparse.ArgumentParser(description=about, epilog="example:" + example,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="[default: the model inside the binary]")
    parser.add_argument("--hybra", type=pathlib.Path, default=ROOT / "target/release/hybra")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    random.seed(args.seed)
    with Server(args.hybra, args.model, ["--cache-memory", "0"]) as server:
        expected = [text(server.ask(body)) for body in bodies()]
    asked, from_cache = [], 0
    with tempfile.TemporaryDirectory() as cache:
        options = ["--cache-dir", cache]
        for number in range(args.times + 1):
            server = Server(args.hybra, args.model, options).start()
            for body, want in zip(bodies(), expected):
                status, reply = server.ask(body)
                if text((status, reply)) != want:
                    raise SystemExit(f"start {number}: {text((status, reply))} instead of {want}")
                details = reply["usage"]["prompt_tokens_details"]
                from_cache += number > 0 and details["cached_tokens"] > 0
            if number == args.times:
                server.__exit__()
                break
            stop = threading.Event()
            clients = [threading.Thread(target=ask_forever, args=(server, stop, asked))
                       for _ in range(args.clients)]
            for client in clients:
                client.start()
            time.sleep(random.uniform(0.05, 2.0))
            server.kill()
            stop.set()
            for client in clients:
                client.join()
        files = sum(1 for path in pathlib.Path(cache).rglob("*") if path.is_file())
    print(f"killed {args.times} times under load ({len(asked)} replies, {asked.count(200)} of them "
          f"200); {len(expected)} answers after each start were right; {from_cache} of them from "
          f"a kept state; {files} files in the cache directory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
