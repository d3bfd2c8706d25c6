#!/usr/bin/env python3
"""Generates golden cases: the results that the MP4SR model (arXiv 2303.11879) must reproduce, from an independent PyTorch reference.

Run, from the root of the repository:

    python3 -m venv .venv && .venv/bin/pip install torch safetensors numpy
    .venv/bin/python tests/golden/generate.py tests/golden        # writes every case
    .venv/bin/python tests/golden/generate.py --check FOLDER      # recomputes the cases of a folder

The same command writes the same bytes (all randomness has a fixed seed; on another machine or with another version of
PyTorch the last bit of a value may differ). `crates/models/tests/golden.rs` compares the Rust model with the files.

Each `.safetensors` file is one case with dropout off. Its metadata has one key, `case`: JSON with stage, dims, scalars,
switches, modalities (in order), adam, tolerance, measured, without_grad, zero_grad. Its tensors:
    in.*     inputs: ragged features (`offsets`, `values`), ids (0 is padding), lengths, masks, cotangents
    param.*  parameters; every weight is [in, out]: y = x W + b
    out.*    results; sequence outputs are 0 at padding
    grad.*   the gradient of out.loss, before clipping
    adam.*   the parameters after one step: clip the joint norm, add decay * parameter, then Adam
Inputs are float32; results are computed from them in float64 and rounded to float32. A test accepts
|x - y| <= atol + rtol * max|y|; `measured` is an upper bound (a power of ten) of this script's error in float32.

When the model changes, first change the equation below, `CASES` and, for a new parameter, `shapes`. Run --check on the
old files to confirm that only the intended cases differ. Then generate the files and make the Rust test agree. For a new
switch, add its default to `SWITCHES` only if every old file should contain it; otherwise read it with `.get`, as is done
for `cmcl_direction`. Write equations as in the paper, for one item or one sequence at a time: this file is written for
readability, not for speed, and shares no code with the model.
"""

import json
import math
import sys
from pathlib import Path

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file

torch.set_num_threads(1)

SEED = 41  # the best-conditioned of several seeds: float32 uses under 3% of every tolerance
EPS = 1e-12  # for cosines and for every LayerNorm
WIDTHS = {"text": 18, "image": 14, "audio": 10}
DIMS = {"items": 29, "batch": 6, "positions": 8, "model": 12, "heads": 3, "layers": 3, "experts": 5,
        "feed_forward": 20, "attention": 6}
# These differ from the defaults of the model, so that a hard-coded constant is detected.
SCALARS = {"tau": 0.1, "lambda": 0.05, "pad_rows": 7, "cosine_eps": EPS, "layer_norm_eps": EPS}
ADAM = {"lr": 0.002, "weight_decay": 0.005, "clip_norm": 5.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
SWITCHES = {"id_embedding": True, "logits": "cosine", "pooling_gradient": "learned", "pooling_rows": "masked",
            "projection": "on", "same_target": "leave_out"}
OUT, GRAD = {"atol": 2e-5, "rtol": 2e-5}, {"atol": 3e-5, "rtol": 1e-4}

# name: (switches that differ from SWITCHES, or the modalities; extra kinds of results to keep)
CASES = {
    "encoder": ({}, ["alpha", "pooled", "gate", "experts"]),
    "transformer": ({}, []),
    "pretrain_default": ({}, ["pooled", "gate", "sequence", "adam"]),
    "pretrain_keep": ({"same_target": "keep"}, []),
    "pretrain_zero": ({"same_target": "zero"}, []),
    "pretrain_row_sums": ({"cmcl_direction": "row_sums"}, []),
    "pretrain_no_projection": ({"projection": "off"}, []),
    "pretrain_unmasked": ({"pooling_rows": "unmasked"}, ["pooled", "gate"]),
    "pretrain_unmasked_frozen": ({"pooling_rows": "unmasked", "pooling_gradient": "frozen"},
                                 ["pooled", "gate", "adam"]),
    "pretrain_all_switches": ({"pooling_rows": "unmasked", "pooling_gradient": "frozen", "projection": "off",
                               "same_target": "zero"}, ["pooled", "gate"]),
    "pretrain_three_modalities": ({"modalities": ["text", "image", "audio"]}, []),
    "finetune_default": ({}, ["pooled", "gate", "sequence", "adam"]),
    "finetune_dot": ({"logits": "dot"}, []),
    "finetune_text_only": ({"logit_modalities": ["text"]}, []),
    "finetune_no_id": ({"id_embedding": False}, []),
    "optimizer": ({}, ["adam"]),
    "metrics": ({}, []),
}
OPTIONAL = ["alpha", "pooled", "gate", "experts", "sequence", "adam"]

# The sequences before sequence dropout, the items that it keeps (it always keeps the first one), and the targets. Item 4
# has no text, item 17 no image, and item 22 neither; three samples share a target, and two share another.
SEQUENCES = [[3, 17, 28, 9, 4, 12, 25, 6], [11], [22, 5, 19, 8, 29, 13, 2, 16], [7, 4, 20], [1, 14, 27, 10, 22],
             [4, 21, 9]]
KEEP = [[1, 1, 1, 1, 1, 1, 1, 1], [1], [0, 1, 0, 1, 1, 1, 0, 1], [0, 0, 0], [1, 1, 1, 0, 1], [1, 0, 1]]
TARGETS = [13, 4, 13, 26, 4, 13]
EMPTY = {"text": [4, 22], "image": [17, 22], "audio": [5, 22]}


# ---------------------------------------------------------------- building blocks

def linear(p, name, x):
    return x @ p[f"{name}.weight"] + p[f"{name}.bias"]


def layer_norm(p, name, x):
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + EPS) * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def unit(x):
    return x / x.norm(dim=-1, keepdim=True).clamp(min=EPS)


def pad(rows, n):
    """Pads sequences of [length, ...] to one tensor [B, n, ...], with zeros after each."""
    return torch.stack([torch.cat([r, r.new_zeros(n - len(r), *r.shape[1:])]) for r in rows])


# ---------------------------------------------------------------- item encoder (specification, section 3)

def encode_item(case, p, rows):
    """Encodes one item's rows [S, d] (S may be 0): returns alpha [S], pooled e [d], gate g [O], experts [O, d_0], z [d_0]."""
    count, pooling = len(rows), ["pool.w1", "pool.b1", "pool.w2", "pool.b2"]
    w1, b1, w2, b2 = (p[k].detach() if case["switches"]["pooling_gradient"] == "frozen" else p[k] for k in pooling)
    if case["switches"]["pooling_rows"] == "unmasked":  # the item is padded with rows of zeros, which take part in the softmax
        rows = torch.cat([rows, rows.new_zeros(case["scalars"]["pad_rows"] - count, rows.shape[1])])
    alpha = torch.softmax(((rows @ w1 + b1) @ w2 + b2).squeeze(1), 0)
    e = alpha @ rows
    g = torch.softmax(e @ p["gate.weight"], 0)
    experts = [layer_norm(p, f"expert.{k}.norm", linear(p, f"expert.{k}", e)) for k in range(len(g))]
    z = sum(g[k] * experts[k] for k in range(len(g)))
    return alpha[:count], e, g, torch.stack(experts), z


def encode_items(case, p, t, m, out):
    """Returns z of every item in modality m, [I, d_0]."""
    own = {k.removeprefix(f"encoder.{m}."): v for k, v in p.items() if k.startswith(f"encoder.{m}.")}
    offsets, values = t[f"in.features.{m}.offsets"].tolist(), t[f"in.features.{m}.values"]
    items = [encode_item(case, own, values[a:b]) for a, b in zip(offsets, offsets[1:])]
    alpha, pooled, gate, experts, z = zip(*items)
    out[f"alpha.{m}"] = torch.cat(alpha)
    for name, value in [("pooled", pooled), ("gate", gate), ("experts", experts), ("z", z)]:
        out[f"{name}.{m}"] = torch.stack(value)
    return out[f"z.{m}"]


# ---------------------------------------------------------------- transformer (section 4)

def attention(p, name, x, heads):
    """Returns the causal self-attention of one sequence [n, d], and its weights [heads, n, n]."""
    query, key, value = (linear(p, f"{name}.{k}", x) for k in ["query", "key", "value"])
    width = x.shape[1] // heads
    weights, mixed = [], []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / math.sqrt(width)
        later = torch.ones_like(scores).triu(1).bool()
        weights.append(torch.softmax(scores.masked_fill(later, -math.inf), 1))
        mixed.append(weights[-1] @ value[:, part])
    return linear(p, f"{name}.output", torch.cat(mixed, 1)), torch.stack(weights)


def transform(case, p, x):
    """Encodes one sequence [n, d_0] without padding; returns h and all intermediate values."""
    trace = {"mixed": x}
    x = trace["input"] = layer_norm(p, "input_norm", x + p["position"][: len(x)])
    for l in range(case["dims"]["layers"]):
        new, trace[f"attention_weights.{l}"] = attention(p, f"layer.{l}.attention", x, case["dims"]["heads"])
        x = trace[f"attention.{l}"] = layer_norm(p, f"layer.{l}.attention.norm", x + new)
        new = linear(p, f"layer.{l}.feed_forward.down", gelu(linear(p, f"layer.{l}.feed_forward.up", x)))
        x = trace[f"layer.{l}"] = layer_norm(p, f"layer.{l}.feed_forward.norm", x + new)
    return x[-1], trace


def sequence_vectors(case, p, t, embedded, shift, out):
    """Returns h of every mixed sequence, modality -> [B, d_0]. `embedded` has the vectors of the items, modality -> [I, d_0]."""
    names, n, h = case["modalities"], case["dims"]["positions"], {}
    for m in case["switches"]["logit_modalities"] if case["stage"] == "finetune" else names:
        traces, last = [], []
        for items, length, shifts in zip(t["in.items"], t["in.lengths"], shift):
            taken = [names[(names.index(m) + int(shifts[i])) % len(names)] for i in range(length)]
            x = torch.stack([embedded[taken[i]][int(items[i]) - 1] for i in range(length)])
            vector, trace = transform(case, p, x)
            last.append(vector)
            traces.append(trace)
        h[m] = out[f"h.{m}"] = torch.stack(last)
        for key in traces[0]:
            if "attention" not in key:
                out[f"sequence.{m}.{key}"] = pad([trace[key] for trace in traces], n)
    return h


# ---------------------------------------------------------------- losses (sections 5 and 6)

def log_f(case, a, b):
    """Returns log f(a_j, b_j') = cos(a_j, b_j') / tau, [B, B]."""
    return unit(a) @ unit(b).T / case["scalars"]["tau"]


def terms(case, logs, targets, j, itself):
    """Returns the terms that sample j sums over j': row j of `logs` after the treatment of false negatives.

    The term j' = j is included only if `itself`.
    """
    found = []
    for k in range(len(targets)):
        same = k != j and targets[k] == targets[j]
        if (k == j and not itself) or (same and case["switches"]["same_target"] == "leave_out"):
            continue
        found.append(torch.zeros_like(logs[j, k]) if same and case["switches"]["same_target"] == "zero" else logs[j, k])
    return found


def log_sum(found):
    return torch.logsumexp(torch.stack(found), 0)


def nip_rows(case, views, z, targets):
    logs = [log_f(case, view, z) for view in views]
    rows = []
    for j in range(len(targets)):
        positive = log_sum([s[j, j] for s in logs])
        everything = log_sum([term for s in logs for term in terms(case, s, targets, j, True)])
        rows.append(everything - positive)
    return torch.stack(rows)


def cmcl_rows(case, views, targets):
    """Returns -l(a_j, b_j), the mean over all ordered pairs (a, b) of different views."""
    rows = []
    for j in range(len(targets)):
        pairs = []
        for x, a in enumerate(views):
            for y, b in enumerate(views):
                if x == y:
                    continue
                logs = log_f(case, a, b)
                cross = logs
                if x > y and case["switches"].get("cmcl_direction", "symmetric") == "row_sums":
                    cross = log_f(case, b, a)  # the second direction reuses the row sums of the first
                within = terms(case, log_f(case, a, a), targets, j, False)
                pairs.append(log_sum(terms(case, cross, targets, j, True) + within) - logs[j, j])
        rows.append(sum(pairs) / len(pairs))
    return torch.stack(rows)


def pretrain(case, p, t, out):
    names, targets = case["modalities"], t["in.targets"].tolist()
    z = {m: encode_items(case, p, t, m, out) for m in names}
    h = sequence_vectors(case, p, t, z, t["in.shift"], out)
    heads = case["switches"]["projection"] == "on"

    def add(kind, name, rows):
        out[f"{kind}_rows.{name}"], out[f"{kind}.{name}"] = rows, rows.mean()
        return rows.mean()

    nip, cmcl = [], []
    for m in names:
        views = [h[m]]
        if heads:  # every head maps all sequence vectors into its space, those of its modality first
            views = [linear(p, f"projection.{m}", h[a]) for a in [m] + [a for a in names if a != m]]
            for a, view in zip([m] + [a for a in names if a != m], views):
                out[f"m_hat.{m}" if a == m else f"m_til.{m}.{a}"] = view
            cmcl.append(add("cmcl", m, cmcl_rows(case, views, targets)))
        nip.append(add("nip", m, nip_rows(case, views, z[m][t["in.targets"] - 1], targets)))
    if not heads:
        cmcl.append(add("cmcl", "all", cmcl_rows(case, [h[m] for m in names], targets)))
    return sum(nip) + case["scalars"]["lambda"] * sum(cmcl)


def finetune(case, p, t, out):
    used, targets = case["switches"]["logit_modalities"], t["in.targets"]
    candidates = {}
    for m in used:
        candidates[m] = encode_items(case, p, t, m, out)
        if case["switches"]["id_embedding"]:
            candidates[m] = candidates[m] + p["id_embedding"][1:]
        out[f"candidates.{m}"] = candidates[m]
    h = sequence_vectors(case, p, t, candidates, torch.zeros_like(t["in.items"]), out)
    if case["switches"]["logits"] == "dot":
        logits = sum(h[m] @ candidates[m].T for m in used)
    else:
        logits = sum(log_f(case, h[m], candidates[m]) for m in used)
    out["logits"] = logits
    out["ranks"] = torch.tensor([rank(scores, int(target)) for scores, target in zip(logits, targets)])
    losses = [torch.logsumexp(scores, 0) - scores[target - 1] for scores, target in zip(logits, targets)]
    return torch.stack(losses).mean()


def encoder(case, p, t, out):
    return sum((encode_items(case, p, t, m, out) * t[f"in.cotangent.{m}"]).sum() for m in case["modalities"])


def transformer(case, p, t, out):
    done = [transform(case, p, x[:length]) for x, length in zip(t["in.x"], t["in.lengths"])]
    n = case["dims"]["positions"]
    out["h"] = torch.stack([h for h, _ in done])
    for key in done[0][1]:
        values = [trace[key] for _, trace in done]
        if key.startswith("attention_weights"):  # [heads, l, l] each: pad both positions
            values = [torch.nn.functional.pad(w, (0, n - w.shape[2], 0, n - w.shape[1])) for w in values]
            out[key] = torch.stack(values)
        elif key != "mixed":
            out[key] = pad(values, n)
    return (out["h"] * t["in.cotangent"]).sum()


# ---------------------------------------------------------------- training and evaluation (sections 7 and 8)

def clip_and_step(adam, p, gradients, state, step):
    """Returns the joint norm, and the parameters after step number `step`; a parameter whose gradient is None does not change."""
    norm = math.sqrt(sum(float((gradients[k].double() ** 2).sum()) for k in p if gradients[k] is not None))
    factor, new = min(1.0, adam["clip_norm"] / (norm + 1e-6)), {}
    for name, value in p.items():
        if gradients[name] is None:
            new[name] = value
            continue
        g = gradients[name] * factor + adam["weight_decay"] * value
        first, second = state.get(name, (torch.zeros_like(value), torch.zeros_like(value)))
        first = adam["beta1"] * first + (1 - adam["beta1"]) * g
        second = adam["beta2"] * second + (1 - adam["beta2"]) * g**2
        state[name] = first, second
        mean, square = first / (1 - adam["beta1"] ** step), second / (1 - adam["beta2"] ** step)
        new[name] = value - adam["lr"] * mean / (torch.sqrt(square) + adam["eps"])
    return norm, new


def optimizer(case, p, t):
    results, state, step = {}, {}, 1
    while any(k.startswith(f"grad.{step}.") for k in t):
        gradients = {name: t.get(f"grad.{step}.{name}") for name in p}
        norm, p = clip_and_step(case["adam"], p, gradients, state, step)
        results[f"out.grad_norm.{step}"] = torch.tensor(norm)
        results |= {f"adam.{step}.{name}": value for name, value in p.items()}
        step += 1
    return results


def rank(scores, target, removed=None):
    """Returns 1 + the number of other items with a higher or an equal score: ties count against the model."""
    if not torch.isfinite(scores).all():
        raise ValueError("a score is not finite")
    return 1 + sum(
        bool(score >= scores[target - 1])
        for i, score in enumerate(scores)
        if i != target - 1 and not (removed is not None and removed[i])
    )


def metrics(t):
    results = {}
    for prefix, removed in [("out", [None] * len(t["in.scores"])), ("out.removed", t["in.removed"])]:
        ranks = [rank(s, int(g), r) for s, g, r in zip(t["in.scores"], t["in.targets"], removed)]
        results[f"{prefix}.ranks"] = torch.tensor(ranks)
        for k in [5, 10, 20]:
            for name, gain in [("recall", lambda r: 1.0), ("ndcg", lambda r: 1 / math.log2(r + 1))]:
                each = torch.tensor([gain(r) if r <= k else 0.0 for r in ranks], dtype=torch.float64)
                results[f"{prefix}.{name}.{k}"], results[f"{prefix}.{name}.{k}.mean"] = each, each.mean()
    for scores, target in zip(t["in.scores_bad"], t["in.targets_bad"]):
        try:
            rank(scores, int(target))
        except ValueError:
            continue
        raise AssertionError("scores that are not finite were ranked")
    return results


def compute(case, tensors, dtype=torch.float64):
    """Computes every out., grad. and adam. tensor of a case from its in. and param. tensors; sets case's without_grad and zero_grad."""
    t = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    p = {k.removeprefix("param."): v for k, v in t.items() if k.startswith("param.")}
    if case["stage"] == "metrics":
        return metrics(t)
    if case["stage"] == "optimizer":
        return optimizer(case, p, t)
    leaves = dict(p)
    if case["stage"] == "transformer":
        leaves["in.x"] = t["in.x"]
    for leaf in leaves.values():
        leaf.requires_grad_()
    out = {}
    stage = {"encoder": encoder, "transformer": transformer, "pretrain": pretrain, "finetune": finetune}[case["stage"]]
    out["loss"] = stage(case, p, t, out)
    gradients = dict(zip(leaves, torch.autograd.grad(out["loss"], list(leaves.values()), allow_unused=True)))
    for name in p:
        if name.endswith(("pool.b1", "pool.b2")):  # they cancel in the softmax
            gradients[name] = None
    case["without_grad"] = [name for name in leaves if gradients[name] is None]
    case["zero_grad"] = [name for name in p if name.endswith("attention.key.bias")]  # these cancel too
    for name in case["zero_grad"]:
        assert gradients[name].abs().max() < (1e-9 if dtype == torch.float64 else 1e-3), name
        gradients[name] = torch.zeros_like(gradients[name])
    with torch.no_grad():
        norm, stepped = clip_and_step(case.get("adam", ADAM), p, gradients, {}, 1)
    out["grad_norm"] = torch.tensor(norm)
    results = {f"out.{k}": v for k, v in out.items()}
    results |= {f"grad.{k}": torch.zeros_like(leaves[k]) if g is None else g for k, g in gradients.items()}
    results |= {f"adam.{k}": v for k, v in stepped.items() if not k.endswith(("pool.b1", "pool.b2"))}
    return {k: v.detach() for k, v in results.items()}


# ---------------------------------------------------------------- making cases

def shapes(case):
    """Returns the shape of every parameter of a case, by name."""
    d, stage, switches = case["dims"], case["stage"], case["switches"]
    model, found = d["model"], {}

    def affine(name, i, o):
        found.update({f"{name}.weight": (i, o), f"{name}.bias": (o,)})

    def norm(name):
        found.update({f"{name}.weight": (model,), f"{name}.bias": (model,)})

    for m in case["modalities"] if stage != "transformer" else []:
        e, width, attention = f"encoder.{m}", d["feature"][m], d["attention"]
        found |= {f"{e}.pool.w1": (width, attention), f"{e}.pool.b1": (attention,), f"{e}.pool.w2": (attention, 1),
                  f"{e}.pool.b2": (1,), f"{e}.gate.weight": (width, d["experts"])}
        for k in range(d["experts"]):
            affine(f"{e}.expert.{k}", width, model)
            norm(f"{e}.expert.{k}.norm")
    if stage != "encoder":
        found["position"] = (d["positions"], model)
        norm("input_norm")
        for l in range(d["layers"]):
            for part in ["query", "key", "value", "output"]:
                affine(f"layer.{l}.attention.{part}", model, model)
            norm(f"layer.{l}.attention.norm")
            affine(f"layer.{l}.feed_forward.up", model, d["feed_forward"])
            affine(f"layer.{l}.feed_forward.down", d["feed_forward"], model)
            norm(f"layer.{l}.feed_forward.norm")
    for m in case["modalities"] if stage == "pretrain" and switches["projection"] == "on" else []:
        affine(f"projection.{m}", model, model)
    if stage == "finetune" and switches["id_embedding"]:
        found["id_embedding"] = (d["items"] + 1, model)
    return found


def normal(random, *shape):
    return torch.from_numpy(random.standard_normal(shape)).float()


def parameter(random, name, shape):
    """Draws a parameter that differs from its initial value: gates and biases are not 0, and the weights of norms are not 1."""
    value = normal(random, *shape)
    if name in ["position", "id_embedding"]:
        value *= 0.3
        value[0] *= name == "position"  # item 0 is padding
    elif len(shape) == 2:
        value /= math.sqrt(shape[0])
    else:
        value *= 0.15
        value += name.endswith("norm.weight")
    return value


def features(random, case, m):
    """Draws the ragged rows of every item: 1 to 4, but none for the items in EMPTY, and as many as padding allows for items 9 and 29."""
    counts = random.randint(1, 5, case["dims"]["items"])
    counts[[8, 28]] = case["scalars"]["pad_rows"]
    counts[[i - 1 for i in EMPTY[m]]] = 0
    return {f"in.features.{m}.offsets": torch.tensor([0, *counts.cumsum().tolist()]),
            f"in.features.{m}.values": normal(random, int(counts.sum()), case["dims"]["feature"][m])}


def padded(rows, n, dtype=torch.int64):
    return torch.tensor([[*row, *[0] * (n - len(row))] for row in rows], dtype=dtype)


def sequences(random, case):
    """Returns the sequences: before and after sequence dropout for pre-training, and complete for fine-tuning."""
    n, rows, found = case["dims"]["positions"], SEQUENCES, {"in.targets": torch.tensor(TARGETS)}
    if case["stage"] == "pretrain":
        rows = [[i for at, (i, k) in enumerate(zip(row, keep)) if at == 0 or k] for row, keep in zip(SEQUENCES, KEEP)]
        shift = [random.randint(0, len(case["modalities"]), len(row)).tolist() for row in rows]
        found |= {"in.items_before": padded(SEQUENCES, n), "in.keep": padded(KEEP, n, torch.uint8),
                  "in.shift": padded(shift, n)}
    return found | {"in.items": padded(rows, n), "in.lengths": torch.tensor([len(row) for row in rows])}


def optimizer_tensors(random):
    """Makes four steps, with and without clipping; some elements are changed only by weight decay, and one is not changed at all."""
    t = {"param.a": normal(random, 4, 3), "param.b": normal(random, 7), "param.still": normal(random, 2, 3)}
    t["param.b"][2] = 0
    for step, size in enumerate([6.0, 0.3, 2.0, 0.01], start=1):
        for name in ["a", "b"]:
            t[f"grad.{step}.{name}"] = size * normal(random, *t[f"param.{name}"].shape)
        t[f"grad.{step}.b"][2:4] = 0
    return t


def metrics_tensors(random, items=31, users=33):
    """Makes scores with ties, rows of equal scores, and every rank from the first to the last; the target is never removed."""
    scores = torch.from_numpy(random.randint(-80, 120, (users, items)) / 8).float()
    targets = torch.from_numpy(random.randint(1, items + 1, users))
    removed = torch.from_numpy((random.random_sample((users, items)) < 0.2).astype("uint8"))
    for u, target in enumerate(targets.tolist()):
        others = torch.cat([scores[u, : target - 1], scores[u, target:]]).sort(descending=True).values
        if u < items - 1:  # equal to element u of the others in even rows, just below it in odd ones
            scores[u, target - 1] = others[u] - u % 2 / 16
        elif u == items - 1:  # the highest score; the rows after it have equal scores, with and without removed items
            scores[u, target - 1] = others[0] + 1
        else:
            scores[u] = 0.5
        removed[u, target - 1] = 0
    removed[-1] = 0
    bad = normal(random, 4, items)
    bad[0, 5], bad[1, 0], bad[2, -1], bad[3, 6] = math.nan, math.inf, -math.inf, math.nan
    return {"in.scores": scores, "in.targets": targets, "in.removed": removed, "in.scores_bad": bad,
            "in.targets_bad": torch.tensor([2, 3, 4, 7])}


def errors(found, expected):
    """Returns the largest error, absolute and relative to the tensor's largest value, and that value."""
    if not expected.numel():
        return 0.0, 0.0, 0.0
    error, scale = float((found.double() - expected.double()).abs().max()), float(expected.abs().max())
    return error, error / scale if scale else error, scale


def build_case(name, switches, extra):
    """Returns the description and the tensors of one case."""
    random = numpy.random.RandomState(SEED)  # the same for all cases: they share data and parameters
    stage = name.split("_")[0]
    modalities = switches.get("modalities", ["text", "image"])
    case = {"stage": stage, "case": name}
    if stage == "optimizer":
        case |= {"adam": ADAM | {"lr": 0.01, "weight_decay": 0.1}, "without_grad": ["still"]}
        case["tolerance"] = {"out": OUT, "grad": GRAD, "adam": {"atol": 2e-6, "rtol": 0.0}}
        tensors = optimizer_tensors(random)
    elif stage == "metrics":
        tensors = metrics_tensors(random)
        users, items = tensors["in.scores"].shape
        case |= {"dims": {"items": items, "users": users}, "tolerance": {"out": OUT}}
    else:
        case |= {"dims": DIMS | {"feature": {m: WIDTHS[m] for m in modalities}}, "scalars": SCALARS,
                 "modalities": modalities, "tolerance": {"out": OUT, "grad": GRAD}}
        case["switches"] = SWITCHES | {"logit_modalities": modalities} | switches
        case["switches"].pop("modalities", None)
        if "adam" in extra:
            case["adam"] = ADAM
            case["tolerance"]["adam"] = {"atol": 0.02 * ADAM["lr"], "rtol": 0.0}
        tensors = {}
        for m in modalities if stage != "transformer" else []:
            tensors |= features(random, case, m)
        tensors |= {f"param.{k}": parameter(random, k, shape) for k, shape in shapes(case).items()}
        d = case["dims"]
        if stage == "encoder":
            tensors |= {f"in.cotangent.{m}": normal(random, d["items"], d["model"]) for m in modalities}
        elif stage == "transformer":
            lengths = torch.tensor([len(row) for row in SEQUENCES])
            x = pad([normal(random, length, d["model"]) for length in lengths], d["positions"])
            tensors |= {"in.x": x, "in.lengths": lengths, "in.cotangent": normal(random, d["batch"], d["model"])}
        else:
            tensors |= sequences(random, case)

    # The results to keep: those in OPTIONAL are kept only if the case asks for them.
    kind = {k: k.split(".")[1] if k.startswith("out.") else k.split(".")[0] for k in compute(case, tensors)}
    stays = [k for k in kind if kind[k] not in OPTIONAL or kind[k] in extra or stage in ["optimizer", "metrics"]]
    exact, single = compute(case, tensors), compute(case, tensors, torch.float32)
    measured = {}
    for k in stays:
        if not exact[k].is_floating_point():
            assert torch.equal(exact[k], single[k]), f"{name}: {k} is not safe in float32"
            continue
        group, (absolute, relative, scale) = k.split(".")[0], errors(single[k], exact[k])
        tolerance = case["tolerance"][group]
        assert absolute <= 0.1 * (tolerance["atol"] + tolerance["rtol"] * scale), f"{name}: {k} is not safe in float32"
        if not k.startswith("grad.") or k.removeprefix("grad.") not in case["without_grad"] + case["zero_grad"]:
            assert not k.startswith("grad.") or exact[k].any(), f"{name}: {k} is zero throughout"
        worst = measured.setdefault(group, {"abs": 0.0, "rel": 0.0})
        worst["abs"], worst["rel"] = max(worst["abs"], absolute), max(worst["rel"], relative)
    up = lambda x: float(f"1e{math.ceil(math.log10(x))}") if x else 0.0
    case["measured"] = {group: {k: up(v) for k, v in worst.items()} for group, worst in measured.items()}
    results = {k: exact[k].float() if exact[k].is_floating_point() else exact[k] for k in stays}
    return case, tensors | results


def generate(folder):
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, (switches, extra) in CASES.items():
        case, tensors = build_case(name, switches, extra)
        path = folder / f"{name}.safetensors"
        tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
        save_file(tensors, path, metadata={"case": json.dumps(case, sort_keys=True)})
        total += path.stat().st_size
        print(f"{name}: {len(tensors)} tensors, {path.stat().st_size} bytes, measured {json.dumps(case['measured'])}")
    print(f"{total} bytes")


def check(folder):
    """Recomputes every result of every case in a folder; returns true if all are within the stored tolerance."""
    good, paths = True, sorted(folder.glob("*.safetensors"))
    for path in paths:
        with safe_open(path, "pt") as file:
            stored, tensors = json.loads(file.metadata()["case"]), {k: file.get_tensor(k) for k in file.keys()}
        inputs = ("in.", "param.", "grad.") if stored["stage"] == "optimizer" else ("in.", "param.")
        given = {k: v for k, v in tensors.items() if k.startswith(inputs)}
        case, wrong, worst, compared = json.loads(json.dumps(stored)), [], {}, 0
        found = compute(case, given)
        for name, expected in tensors.items():
            if name in given:
                continue
            compared += 1
            if name not in found or found[name].shape != expected.shape:
                wrong.append(f"{name} (not computed)")
            elif not expected.is_floating_point():
                if not torch.equal(found[name], expected):
                    wrong.append(name)
            else:
                group, (absolute, relative, scale) = name.split(".")[0], errors(found[name], expected)
                tolerance = stored["tolerance"][group]
                share = absolute / (tolerance["atol"] + tolerance["rtol"] * scale)
                if not share <= 1:
                    wrong.append(name)
                last = worst.get(group, (0.0, 0.0, 0.0))
                worst[group] = max(last[0], absolute), max(last[1], relative), max(last[2], share)
        if stored["stage"] not in ["optimizer", "metrics"]:
            wrong += [k for k in ["without_grad", "zero_grad"] if set(stored[k]) != set(case[k])]
            wrong += [f"{k} (no such parameter)" for k in given if k.startswith("param.")
                      and k.removeprefix("param.") not in shapes(case)]
            wrong += [f"param.{k} (missing)" for k in shapes(case) if f"param.{k}" not in given]
        line = ", ".join(f"{g} {a:.1e} ({r:.1e} relative, {100 * s:.2g}% of the tolerance)"
                         for g, (a, r, s) in worst.items())
        print(f"{path.stem}: {compared} compared: {line}" + (f"; WRONG: {wrong}" if wrong else ""))
        good &= not wrong
    print(f"{len(paths)} cases: {'all agree' if good and paths else 'THEY DO NOT AGREE'}")
    return good and bool(paths)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--check":
        sys.exit(0 if check(Path(sys.argv[2])) else 1)
    elif len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        generate(Path(sys.argv[1]))
    else:
        sys.exit("usage: generate.py OUT | generate.py --check FOLDER")
