#!/usr/bin/env python3
"""Hybra against llama.cpp on the same GGUF files, interleaved: A B A B ...

Every round runs each group of cases once with Hybra and then once with the peer, so a drift of
the machine meets both; medians and extremes of the rounds are kept. Both get the same file and
the same number of threads, and both read weights through the file cache, which a first,
uncounted pass over the file fills. Nothing else should run on the machine; `--busy` measures what
happens when something does. Python 3.8 or later, standard library only.

Example:
  benches/peer/llama_cpp.py --hybra target/release/hybra --llama-bench build/bin/llama-bench \\
      --llama-batched-bench build/bin/llama-batched-bench --threads 2 --rounds 5 model.gguf
"""

import argparse
import datetime
import json
import multiprocessing
import os
import pathlib
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Tokens that are in the caches before a batch generates, with both programs.
BATCH_PROMPT = 16


def numbers(text):
    return [int(part) for part in text.split(",") if part]


def arguments():
    about, _, example = __doc__.partition("Example:")
    parser = argparse.ArgumentParser(
        description=about,
        epilog="example:" + example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("files", nargs="+", type=pathlib.Path, metavar="FILE.gguf")
    add("--hybra", type=pathlib.Path, default=ROOT / "target/release/hybra")
    add("--llama-bench", type=pathlib.Path, required=True)
    add("--llama-batched-bench", type=pathlib.Path, help="without it batches are left out")
    add("--threads", type=int, default=os.cpu_count())
    add("--rounds", type=int, default=3)
    add("--state-dtype", choices=("f32", "bf16"), default="f32",
        help="of Hybra's recurrent states; the peer's are f32")
    add("--prefill", type=numbers, default=[512, 2048], metavar="N,..")
    add("--depth", type=numbers, default=[0, 4096, 16384], metavar="N,..")
    add("--batch", type=numbers, default=[4, 8, 16], metavar="N,..")
    add("--tokens", type=int, default=32, help="generated for each sequence")
    add("--chunk", type=int, default=512, help="tokens of a prompt in one pass")
    add("--busy", action="store_true",
        help="measure each group again beside one process that loops; report the loss of both")
    add("--timeout", type=float, default=3600, metavar="S", help="of one run of one program")
    add("--machine", help="directory of the record [default: named after CPU and cores]")
    add("--out", type=pathlib.Path, help="the record [default: in benches/record/MACHINE]")
    return parser.parse_args()


class Failure(Exception):
    """A program that did not give numbers."""


def run(command, timeout):
    """The standard output of a program."""
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(str(error)) from error
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
        raise Failure(f"{command[0]} ended with {done.returncode}: {last[0]}")
    return done.stdout


def groups(args):
    """Name and cases of every group; a group is one run of each program."""
    found = [
        ("prefill", [("prefill", n) for n in args.prefill]),
        ("decode", [("decode", n) for n in args.depth]),
    ]
    if args.llama_batched_bench:
        found.append(("batch", [("batch", n) for n in args.batch]))
    return [(name, cases) for name, cases in found if cases]


def title(case):
    kind, number = case
    if kind == "prefill":
        return f"prefill {number}"
    if kind == "batch":
        return f"decode × {number}"
    return f"decode at {number}" if number else "decode"


def hybra(args, file, group, record):
    """Tokens per second by case; the limits of the machine go into the record."""
    own = {"prefill": [16], "decode": [0], "batch": [1]}
    own[group] = {"prefill": args.prefill, "decode": args.depth, "batch": args.batch}[group]
    lists = {name: ",".join(map(str, values)) for name, values in own.items()}
    tokens = 1 if group == "prefill" else args.tokens
    command = [
        args.hybra, "bench", file, "--json", "--repeat", 1, "--seconds", 1_000_000,
        "--threads", args.threads, "--chunk", args.chunk, "--tokens", tokens,
        "--state-dtype", args.state_dtype,
        "--prefill", lists["prefill"], "--depth", lists["decode"], "--batch", lists["batch"],
    ]
    report = json.loads(run(command, args.timeout))
    for name, limit in report["limits"].items():
        if limit:
            record["limit_samples"].setdefault(name, []).append(limit["median"])
    record.setdefault("machine", report["machine"])
    record.setdefault("hybra", {key: report.get(key) for key in
                                ("version", "isa", "threads", "kv_dtype", "mlp_density")})
    speeds = {}
    for row in report["results"]:
        speed = row["tokens_per_second"]["median"]
        if row["kind"] == "prefill":
            speeds["prefill", row["tokens"]] = speed
        elif row["depth"] == 0:
            speeds["batch", row["batch"]] = speed
        if row["kind"] == "decode" and row["batch"] == 1:
            speeds["decode", row["depth"]] = speed
    for row in report["skipped"]:
        print(f"note: hybra skipped {row}", file=sys.stderr)
    return speeds


def peer(args, file, group, record):
    """Tokens per second by case."""
    if group == "batch":
        return peer_batches(args, file)
    if group == "prefill":
        cases = ["-p", ",".join(map(str, args.prefill)), "-n", 0]
    else:
        cases = ["-p", 0, "-n", args.tokens, "-d", ",".join(map(str, args.depth))]
    command = [args.llama_bench, "-m", file, "-t", args.threads, "-ub", args.chunk,
               "-r", 1, "-o", "json", *cases]
    speeds = {}
    for row in json.loads(run(command, args.timeout)):
        record.setdefault("peer", {
            "name": "llama.cpp", "commit": row["build_commit"], "backends": row["backends"],
            "threads": row["n_threads"], "kv_dtype": row["type_k"],
        })
        case = ("prefill", row["n_prompt"]) if row["n_prompt"] else ("decode", row["n_depth"])
        speeds[case] = statistics.median(row["samples_ts"])
    return speeds


def peer_batches(args, file):
    speeds = {}
    for batch in args.batch:
        # The last row may be lost when the program ends, so a short one follows and is not used.
        # The peer rounds the context of a sequence to multiples of 256.
        context = batch * ((BATCH_PROMPT + args.tokens) // 256 + 1) * 256
        command = [args.llama_batched_bench, "-m", file, "-t", args.threads, "-c", context,
                   "-ub", args.chunk, "-npp", BATCH_PROMPT, "-ntg", args.tokens, "-npl", f"{batch},1",
                   "--output-format", "jsonl"]
        for line in run(command, args.timeout).splitlines():
            row = json.loads(line) if line.startswith("{") else {}
            if row.get("pl") == batch:
                speeds.setdefault(("batch", batch), row["speed_tg"])
        if ("batch", batch) not in speeds:
            raise Failure(f"{command[0]} printed no row for a batch of {batch}")
    return speeds


def loop_forever():
    while True:
        pass


class BusyProcess:
    """One process that loops, pinned to no core."""

    def __enter__(self):
        self.process = multiprocessing.Process(target=loop_forever, daemon=True)
        self.process.start()

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()


def measure(args, file):
    """The record of one file."""
    record = {"limit_samples": {}, "errors": []}
    samples = {}
    with open(file, "rb", buffering=0) as bytes_of_file:
        while bytes_of_file.read(1 << 24):
            pass
    for number in range(args.rounds):
        for group, cases in groups(args):
            for beside in (["idle", "busy"] if args.busy else ["idle"]):
                for name, program in (("hybra", hybra), ("peer", peer)):
                    progress = f"{file.name}: round {number + 1}/{args.rounds}, {group}, {name}"
                    print(f"{progress}{' beside a loop' if beside == 'busy' else ''}",
                          file=sys.stderr)
                    try:
                        if beside == "busy":
                            with BusyProcess():
                                speeds = program(args, file, group, record)
                        else:
                            speeds = program(args, file, group, record)
                    except (Failure, ValueError, KeyError) as error:
                        record["errors"].append(f"{group}, {name}: {error}")
                        print(f"error: {record['errors'][-1]}", file=sys.stderr)
                        continue
                    for case in cases:
                        if case in speeds:
                            samples.setdefault((case, beside, name), []).append(speeds[case])
    record["results"] = [result(case, samples, args.busy)
                         for _, cases in groups(args) for case in cases]
    limits = record.pop("limit_samples")
    record["limits"] = {name: spread(values) for name, values in limits.items()}
    return record


def spread(values):
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values),
            "samples": len(values)}


def result(case, samples, busy):
    """Both speeds of a case and their ratio, and what is lost beside a loop."""
    kind, number = case
    found = {"case": title(case), "kind": kind, "number": number}
    for name in ("hybra", "peer"):
        found[name] = spread(samples.get((case, "idle", name), []))
        if busy:
            beside = spread(samples.get((case, "busy", name), []))
            found[f"{name}_busy"] = beside
            idle = found[name]
            found[f"{name}_loss"] = 1 - beside["median"] / idle["median"] if beside and idle else None
    own, other = found["hybra"], found["peer"]
    found["ratio"] = own["median"] / other["median"] if own and other else None
    return found


def commit():
    """Of this working tree, with a mark where files differ from it."""
    try:
        head = run(["git", "-C", ROOT, "rev-parse", "HEAD"], 60).strip()
        changed = run(["git", "-C", ROOT, "status", "--porcelain"], 60).strip()
        return head + ("-changed" if changed else "")
    except Failure:
        return None


def machine_name(machine):
    """Such as amd-epyc-2core."""
    cpu = machine.get("cpu") or "unknown"
    words = re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-")
    return f"{words}-{machine.get('cores', 0)}core"


def cell(values):
    if not values:
        return "–"
    digits = 1 if values["median"] >= 10 else 2
    median, low, high = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low}–{high})"


def table(record):
    """Markdown: tokens per second, median (min–max)."""
    busy = record["busy"]
    head = ["case", "hybra", "llama.cpp", "ratio"]
    head += ["hybra beside a loop", "llama.cpp beside a loop"] if busy else []
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for row in record["results"]:
        ratio = f"{row['ratio']:.2f} ×" if row["ratio"] else "–"
        cells = [row["case"], cell(row["hybra"]), cell(row["peer"]), ratio]
        if busy:
            for name in ("hybra", "peer"):
                loss = row[f"{name}_loss"]
                cells.append("–" if loss is None else f"{-100 * loss:+.0f} %")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    args = arguments()
    failed = False
    for file in args.files:
        record = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": commit(),
            "file": {"name": file.name, "bytes": file.stat().st_size},
            "threads": args.threads,
            "rounds": args.rounds,
            "state_dtype": args.state_dtype,
            "tokens": args.tokens,
            "chunk": args.chunk,
            "busy": args.busy,
        }
        record.update(measure(args, file))
        failed |= bool(record["errors"])
        if "machine" not in record:
            continue
        machine = args.machine or machine_name(record["machine"])
        name = f"{record['date'][:10]}-{file.stem}-llama.cpp.json"
        out = args.out or ROOT / "benches/record" / machine / name
        if args.out and len(args.files) > 1:
            out = args.out.with_name(f"{args.out.stem}-{file.stem}{args.out.suffix}")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        memory = record["limits"].get("memory_read")
        print(f"\n{file.name}, {args.threads} threads, tokens/s, median (min–max) of "
              f"{args.rounds} rounds; memory read {memory['median'] / 1e9:.1f} GB/s "
              f"({memory['min'] / 1e9:.1f}–{memory['max'] / 1e9:.1f})\n")
        print(table(record))
        print(f"\nrecord: {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
