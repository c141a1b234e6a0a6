"""A pruned student in transformers and in llama.cpp: the same shape, logits and greedy tokens.

    pip install torch transformers safetensors xllamacpp
    python tests/peers/pruned.py target/release/hybra

Not part of the usual tests: the packages are large. Needs no network once they are there.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import xllamacpp
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

NUM_GREEDY = 8
SHAPE = ["--hidden-size", "48", "--mamba-head-dim", "12", "--intermediate-size", "64"]


def transformers_model(path):
    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    wrong = {kind: names for kind, names in info.items() if names}
    assert not wrong, wrong
    for module in model.modules():
        # The reference clamps dt by default; the published checkpoints ask for no limit.
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    return model.eval()


def greedy(model, tokens):
    tokens = list(tokens)
    for _ in range(NUM_GREEDY):
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[-NUM_GREEDY:]


def llama_cpp(path, tokens):
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
    server = xllamacpp.Server(params)
    request = {"prompt": tokens, "n_predict": NUM_GREEDY, "temperature": 0, "n_probs": 1}
    reply = server.handle_completions(request)
    return [token["id"] for token in reply["choices"][0]["logprobs"]["content"]]


def main():
    hybra = sys.argv[1]
    run = lambda *words: subprocess.run([hybra, *map(str, words)], check=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        teacher, student, gguf = folder / "teacher", folder / "student", folder / "student.gguf"
        run("init", "micro", teacher, "--dtype", "f32")
        run("prune", teacher, student, "--scores", "random", *SHAPE)
        run("convert", student, gguf, "--dtype", "f32")
        model = transformers_model(student)
        ids = torch.tensor([[(i * i * 7 + i * 3 + 5) % 512 for i in range(64)]])
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits
        reference = folder / "reference.safetensors"
        save_file({"input_ids": ids, "logits": logits.contiguous()}, str(reference))
        run("verify", student, "-r", reference)
        tokens = ids[0, :20].tolist()
        expected, found = greedy(model, tokens), llama_cpp(gguf, tokens)
        assert found == expected, (found, expected)
        print(json.dumps({"transformers": expected, "llama.cpp": found}))


if __name__ == "__main__":
    main()
