#!/usr/bin/env python3
"""Training speed of a nemotron_h hybrid in PyTorch on the CPU, the peer of Hybra's trainer.

One step is: forward, mean cross entropy over all tokens, backward, clipping of the global gradient
norm to 1, AdamW; f32 weights and moments. Every variant runs in a process of its own:

transformers  `AutoModelForCausalLM.from_config`, its path without extra kernels
plain         a model written here for speed on a CPU: hand-written backward passes of the Mamba-2
              mixer and of relu², norm weights folded into the next matrix, chunked SSD as batched
              matrix products, `scaled_dot_product_attention`
compiled      `torch.compile` of the same model; needs a C++ compiler

The processes keep freed memory (glibc settings, else page faults take a large share of a step);
`--malloc default` measures without that. `--hybra BINARY` measures Hybra's trainer as well, before and after the others: the recipe of
runs/default-model in its shape (that of `--preset teacher-s`), packs of as many tokens as a step
has, with its data loading; only its replies are learned (`learned_share`), so that it computes the
head and what follows the last Mamba or attention block for those tokens alone. `--learned SHARE`
gives the plain and the compiled model the same: as large a share of tokens counts, and no others'
rows go behind that block.
Under `--bf16` the head of the others is bf16 as well, Hybra's is f32.
`--check DIR` first compares loss and gradients of the
models with DIR/reference.safetensors and measures nothing unless told a config as well.

JSON goes to standard output: tokens per second as median, minimum and maximum over the steps after
two warm-ups, seconds of CPU time per step, peak resident bytes (VmHWM) and what the libraries
alone hold, and the machine's load average before and after. Other work on the machine makes every
number smaller, with two threads far more than its share, since each waits for the other; then
only the CPU time of a run with `--threads 1` means something.

Needs torch, transformers and safetensors. Nothing else should run on the machine.

Example:
  benches/peer/train_torch.py --preset teacher-s --threads 2
  benches/peer/train_torch.py --preset teacher-s --hybra target/release/hybra --bf16
  benches/peer/train_torch.py --check shared/golden/micro
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

VARIANTS = ("transformers", "plain", "compiled")
CHUNKS = (32, 64, 128)
WARM_UPS = 2
RECORD = "RECORD "

PRESETS = {
    "teacher-s": {
        "model_type": "nemotron_h", "architectures": ["NemotronHForCausalLM"],
        "hybrid_override_pattern": "M-M-M*-M-M-M*-M-", "num_hidden_layers": 16,
        "hidden_size": 128, "intermediate_size": 512, "vocab_size": 512,
        "mamba_num_heads": 8, "mamba_head_dim": 32, "ssm_state_size": 32, "n_groups": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "conv_kernel": 4, "chunk_size": 32, "expand": 2, "tie_word_embeddings": False,
        "layer_norm_epsilon": 1e-5, "use_conv_bias": True, "use_bias": False,
        "attention_bias": False, "mlp_bias": False, "mamba_proj_bias": False,
        "mlp_hidden_act": "relu2", "mamba_hidden_act": "silu",
        "time_step_limit": [0.0, float("inf")], "max_position_embeddings": 4096,
    },
}


def arguments():
    about, _, example = __doc__.partition("Example:")
    parser = argparse.ArgumentParser(description=about, epilog="example:" + example,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("config", nargs="?", type=pathlib.Path, metavar="CONFIG", help="config.json or its folder")
    add("--preset", choices=PRESETS, help="a shape instead of CONFIG")
    add("--tokens", type=int, default=4096, help="of one step")
    add("--length", type=int, default=128, help="tokens of a row")
    add("--steps", type=int, default=8, help="timed, after two warm-ups")
    add("--variant", choices=VARIANTS + ("all",), default="all")
    add("--threads", type=int, default=2)
    add("--chunk", type=int, metavar="Q", help="of the SSD [default: the fastest of 32, 64, 128]")
    add("--micro", type=int, metavar="ROWS",
        help="rows of one forward and backward pass; gradients are summed [default: all]")
    add("--learned", type=float, default=1.0, metavar="SHARE",
        help="of the tokens, those that count in the loss [default: all]")
    add("--optimizer", choices=("fused", "foreach"), default="fused")
    add("--precision", choices=("highest", "high", "medium"), default="highest",
        help="of f32 matrix products, torch.set_float32_matmul_precision")
    add("--bf16", action="store_true", help="matrix products under bf16 autocast")
    add("--autotune", action="store_true",
        help="compiled: let inductor choose matrix products, which takes minutes")
    add("--malloc", choices=("keep", "default"), default="keep")
    add("--check", type=pathlib.Path, metavar="DIR", help="golden checkpoint to compare with")
    add("--hybra", type=pathlib.Path, metavar="BINARY", help="measure this program too")
    add("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.config is None and args.preset is None and args.check is None:
        parser.error("CONFIG, --preset or --check is needed")
    if args.config is not None and args.preset is not None:
        parser.error("CONFIG and --preset exclude each other")
    if args.hybra and args.preset != "teacher-s":
        parser.error("--hybra needs --preset teacher-s")
    if args.tokens % args.length:
        parser.error("--tokens must be a multiple of --length")
    if args.micro and (args.tokens // args.length) % args.micro:
        parser.error("--micro must divide the rows")
    if not 0 < args.learned <= 1 or (args.learned < 1 and args.micro):
        parser.error("--learned must be a share above 0, and excludes --micro")
    if args.chunk and args.chunk < 1:
        parser.error("--chunk must be positive")
    return args


def load_config(path):
    path = path / "config.json" if path.is_dir() else path
    return json.loads(path.read_text(encoding="utf-8"))


if "--child" in sys.argv or "--check" in sys.argv:
    import torch
    import torch.nn.functional as F
    from torch.autograd import Function
    from torch.autograd.function import once_differentiable
else:
    # The parent only starts processes; it keeps torch out so that they have the machine.
    torch = None


def shape_of(config):
    """The numbers of a config that the plain model needs; refuses what it does not compute."""
    pattern = config.get("hybrid_override_pattern")
    if pattern is None:
        letters = {"mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*",
                   "mlp": "-"}
        pattern = "".join(letters[kind] for kind in config["layers_block_type"])
    unknown = [key for key in ("use_bias", "attention_bias", "mlp_bias", "mamba_proj_bias",
                               "tie_word_embeddings") if config.get(key)]
    if unknown or set(pattern) - set("M*-") or config.get("sliding_window"):
        raise SystemExit(f"the plain model has no {unknown or pattern or 'sliding window'}")
    if not config.get("use_conv_bias", True):
        raise SystemExit("the plain model needs a conv bias")
    low, high = config.get("time_step_limit") or (0.0, float("inf"))
    return pattern, (float(low), float("inf") if high is None else float(high))


if torch is not None:

    class MambaCore(Function):
        """What is between the two projections of a Mamba-2 mixer, with its backward pass.

        Convolution, SiLU, SSD in chunks, D, gate and the grouped RMS without its weight. Letters:
        K chunks of all rows, Q tokens of a chunk, H heads of P channels, G groups of R heads,
        N numbers of state. Decays and states are kept in f32 under autocast too.
        """

        @staticmethod
        def forward(ctx, zxbcdt, conv_w, conv_b, dt_bias, a_log, skip, dims, limit, eps):
            heads, width, groups, state, chunk = dims
            rows, length, _ = zxbcdt.shape
            inner, side, each = heads * width, groups * state, heads // groups
            count = length // chunk
            total = rows * count
            z, xbc, raw = zxbcdt.split([inner, inner + 2 * side, heads], -1)

            pre = torch.addcmul(conv_b, xbc, conv_w[:, -1])
            taps = conv_w.shape[1]
            if torch.compiler.is_compiling():
                padded = F.pad(xbc, (0, 0, taps - 1, 0))
                for back in range(1, taps):
                    start = taps - 1 - back
                    pre = pre + padded[:, start:start + length] * conv_w[:, taps - 1 - back]
            else:
                for back in range(1, min(taps, length)):
                    pre[:, back:].addcmul_(xbc[:, :-back], conv_w[:, taps - 1 - back])
            act = F.silu(pre)
            x, b, c = act.view(total, chunk, -1).split([inner, side, side], -1)
            x = x.unflatten(-1, (heads, width))
            b = b.unflatten(-1, (groups, state)).transpose(1, 2).contiguous()  # K G Q N
            c = c.unflatten(-1, (groups, state)).transpose(1, 2).contiguous()

            dt = F.softplus(raw.reshape(total, chunk, heads) + dt_bias)
            inside = None
            if limit[0] > 0 or limit[1] != float("inf"):
                inside = (dt >= limit[0]) & (dt <= limit[1])
                dt = dt.clamp(*limit)
            dt = dt.transpose(1, 2).contiguous()  # K H Q
            a = -torch.exp(a_log)
            s = torch.cumsum(dt * a[:, None], -1)
            u = (x.transpose(1, 2) * dt[..., None]).contiguous()  # K H Q P
            # Above the diagonal exp may be infinite; these numbers are replaced, not multiplied.
            decay = (s[..., :, None] - s[..., None, :]).exp_().tril_()  # K H Q Q
            gamma = torch.matmul(c, b.transpose(-1, -2))
            m = (decay.unflatten(1, (groups, each)) * gamma[:, :, None]).flatten(1, 2)
            y = torch.bmm(m.flatten(0, 1), u.flatten(0, 1)).unflatten(0, (total, heads))
            states = e = w = bw = ce = None
            if count > 1:
                e, w = s.exp(), (s[..., -1:] - s).exp()
                bw = (b[:, :, None] * w.unflatten(1, (groups, each))[..., None]).flatten(1, 2)
                ce = (c[:, :, None] * e.unflatten(1, (groups, each))[..., None]).flatten(1, 2)
                own = torch.matmul(u.transpose(-1, -2), bw).unflatten(0, (rows, count))
                last = e[..., -1].unflatten(0, (rows, count))[..., None, None]
                before = [torch.zeros_like(own[:, 0])]
                for index in range(count):
                    before.append(own[:, index] + last[:, index] * before[-1])
                states = torch.stack(before, 1)  # rows, count + 1, H P N
                entry = states[:, :-1].flatten(0, 1)
                y = torch.baddbmm(y.flatten(0, 1), ce.flatten(0, 1),
                                  entry.flatten(0, 1).transpose(-1, -2)).view_as(y)
            out = torch.addcmul(y.transpose(1, 2), x, skip[:, None]).reshape(rows, length, inner)

            gate = F.silu(z)
            v = (out * gate).unflatten(-1, (groups, inner // groups))
            size = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
            rstd = torch.rsqrt(size * size * (groups / inner) + eps)
            v = v * rstd
            ctx.save_for_backward(zxbcdt, conv_w, dt_bias, a, skip, pre, x, b, c, dt, u, decay, m,
                                  y, states, e, w, bw, ce, out, gate, v, rstd, inside)
            ctx.dims = dims
            return v.flatten(-2)

        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            (zxbcdt, conv_w, dt_bias, a, skip, pre, x, b, c, dt, u, decay, m, y, states, e, w, bw,
             ce, out, gate, v, rstd, inside) = ctx.saved_tensors
            heads, width, groups, state, chunk = ctx.dims
            rows, length, _ = zxbcdt.shape
            inner, side, each = heads * width, groups * state, heads // groups
            count = length // chunk
            total = rows * count
            z, xbc, raw = zxbcdt.split([inner, inner + 2 * side, heads], -1)

            grad = grad.unflatten(-1, (groups, inner // groups))
            mean = (grad * v).sum(-1, keepdim=True) * (-groups / inner)
            dv = (torch.addcmul(grad, v, mean) * rstd).flatten(-2)
            dz = torch.ops.aten.silu_backward(dv * out, z)
            dout = (dv * gate).view(total, chunk, heads, width)
            dskip = (dout * x).sum((0, 1, 3))

            dy = dout.transpose(1, 2).contiguous()  # K H Q P
            flat = dy.flatten(0, 1)
            du = torch.bmm(m.flatten(0, 1).transpose(-1, -2), flat)
            dm = torch.bmm(flat, u.flatten(0, 1).transpose(-1, -2)).unflatten(0, (total, heads))
            dgamma = (dm * decay).unflatten(1, (groups, each)).sum(2)  # K G Q Q
            dc = torch.matmul(dgamma, b)
            db = torch.matmul(dgamma.transpose(-1, -2), c)
            ds = (dy * y).sum(-1)  # K H Q
            if count > 1:
                entry = states[:, :-1].flatten(0, 1)
                give = torch.matmul(dy.transpose(-1, -2), ce).unflatten(0, (rows, count))
                last = e[..., -1].unflatten(0, (rows, count))[..., None, None]
                after = [torch.zeros_like(give[:, 0])]
                for index in range(count - 1, 0, -1):
                    after.append(give[:, index] + last[:, index] * after[-1])
                dstates = torch.stack(after[::-1], 1)  # of the state that a chunk leaves
                exit_ = dstates.flatten(0, 1)
                du = torch.baddbmm(du, bw.flatten(0, 1), exit_.flatten(0, 1).transpose(-1, -2))
                dc = dc + (torch.matmul(dy, entry) * e[..., None]).unflatten(
                    1, (groups, each)).sum(2)
                db = db + (torch.matmul(u, exit_) * w[..., None]).unflatten(
                    1, (groups, each)).sum(2)
                left = (dstates * states[:, 1:]).sum((-1, -2)).flatten(0, 1)
            du = du.view_as(u)
            direct = (du * x.transpose(1, 2)).sum(-1)
            ds = ds - dt * direct
            da = ds.sum(-1, keepdim=True) - ds.cumsum(-1) + ds
            if count > 1:
                da = da + left[..., None]
            ddt = da * a[:, None] + direct
            dalog = a * (da * dt).sum((0, 2))
            draw = ddt.transpose(1, 2).reshape(rows, length, heads) * torch.sigmoid(raw + dt_bias)
            if inside is not None:
                draw = draw * inside.view_as(draw)
            dx = torch.addcmul(dout * skip[:, None], du.transpose(1, 2),
                               dt.transpose(1, 2)[..., None])

            dact = torch.cat([dx.flatten(-2), db.transpose(1, 2).flatten(-2),
                              dc.transpose(1, 2).flatten(-2)], -1).view(rows, length, -1)
            dpre = torch.ops.aten.silu_backward(dact, pre)
            taps = conv_w.shape[1]
            dxbc = dpre * conv_w[:, -1]
            dtaps = [(dpre * xbc).sum((0, 1))]
            if torch.compiler.is_compiling():
                ahead = F.pad(dpre, (0, 0, 0, taps - 1))
                for back in range(1, taps):
                    shifted = ahead[:, back:back + length]
                    dxbc = dxbc + shifted * conv_w[:, taps - 1 - back]
                    dtaps.append((shifted * xbc).sum((0, 1)))
            else:
                for back in range(1, taps):
                    if back < length:
                        dxbc[:, :-back].addcmul_(dpre[:, back:], conv_w[:, taps - 1 - back])
                        dtaps.append((dpre[:, back:] * xbc[:, :-back]).sum((0, 1)))
                    else:
                        dtaps.append(torch.zeros_like(dtaps[0]))
            return (torch.cat([dz, dxbc, draw], -1), torch.stack(dtaps[::-1], 1),
                    dpre.sum((0, 1)), draw.sum((0, 1)), dalog, dskip, None, None, None)

    class Relu2(Function):
        @staticmethod
        def forward(ctx, x):
            h = F.relu(x)
            ctx.save_for_backward(h)
            return h * h

        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            h, = ctx.saved_tensors
            return (grad * h).mul_(2)

    class Parameters(torch.nn.Module):
        """Parameters under the names of the checkpoint."""

        def __init__(self, **shapes):
            super().__init__()
            for name, shape in shapes.items():
                self.register_parameter(name, torch.nn.Parameter(torch.empty(*shape)))

    class Layer(torch.nn.Module):
        def __init__(self, kind, config, limit, chunk):
            super().__init__()
            hidden = config["hidden_size"]
            self.kind, self.limit, self.chunk = kind, limit, chunk
            self.eps = config["layer_norm_epsilon"]
            self.norm = Parameters(weight=[hidden])
            if kind == "M":
                heads, groups = config["mamba_num_heads"], config["n_groups"]
                width, state = config["mamba_head_dim"], config["ssm_state_size"]
                self.dims = heads, width, groups, state
                inner, mixed = heads * width, heads * width + 2 * groups * state
                self.mixer = Parameters(A_log=[heads], D=[heads], dt_bias=[heads])
                self.mixer.in_proj = Parameters(weight=[inner + mixed + heads, hidden])
                self.mixer.conv1d = Parameters(weight=[mixed, 1, config["conv_kernel"]],
                                               bias=[mixed])
                self.mixer.norm = Parameters(weight=[inner])
                self.mixer.out_proj = Parameters(weight=[hidden, inner])
            elif kind == "*":
                self.heads, self.kv = config["num_attention_heads"], config["num_key_value_heads"]
                self.width = config["head_dim"]
                self.mixer = torch.nn.Module()
                self.mixer.q_proj = Parameters(weight=[self.heads * self.width, hidden])
                self.mixer.k_proj = Parameters(weight=[self.kv * self.width, hidden])
                self.mixer.v_proj = Parameters(weight=[self.kv * self.width, hidden])
                self.mixer.o_proj = Parameters(weight=[hidden, self.heads * self.width])
            else:
                self.mixer = torch.nn.Module()
                self.mixer.up_proj = Parameters(weight=[config["intermediate_size"], hidden])
                self.mixer.down_proj = Parameters(weight=[hidden, config["intermediate_size"]])

        def forward(self, x, rows=None):
            mixer, scale = self.mixer, self.norm.weight
            pick = lambda t: t if rows is None else t.flatten(0, 1).index_select(0, rows)
            normed = F.rms_norm(x, x.shape[-1:], None, self.eps)
            if self.kind == "M":
                length = normed.shape[1]
                chunk = min(self.chunk, length)
                extra = -length % chunk
                if extra:  # causal, so that what follows the row changes nothing of it
                    normed = F.pad(normed, (0, 0, 0, extra))
                mixed = F.linear(normed, mixer.in_proj.weight * scale).float()
                mixed = MambaCore.apply(mixed, mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias,
                                        mixer.dt_bias, mixer.A_log, mixer.D,
                                        (*self.dims, chunk), self.limit, self.eps)
                mixed = mixed[:, :length] if extra else mixed
                return pick(x) + F.linear(pick(mixed), mixer.out_proj.weight * mixer.norm.weight)
            if self.kind == "*":
                weight = torch.cat([mixer.q_proj.weight, mixer.k_proj.weight, mixer.v_proj.weight])
                mixed = F.linear(normed, weight * scale).unflatten(-1, (-1, self.width))
                q, k, v = mixed.transpose(1, 2).split([self.heads, self.kv, self.kv], 1)
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True,
                                                       enable_gqa=self.heads != self.kv)
                mixed = mixed.transpose(1, 2).flatten(-2)
                return pick(x) + F.linear(pick(mixed), mixer.o_proj.weight)
            hidden = Relu2.apply(F.linear(normed, mixer.up_proj.weight * scale))
            return x + F.linear(hidden, mixer.down_proj.weight)

    class Plain(torch.nn.Module):
        def __init__(self, config, chunk):
            super().__init__()
            pattern, limit = shape_of(config)
            vocabulary, hidden = config["vocab_size"], config["hidden_size"]
            self.eps = config["layer_norm_epsilon"]
            self.backbone = torch.nn.Module()
            self.backbone.embeddings = Parameters(weight=[vocabulary, hidden])
            self.backbone.layers = torch.nn.ModuleList(
                Layer(kind, config, limit, chunk) for kind in pattern)
            self.backbone.norm_f = Parameters(weight=[hidden])
            self.lm_head = Parameters(weight=[vocabulary, hidden])
            self.start()

        @torch.no_grad()
        def start(self):
            for name, value in self.named_parameters():
                if name.endswith((".A_log", "norm.weight", "norm_f.weight", ".D")):
                    value.fill_(1.0)
                    if name.endswith(".A_log"):
                        value.uniform_(1, 16).log_()
                elif name.endswith(".dt_bias"):
                    step = torch.empty_like(value).uniform_(-6.9, -2.3).exp()
                    value.copy_(step + torch.log(-torch.expm1(-step)))
                elif name.endswith("conv1d.bias"):
                    value.zero_()
                elif name.endswith("conv1d.weight"):
                    value.uniform_(-0.5, 0.5)
                else:
                    value.normal_(std=0.02)

        def set_chunk(self, chunk):
            for layer in self.backbone.layers:
                layer.chunk = chunk

        def logits(self, ids, rows=None):
            x = F.embedding(ids, self.backbone.embeddings.weight)
            meeting = max(i for i, layer in enumerate(self.backbone.layers) if layer.kind != "-")
            for i, layer in enumerate(self.backbone.layers):
                x = layer(x, rows if i == meeting else None)
            x = F.rms_norm(x, x.shape[-1:], None, self.eps)
            return F.linear(x, self.lm_head.weight * self.backbone.norm_f.weight)

        def forward(self, ids, labels, rows=None):
            """Mean cross entropy of some rows; labels below zero do not count."""
            labels = labels.flatten() if rows is None else labels.flatten()[rows]
            logits = self.logits(ids, rows)
            logits = logits.flatten(0, 1) if rows is None else logits
            return F.cross_entropy(logits.float(), labels, ignore_index=-100)

    class Transformers(torch.nn.Module):
        def __init__(self, config, chunk):
            super().__init__()
            import transformers
            transformers.logging.set_verbosity_error()
            limit = shape_of(config)[1]
            own = transformers.AutoConfig.for_model(**{**config, "use_cache": False})
            self.model = transformers.AutoModelForCausalLM.from_config(own, dtype=torch.float32)
            for module in self.model.modules():
                if type(module).__name__ == "NemotronHMamba2Mixer":
                    # It takes time_step_min for the lower bound; the checkpoints mean this one.
                    module.time_step_limit = limit
            self.set_chunk(chunk)

        def set_chunk(self, chunk):
            for module in self.model.modules():
                if type(module).__name__ == "NemotronHMamba2Mixer":
                    module.chunk_size = chunk

        def forward(self, ids, labels, rows=None):
            logits = self.model(input_ids=ids, use_cache=False).logits
            return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(),
                                   ignore_index=-100)


def build(variant, config, chunk):
    return (Transformers if variant == "transformers" else Plain)(config, chunk)


class Trainer:
    def __init__(self, args, variant, config, chunk):
        torch.manual_seed(1)
        self.args, self.model = args, build(variant, config, chunk)
        self.model.train()
        self.parameters = list(self.model.parameters())
        self.run = self.model
        if variant == "compiled":
            options = {"max_autotune": True, "max_autotune_gemm_backends": "ATEN,CPP"}
            self.run = torch.compile(self.model, fullgraph=True, dynamic=False,
                                     options=options if args.autotune else None)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, betas=(0.9, 0.95),
                                           weight_decay=0.1, **{args.optimizer: True})
        rows = args.tokens // args.length
        data = torch.randint(config["vocab_size"], (rows, args.length + 1))
        # Views with a step would make compiled code copy; a trainer's batches are contiguous too.
        self.ids, self.labels = data[:, :-1].contiguous(), data[:, 1:].contiguous()
        self.micro = args.micro or rows
        self.learned = None
        if args.learned < 1:
            count = max(1, round(args.learned * args.tokens))
            self.learned = torch.randperm(args.tokens)[:count].sort().values
            others = torch.ones(args.tokens, dtype=torch.bool)
            others[self.learned] = False
            self.labels.view(-1)[others] = -100

    def step(self):
        parts = len(self.ids) // self.micro
        total = 0.0
        for ids, labels in zip(self.ids.split(self.micro), self.labels.split(self.micro)):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
                loss = self.run(ids, labels, self.learned)
            (loss / parts if parts > 1 else loss).backward()
            total += loss.item() / parts
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def timed(self, steps):
        """Loss, seconds and seconds of CPU time of every step."""
        found = []
        for _ in range(steps):
            begun, used = time.perf_counter(), time.process_time()
            loss = self.step()
            found.append((loss, time.perf_counter() - begun, time.process_time() - used))
        return found


def resident(field):
    with open("/proc/self/status", encoding="ascii") as status:
        lines = dict(line.split(":", 1) for line in status if ":" in line)
    return int(lines[field].split()[0]) * 1024


def fastest_chunk(args, variant, config):
    """Seconds of the best step of each chunk size; the compiled model takes the plain one's."""
    seconds = {}
    for chunk in [size for size in CHUNKS if size <= args.length] or [args.length]:
        trainer = Trainer(args, "plain" if variant == "compiled" else variant, config, chunk)
        trainer.timed(1)
        seconds[chunk] = min(wall for _, wall, _ in trainer.timed(3))
    return seconds


def prepare(args):
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(args.precision)
    torch.set_flush_denormal(True)


def child(args, config):
    """Measures one variant and prints its record."""
    prepare(args)
    chunk, tried = args.chunk, None
    if chunk is None:
        tried = fastest_chunk(args, args.child, config)
        chunk = min(tried, key=tried.get)
        # Again in a process of its own: memory of the other chunk sizes does not count.
        print(RECORD + json.dumps({"chunk": chunk, "chunk_step_seconds": tried}))
        return
    load = os.getloadavg()[0]
    if args.child == "transformers":
        import transformers  # noqa: F401
    libraries = resident("VmRSS")
    trainer = Trainer(args, args.child, config, chunk)
    before = time.perf_counter()
    warm = trainer.timed(WARM_UPS)
    warm_seconds = time.perf_counter() - before
    steps = trainer.timed(args.steps)
    speeds = [args.tokens / wall for _, wall, _ in steps]
    print(RECORD + json.dumps({
        "variant": args.child, "chunk": chunk, "learned_share": args.learned,
        "tokens_per_second": {"median": statistics.median(speeds), "min": min(speeds),
                              "max": max(speeds)},
        "step_seconds": [wall for _, wall, _ in steps],
        "cpu_seconds_per_step": statistics.median(cpu for _, _, cpu in steps),
        "warm_up_seconds": warm_seconds,
        "peak_resident_bytes": resident("VmHWM"),
        "libraries_resident_bytes": libraries,
        "parameters": sum(value.numel() for value in trainer.parameters),
        "loss": {"first": warm[0][0], "last": steps[-1][0]},
        "load_average": [load, os.getloadavg()[0]],
        "torch": torch.__version__, "threads": torch.get_num_threads(),
    }))


def start_child(args, variant, chunk):
    """The record of a child process, or why there is none."""
    command = [sys.executable, os.path.abspath(__file__), "--child", variant,
               "--tokens", args.tokens, "--length", args.length, "--steps", args.steps,
               "--threads", args.threads, "--optimizer", args.optimizer,
               "--precision", args.precision, "--malloc", args.malloc,
               "--learned", args.learned]
    command += ["--preset", args.preset] if args.preset else [args.config.resolve()]
    for name in ("chunk", "micro"):
        value = chunk if name == "chunk" else getattr(args, name)
        command += [f"--{name}", value] if value else []
    for name in ("bf16", "autotune"):
        command += [f"--{name}"] if getattr(args, name) else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads),
                   "MKL_NUM_THREADS": str(args.threads),
                   "TORCHINDUCTOR_COMPILE_THREADS": str(args.threads),
                   "TOKENIZERS_PARALLELISM": "false"}
    if args.malloc == "keep":
        environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
                        "MALLOC_TOP_PAD_": str(1 << 26)}
    done = subprocess.run([str(part) for part in command], env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(RECORD)]
    if done.returncode or not lines:
        last = done.stderr.strip().splitlines()[-3:]
        return {"variant": variant, "error": f"ended with {done.returncode}: {last}"}
    return json.loads(lines[-1][len(RECORD):])


def hybra(args):
    """Hybra's trainer over as many steps."""
    precision = "bf16" if args.bf16 else "f32"
    recipe = pathlib.Path(__file__).resolve().parents[2] / "runs/default-model/sft.toml"
    steps = WARM_UPS + args.steps
    settings = {"steps": steps, "schedule.warmup_steps": 1, "schedule.decay_steps": 1,
                "precision": f'"{precision}"', "data.pack_len": args.tokens // 2,
                "data.batch_size": 2, "checkpoint.every": steps,
                "model.tokenizer": "assets/default-model"}
    with tempfile.TemporaryDirectory() as folder:
        command = [args.hybra.resolve(), "train", "sft", "--config", recipe,
                   "--output", f"{folder}/run", "--threads", str(args.threads)]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        with open(f"{folder}/log", "w+", encoding="utf-8") as log:
            process = subprocess.Popen(command, cwd=recipe.parents[2], stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
            log.seek(0)
            if status:
                return {"variant": "hybra", "error": log.read().strip().splitlines()[-3:]}
        with open(f"{folder}/run/timing.jsonl", encoding="utf-8") as timing:
            rows = [json.loads(line) for line in timing][WARM_UPS:]
        with open(f"{folder}/run/log.jsonl", encoding="utf-8") as log:
            last = json.loads(log.readlines()[-1])
    speeds = [row["tokens_per_second"] for row in rows]
    return {"variant": "hybra", "precision": precision,
            "learned_share": last["learned_tokens"] / last["tokens"],
            "tokens_per_second": {"median": statistics.median(speeds), "min": min(speeds),
                                  "max": max(speeds)},
            "step_seconds": [row["seconds"] for row in rows],
            "cpu_seconds_of_the_run_per_step": (usage.ru_utime + usage.ru_stime) / steps,
            "peak_resident_bytes": usage.ru_maxrss * 1024}


def measure(args):
    if os.getloadavg()[0] > 0.5:
        print(f"other work runs here (load {os.getloadavg()[0]:.1f}); speeds will be too low",
              file=sys.stderr)
    results = [hybra(args)] if args.hybra else []
    results += measure_torch(args)
    return results + ([hybra(args)] if args.hybra else [])


def measure_torch(args):
    chosen = VARIANTS if args.variant == "all" else (args.variant,)
    results, chunks = [], {}
    for variant in chosen:
        if variant == "compiled" and not (os.environ.get("CXX") or shutil.which("g++")
                                          or shutil.which("clang++")):
            results.append({"variant": variant, "error": "no C++ compiler"})
            continue
        tried = {}
        kind = "plain" if variant == "compiled" else variant
        if args.chunk is None and kind not in chunks:
            print(f"{variant}: chunk size", file=sys.stderr)
            tried = start_child(args, kind, None)
            if "error" in tried:
                results.append(tried)
                continue
            chunks[kind] = tried["chunk"]
        print(f"{variant}: {args.steps} steps", file=sys.stderr)
        row = start_child(args, variant, args.chunk or chunks[kind])
        if "chunk_step_seconds" in tried:
            row["chunk_step_seconds"] = tried["chunk_step_seconds"]
        results.append(row)
    return results


def check(args):
    """Loss and gradients of every model against the golden ones; true when all are near."""
    from safetensors.torch import load_file
    prepare(args)
    config = load_config(args.check)
    weights = load_file(args.check / "model.safetensors")
    golden = load_file(args.check / "reference.safetensors")
    ids = golden["input_ids"]
    labels = F.pad(ids[:, 1:], (0, 1), value=-100)
    cases = [("plain", chunk) for chunk in (16, *CHUNKS)] + [("transformers", 64)]
    if args.variant in ("all", "compiled") and shutil.which("g++"):
        cases.append(("compiled", 32))
    rows = []
    for variant, chunk in cases:
        model = build(variant, config, chunk)
        own = dict(model.named_parameters())
        names = {name: name for name in own}
        if variant == "transformers":
            names = {name: name.removeprefix("model.").replace("model.", "backbone.", 1)
                     for name in own}
        if sorted(names.values()) != sorted(weights):
            raise SystemExit(f"{variant}: names differ: {set(names.values()) ^ set(weights)}")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(weights[names[name]])
        run = torch.compile(model, fullgraph=True) if variant == "compiled" else model
        loss = run(ids, labels)
        loss.backward()
        errors = {}
        for name, value in own.items():
            truth = golden["grad." + names[name]].double()
            errors[names[name]] = ((value.grad.double() - truth).norm() / truth.norm()).item()
        worst = max(errors, key=errors.get)
        truth = golden["loss"].item()
        rows.append({"variant": variant, "chunk": chunk, "loss": loss.item(), "golden": truth,
                     "loss_error": abs(loss.item() - truth) / abs(truth),
                     "gradient_error": errors[worst], "worst": worst,
                     "passed": max(errors[worst], abs(loss.item() / truth - 1)) <= 1e-4})
    return rows


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cpus": os.cpu_count()}


def commit():
    """Of this checkout, `-changed` where files differ from it."""
    here = pathlib.Path(__file__).parent
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=-changed"]
    done = subprocess.run(command, cwd=here, text=True, capture_output=True, check=False)
    return done.stdout.strip() or None


def main():
    args = arguments()
    if args.child:
        child(args, PRESETS[args.preset] if args.preset else load_config(args.config))
        return
    record, bad = {}, False
    if args.check:
        record["check"] = check(args)
        bad = not all(row["passed"] for row in record["check"])
    if not bad and (args.preset or args.config):
        record |= {"date": datetime.date.today().isoformat(), "commit": commit(),
                   "config": args.preset or str(args.config), "tokens": args.tokens,
                   "length": args.length, "steps": args.steps, "threads": args.threads,
                   "micro": args.micro, "optimizer": args.optimizer, "malloc": args.malloc,
                   "precision": args.precision, "bf16": args.bf16, "autotune": args.autotune,
                   "machine": processor(), "results": measure(args)}
        rows = [row for row in record["results"] if "error" not in row]
        bad = len(rows) < len(record["results"])
        peers = [row for row in rows if row["variant"] != "hybra"]
        if peers:
            best = max(peers, key=lambda row: row["tokens_per_second"]["median"])
            record["fastest"] = best["variant"]
            own = [row["tokens_per_second"]["median"] for row in rows if row not in peers]
            if own:
                record["ratio"] = statistics.mean(own) / best["tokens_per_second"]["median"]
    print(json.dumps(record, indent=2))
    sys.exit(bad)


if __name__ == "__main__":
    main()
