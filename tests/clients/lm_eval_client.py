"""lm-eval's log-likelihoods against sums of log-probabilities of tokens generated one by one."""

import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

from client_support import BASE, MODEL, run

QUESTIONS = [("c=b-7;b=0;", ["c=3", "b=0"]), ("b=1;a=b+2;", ["a=3", "c=9"])]


def post(path, body):
    request = urllib.request.Request(
        BASE + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request))


def ids(text):
    return post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]


def likelihood(context, continuation):
    """Each token is generated under a bias that leaves nothing else, and its own raw
    log-probability is summed: no echo, no prompt log-probabilities."""
    prompt, total = ids(context), 0.0
    for token in ids(context + continuation)[len(prompt):]:
        reply = post("/v1/completions", {
            "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 0,
            "logit_bias": {str(token): 100},
        })
        total += reply["choices"][0]["logprobs"]["token_logprobs"][0]
        prompt = prompt + [token]
    return total


def log_likelihoods_agree():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        rows = [{"query": q, "choices": c, "gold": 0} for q, c in QUESTIONS]
        (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
        (folder / "hybra_local.yaml").write_text(f"""
task: hybra_local
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/rows.json
test_split: test
output_type: multiple_choice
doc_to_text: query
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
""")
        model_args = (
            f"model={MODEL},base_url={BASE}/v1/completions,tokenizer_backend=remote,"
            "num_concurrent=1,max_retries=1,tokenized_requests=True,max_length=512"
        )
        subprocess.run(
            [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args",
             model_args, "--tasks", "hybra_local", "--include_path", folder, "--output_path",
             folder / "out", "--log_samples"],
            check=True, stdout=subprocess.DEVNULL,
        )
        (samples,) = (folder / "out").rglob("samples_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == len(QUESTIONS)
    for row in rows:
        for text, answer in zip(row["doc"]["choices"], row["filtered_resps"], strict=True):
            expected = likelihood(row["doc"]["query"], text)
            found = float(answer[0])
            assert abs(found - expected) < 1e-4 * max(1, abs(expected)), (row, text, expected)


run([log_likelihoods_agree])
