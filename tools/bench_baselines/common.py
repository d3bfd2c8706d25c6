"""Code that the steps share: reading the file that `mp4sr-bench baseline --dump` wrote, padding batches, layers, and the timed loop."""

import json
import os
import sys
import time

import torch
import torch.nn.functional as F
from safetensors import safe_open

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bench_peer"))
from torch_step import keep_freed_memory  # noqa: E402, F401

EPS = 1e-12
MODALITIES = ("text", "image")


class Step:
    """A model with the samples of one step. Subclasses prepare tensors in `__init__`, which is not timed, and define `loss`."""

    def __init__(self, path, dropout):
        with safe_open(path, "pt") as file:
            self.case = json.loads(file.metadata()["case"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        self.inputs = {name[3:]: value for name, value in tensors.items() if name.startswith("in.")}
        trained = set(self.case["trained"])
        self.p = {name[6:]: value.requires_grad_(name[6:] in trained) for name, value in tensors.items() if name.startswith("param.")}
        self.own = self.case["settings"].get("own", {})
        self.transformer = self.case["settings"].get("transformer", {})
        self.dropout = dropout
        self.rate = self.transformer.get("dropout", 0.0) if dropout else 0.0
        self.items = self.case["items"]

    def parameters(self):
        return [value for value in self.p.values() if value.requires_grad]

    def after_step(self):
        """Runs after the step of the optimiser."""

    def drop(self, x):
        return F.dropout(x, self.rate) if self.rate else x

    def join(self, name, parts, dim):
        """Replaces several parameters that are always used together by one concatenated parameter."""
        pieces = [self.p.pop(part).detach() for part in parts]
        self.p[name] = torch.cat(pieces, dim).requires_grad_()

    def linear(self, x, name):
        return F.linear(x, self.p[name + ".weight"].t(), self.p[name + ".bias"])

    def norm(self, x, name):
        weight = self.p[name + ".weight"]
        return F.layer_norm(x, weight.shape, weight, self.p[name + ".bias"], EPS)

    def padded(self, values, offsets):
        """Returns sequences padded with zeros, [B, n], and their lengths."""
        offsets = self.inputs[offsets] if isinstance(offsets, str) else offsets
        values = self.inputs[values] if isinstance(values, str) else values
        return pad(values, offsets), offsets[1:] - offsets[:-1]


def pad(values, offsets):
    lengths = offsets[1:] - offsets[:-1]
    out = values.new_zeros(len(lengths), int(lengths.max()))
    out[torch.arange(out.shape[1]) < lengths[:, None]] = values
    return out


def unit(x):
    return F.normalize(x, dim=-1, eps=EPS)


def last(x, lengths):
    return x[torch.arange(len(x)), lengths - 1]


class Layers:
    """Post-norm transformer layers over padded sequences. The last layer computes only the last tokens if the others are not used."""

    def __init__(self, step, prefix=""):
        self.step, self.prefix = step, prefix
        self.count, self.heads = step.transformer["layers"], step.transformer["heads"]
        for layer in range(self.count):
            for part, dim in (("weight", 1), ("bias", 0)):
                names = [f"{prefix}layer.{layer}.attention.{map_}.{part}" for map_ in ("query", "key", "value")]
                if all(step.p[name].requires_grad for name in names):
                    step.join(f"{prefix}layer.{layer}.attention.all.{part}", names, dim)
                else:
                    step.p[f"{prefix}layer.{layer}.attention.all.{part}"] = torch.cat([step.p.pop(name) for name in names], dim)

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attention(self, x, name, lengths, causal, top):
        step, d = self.step, x.shape[-1]
        weight, bias = step.p[f"{name}.all.weight"], step.p[f"{name}.all.bias"]
        real = (torch.arange(x.shape[1]) < lengths[:, None])[:, None, None]
        if top:
            query = F.linear(last(x, lengths).unsqueeze(1), weight[:, :d].t(), bias[:d])
            key, value = F.linear(x, weight[:, d:].t(), bias[d:]).chunk(2, -1)
        else:
            query, key, value = F.linear(x, weight.t(), bias).chunk(3, -1)
        whole = causal and not top
        context = F.scaled_dot_product_attention(
            self.split(query), self.split(key), self.split(value), None if whole else real, step.rate, is_causal=whole
        )
        return step.linear(context.transpose(1, 2).flatten(-2), f"{name}.output")

    def __call__(self, x, lengths, causal=True, all_tokens=False):
        step = self.step
        for layer in range(self.count):
            name, top = f"{self.prefix}layer.{layer}", layer + 1 == self.count and not all_tokens
            context = self.attention(x, f"{name}.attention", lengths, causal, top)
            x = last(x, lengths).unsqueeze(1) if top else x
            x = step.norm(x + step.drop(context), f"{name}.attention.norm")
            inner = F.gelu(step.linear(x, f"{name}.feed_forward.up"))
            x = step.norm(x + step.drop(step.linear(inner, f"{name}.feed_forward.down")), f"{name}.feed_forward.norm")
        return x if all_tokens else x.squeeze(1)


class Transformer:
    """A transformer: position embeddings, a LayerNorm and layers."""

    def __init__(self, step):
        self.step, self.layers = step, Layers(step)

    def __call__(self, tokens, lengths, **how):
        x = self.step.norm(tokens + self.step.p["position"][: tokens.shape[1]], "input_norm")
        return self.layers(self.step.drop(x), lengths, **how)


def run(step, warmup, steps, compiled):
    """Returns the losses of all steps, and the wall-clock and processor times of the steps after the warm-up, in milliseconds."""
    adam, losses, times, busy = step.case["adam"], [], [], []
    parameters = step.parameters()
    optimizer = torch.optim.Adam(parameters, lr=adam["lr"], weight_decay=adam["weight_decay"], fused=True)
    loss_of = torch.compile(step.loss) if compiled else step.loss
    for _ in range(warmup + steps):
        began, processor = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, adam["clip_norm"])
        optimizer.step()
        step.after_step()
        losses.append(loss.item())
        times.append(1000 * (time.perf_counter() - began))
        busy.append(1000 * (time.process_time() - processor))
    return losses, times[warmup:], busy[warmup:]
