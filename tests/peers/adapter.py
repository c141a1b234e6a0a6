"""A trained adapter in `peft`: the same logits as the merged model.

peft refuses `out_proj` of this family, so the adapter has none.

    pip install torch transformers peft safetensors
    python tests/peers/adapter.py target/release/hybra

Not part of the usual tests: the packages are large. Needs no network once they are there.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
RUN = """steps = 3
[model]
[optimizer]
lr = 1e-2
[lora]
rank = 4
target_modules = ["in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
[data]
pack_len = 512
[[data.sources]]
task = "arithmetic"
"""


def load(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for module in model.modules():
        # The reference clamps dt by default; the published checkpoints ask for no limit.
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    return model.eval()


def main():
    binary = Path(sys.argv[1]).resolve()
    base = ROOT / "assets" / "default-model"
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        (at / "run.toml").write_text(RUN)
        words = ["train", "sft", "--config", "run.toml", "--output", "run"]
        subprocess.run([binary, *words, "--set", f"model.from={base}"], cwd=at, check=True)
        tokens = torch.tensor([[1] + list(range(20, 60))])
        with torch.no_grad():
            plain = load(base)(tokens).logits
            merged = load(at / "run" / "model")(tokens).logits
            adapter = PeftModel.from_pretrained(load(base), at / "run" / "adapter").eval()
            found = adapter(tokens).logits
    size = (merged - plain).abs().max().item()
    gap = (merged - found).abs().max().item()
    print(f"the adapter moves logits by up to {size:.4f}; peft and the merged model differ by {gap:.2e}")
    assert gap < 1e-3 * size, "peft computes another model"


if __name__ == "__main__":
    main()
