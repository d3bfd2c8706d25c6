"""Generates the golden cases of the baselines from an independent float64 reference, written for readability, not for speed.

    python tests/golden/baselines/generate.py      (PyTorch, numpy, safetensors)

The command writes the `.safetensors` files to the folder of this script. They have the format of `tests/golden/generate.py`: the metadata
key `case` with model, stage, dims, scalars, switches, adam and tolerance, and the tensors `in.*`, `param.*`, `out.*`, `grad.*` and
`adam.*`. Users and items are 1-based, and no table has a padding row.
"""

import json
import math
import pathlib

import torch
from safetensors.torch import save_file

torch.manual_seed(11)
FOLDER = pathlib.Path(__file__).parent
USERS, ITEMS, WIDTH, BATCH = 9, 13, 6, 10
TOLERANCE = {"out": {"atol": 2e-5, "rtol": 2e-5}, "grad": {"atol": 1e-5, "rtol": 1e-4}, "adam": {"atol": 2e-5, "rtol": 0.0}}


def training():
    """Returns the users' training sequences: user 3 has one event twice, user 5 has a single event; items 12 and 13 have none."""
    generator = torch.Generator().manual_seed(3)
    parts = [torch.randint(1, ITEMS - 1, (length,), generator=generator).tolist() for length in [4, 7, 3, 5, 1, 6, 2, 8, 3]]
    parts[2][1] = parts[2][0]
    offsets = [0]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return parts, offsets


def dense_adjacency(parts):
    edges = torch.zeros(USERS, ITEMS, dtype=torch.float64)
    for user, part in enumerate(parts):
        for item in part:
            edges[user, item - 1] = 1.0
    whole = torch.zeros(USERS + ITEMS, USERS + ITEMS, dtype=torch.float64)
    whole[:USERS, USERS:], whole[USERS:, :USERS] = edges, edges.T
    degree = whole.sum(1)
    scale = torch.where(degree > 0, degree.clamp(min=1).rsqrt(), torch.zeros_like(degree))
    return scale[:, None] * whole * scale[None, :]


def propagated(tables, adjacency, layers):
    layer, layers_so_far = tables, [tables]
    for _ in range(layers):
        layer = adjacency @ layer
        layers_so_far.append(layer)
    return torch.stack(layers_so_far).mean(0)


def write(name, meta, tensors):
    meta = {"case": name, "model": "lightgcn", "dims": {"users": USERS, "items": ITEMS, "model": WIDTH}, "tolerance": TOLERANCE,
            "without_grad": [], "zero_grad": [], **meta}
    stored = {}
    for key, value in tensors.items():
        value = torch.as_tensor(value).detach()
        stored[key] = (value.float() if value.is_floating_point() else value).contiguous().clone()
    save_file(stored, FOLDER / f"{name}.safetensors", {"case": json.dumps(meta)})


def parameters():
    return {"user_embedding": torch.randn(USERS, WIDTH).float().double().requires_grad_(),
            "item_embedding": torch.randn(ITEMS, WIDTH).float().double().requires_grad_()}


def train(name, layers, regularisation, weight, decay):
    parts, offsets = training()
    p = parameters()
    users = torch.randint(1, USERS + 1, (BATCH,))
    positives = torch.tensor([parts[u - 1][j % len(parts[u - 1])] for j, u in enumerate(users.tolist())])
    negatives = torch.tensor([next(i for i in range(1 + (5 * j) % ITEMS, 3 * ITEMS) if (i - 1) % ITEMS + 1 not in parts[u - 1])
                              for j, u in enumerate(users.tolist())])
    negatives = (negatives - 1) % ITEMS + 1
    vectors = propagated(torch.cat([p["user_embedding"], p["item_embedding"]]), dense_adjacency(parts), layers)
    of_users, of_items = vectors[:USERS], vectors[USERS:]
    positive = (of_users[users - 1] * of_items[positives - 1]).sum(1)
    negative = (of_users[users - 1] * of_items[negatives - 1]).sum(1)
    bpr = -torch.nn.functional.logsigmoid(positive - negative).mean()
    rows = [p["user_embedding"][users - 1], p["item_embedding"][positives - 1], p["item_embedding"][negatives - 1]]
    if regularisation == "squared":
        reg = sum(r.pow(2).sum() for r in rows) / (2 * BATCH)
    else:
        reg = sum(r.norm() for r in rows) / BATCH
    loss = bpr + weight * reg
    loss.backward()
    norm = torch.cat([v.grad.flatten() for v in p.values()]).norm()
    factor = min(1.0, 5.0 / (float(norm) + 1e-6))
    adam = {}
    for key, value in p.items():
        gradient = value.grad * factor + decay * value.detach()
        # In the first step of Adam, the bias-corrected moments are the gradient and its square.
        adam[key] = value.detach() - 1e-3 * gradient / (gradient.abs() + 1e-8)
    tensors = {"in.train.items": torch.tensor(sum(parts, [])), "in.train.offsets": torch.tensor(offsets), "in.users": users,
               "in.positives": positives, "in.negatives": negatives, "out.user_vectors": of_users, "out.item_vectors": of_items,
               "out.positive": positive, "out.negative": negative, "out.bpr": bpr, "out.regularisation": reg, "out.loss": loss,
               "out.grad_norm": norm}
    for key, value in p.items():
        tensors |= {f"param.{key}": value, f"grad.{key}": value.grad, f"adam.{key}": adam[key]}
    write(name, {"stage": "train", "scalars": {"layers": layers, "reg_weight": weight}, "switches": {"regularisation": regularisation},
                 "adam": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": decay, "clip_norm": 5.0}}, tensors)


def score(name, layers):
    parts, offsets = training()
    p = parameters()
    vectors = propagated(torch.cat([p["user_embedding"], p["item_embedding"]]), dense_adjacency(parts), layers)
    users, targets = torch.tensor([2, 5, 9, 1]), torch.tensor([13, 4, 12, 7])
    scores = vectors[users - 1] @ vectors[USERS:].T
    removed = torch.zeros(len(users), ITEMS, dtype=torch.uint8)
    for row, (user, target) in enumerate(zip(users.tolist(), targets.tolist())):
        for item in parts[user - 1]:
            if item != target:
                removed[row, item - 1] = 1
    own = scores.gather(1, (targets - 1)[:, None])
    others = (scores >= own).scatter(1, (targets - 1)[:, None], False)
    tensors = {"in.train.items": torch.tensor(sum(parts, [])), "in.train.offsets": torch.tensor(offsets), "in.users": users,
               "in.targets": targets, "in.removed": removed, "out.user_vectors": vectors[:USERS], "out.item_vectors": vectors[USERS:],
               "out.scores": scores, "out.ranks_all": 1 + others.sum(1), "out.ranks": 1 + (others & (removed == 0)).sum(1)}
    tensors |= {f"param.{key}": value for key, value in p.items()}
    write(name, {"stage": "score", "scalars": {"layers": layers}, "switches": {}}, tensors)


# ---------------------------------------------------------------- CL4SRec

EPS = 1e-12


def norm(p, name, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(p, name, x):
    return x @ p[f"{name}.weight"] + p[f"{name}.bias"]


def causal_transformer(p, x, layers, heads):
    """Encodes one sequence [n, d] without padding; returns the output at its last token."""
    x = norm(p, "input_norm", x + p["position"][: len(x)])
    for l in range(layers):
        query, key, value = (linear(p, f"layer.{l}.attention.{k}", x) for k in ["query", "key", "value"])
        width, mixed = x.shape[1] // heads, []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = query[:, part] @ key[:, part].T / width**0.5
            later = torch.ones_like(scores).triu(1).bool()
            mixed.append(torch.softmax(scores.masked_fill(later, -torch.inf), 1) @ value[:, part])
        x = norm(p, f"layer.{l}.attention.norm", x + linear(p, f"layer.{l}.attention.output", torch.cat(mixed, 1)))
        up = linear(p, f"layer.{l}.feed_forward.up", x)
        gelu = up * 0.5 * (1 + torch.erf(up / 2**0.5))
        x = norm(p, f"layer.{l}.feed_forward.norm", x + linear(p, f"layer.{l}.feed_forward.down", gelu))
    return x[-1]


def transformer_shapes(n, d, inner, layers):
    shapes = {"position": [n, d], "input_norm.weight": [d], "input_norm.bias": [d]}
    for l in range(layers):
        for name, a, b in [("attention.query", d, d), ("attention.key", d, d), ("attention.value", d, d), ("attention.output", d, d),
                           ("feed_forward.up", d, inner), ("feed_forward.down", inner, d)]:
            shapes |= {f"layer.{l}.{name}.weight": [a, b], f"layer.{l}.{name}.bias": [b]}
        for name in ["attention.norm", "feed_forward.norm"]:
            shapes |= {f"layer.{l}.{name}.weight": [d], f"layer.{l}.{name}.bias": [d]}
    return shapes


def cl4srec(name, similarity, tau, layers, decay):
    items, n, d, inner, heads = 17, 8, 12, 10, 3
    share = {"crop": 0.5, "mask": 0.4, "reorder": 0.7}
    histories = [[3, 8, 1, 17, 8, 2], [5], [9, 4], [1, 2, 3, 4, 5, 6, 7, 8], [16, 3, 3]]
    targets = torch.tensor([4, 4, 17, 1, 9])
    shapes = {"item_embedding": [items, d], "mask_embedding": [d], **transformer_shapes(n, d, inner, layers)}
    p = {}
    for key, shape in shapes.items():
        value = torch.randn(shape) * 0.4 + (1.0 if "norm.weight" in key else 0.0)
        p[key] = value.float().double().requires_grad_()
    # The operations are 0 crop, 1 mask, 2 reorder and 3 none. Each history has a different pair of operations, chosen by hand.
    draws = [[(0, 2), (1, [1, 4])], [(3, None), (3, None)], [(2, [1, 0]), (0, 1)], [(1, [0, 3, 7]), (2, [0, 1, 4, 6, 3, 5, 2, 7])],
             [(0, 0), (2, [2, 1, 0])]]
    tensors = {"in.items": torch.tensor([h + [0] * (n - len(h)) for h in histories]),
               "in.lengths": torch.tensor([len(h) for h in histories]), "in.targets": targets}
    views = []
    for v in range(2):
        operation, begin, masked, order, finished = [], [], [], [], []
        for history, own in zip(histories, draws):
            kind, what = own[v]
            kept = max(1, int(len(history) * share["crop"]))
            view = list(history)
            if kind == 0:
                view = view[what : what + kept]
            elif kind == 1:
                view = [items + 1 if position in what else item for position, item in enumerate(view)]
            elif kind == 2:
                view = [history[position] for position in what]
            operation.append(kind)
            begin.append(what if kind == 0 else 0)
            masked.append([int(kind == 1 and position in what) for position in range(n)])
            order.append(what + list(range(len(what), n)) if kind == 2 else list(range(n)))
            finished.append(view)
        views.append(finished)
        prefix = f"in.view.{v + 1}"
        tensors |= {f"{prefix}.operation": torch.tensor(operation), f"{prefix}.begin": torch.tensor(begin),
                    f"{prefix}.masked": torch.tensor(masked, dtype=torch.uint8), f"{prefix}.order": torch.tensor(order),
                    f"{prefix}.items": torch.tensor([view + [0] * (n - len(view)) for view in finished])}
    table = torch.cat([p["item_embedding"], p["mask_embedding"][None]])
    vectors = lambda all: torch.stack([causal_transformer(p, table[torch.tensor(h) - 1], layers, heads) for h in all])
    h, first, second = vectors(histories), vectors(views[0]), vectors(views[1])
    logits = h @ p["item_embedding"].T
    rows = torch.nn.functional.cross_entropy(logits, targets - 1, reduction="none")
    z = torch.cat([first, second])
    if similarity == "cosine":
        z = z / z.norm(dim=1, keepdim=True).clamp(min=EPS)
    count = len(histories)
    similar = (z @ z.T / tau).masked_fill(torch.eye(2 * count).bool(), -torch.inf)
    partner = torch.arange(2 * count).roll(count)
    contrast = torch.logsumexp(similar, 1) - similar[torch.arange(2 * count), partner]
    loss = rows.mean() + 0.3 * contrast.mean()
    loss.backward()
    own = logits.gather(1, (targets - 1)[:, None])
    ranks = 1 + (logits >= own).scatter(1, (targets - 1)[:, None], False).sum(1)
    tensors |= {"out.h": h, "out.view.1.h": first, "out.view.2.h": second, "out.logits": logits, "out.cross_entropy_rows": rows,
                "out.cross_entropy": rows.mean(), "out.contrast_rows": contrast, "out.contrast": contrast.mean(), "out.loss": loss,
                "out.ranks": ranks, "out.grad_norm": torch.cat([v.grad.flatten() for v in p.values()]).norm()}
    factor = min(1.0, 5.0 / (float(tensors["out.grad_norm"]) + 1e-6))
    zero = [key for key in p if key.endswith("attention.key.bias")]
    for key, value in p.items():
        tensors |= {f"param.{key}": value, f"grad.{key}": value.grad}
        if key not in zero:
            gradient = value.grad * factor + decay * value.detach()
            tensors[f"adam.{key}"] = value.detach() - 1e-3 * gradient / (gradient.abs() + 1e-8)
    tolerance = {**TOLERANCE, "grad": {"atol": 3e-5, "rtol": 1e-4}}
    write(name, {"model": "cl4srec", "stage": "train", "tolerance": tolerance, "zero_grad": zero, "switches": {"similarity": similarity},
                 "dims": {"batch": count, "items": items, "positions": n, "model": d, "feed_forward": inner, "layers": layers, "heads": heads},
                 "scalars": {"lambda": 0.3, "tau": tau, **share},
                 "adam": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": decay, "clip_norm": 5.0}}, tensors)


# ---------------------------------------------------------------- helpers of the sequential models


HISTORIES = [[3, 8, 1, 17, 8, 2], [5], [9, 4], [1, 2, 3, 4, 5, 6, 7, 8], [16, 3, 3]]
TARGETS = [4, 4, 17, 1, 9]
SEQUENCE_DIMS = {"batch": 5, "items": 17, "positions": 8, "model": 12, "feed_forward": 10, "layers": 2, "heads": 3}


def draw(shapes, scale=0.4):
    """Draws parameters in float64 with values that float32 represents exactly.

    The weights of LayerNorms are near 1, and row 0 of a table of id embeddings is zero, because it is padding.
    """
    p = {}
    for key, shape in shapes.items():
        value = torch.randn(shape) * scale + (1.0 if "norm.weight" in key else 0.0)
        if key == "id_embedding":
            value[0] = 0.0
        p[key] = value.float().double().requires_grad_()
    return p


def ragged(generator, items, width, most=4):
    """Draws rows for items, some of which have no rows; returns the rows of all items, their offsets, and a list of each item's rows."""
    counts = [int(torch.randint(0, most + 1, (1,), generator=generator)) for _ in range(items)]
    counts[3] = 0
    values = torch.randn(sum(counts), width, generator=generator).float().double()
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    return values, torch.tensor(offsets), [values[a:b] for a, b in zip(offsets, offsets[1:])]


def means(rows, width):
    return torch.stack([r.mean(0) if len(r) else torch.zeros(width, dtype=torch.float64) for r in rows])


def lists(generator, items, count):
    """Draws categories for items, some of which have no categories."""
    own = [torch.randint(1, count + 1, (int(torch.randint(0, 4, (1,), generator=generator)),), generator=generator).unique().tolist()
           for _ in range(items)]
    own[5] = []
    offsets = [0]
    for part in own:
        offsets.append(offsets[-1] + len(part))
    return own, {"in.categories.values": torch.tensor(sum(own, [])), "in.categories.offsets": torch.tensor(offsets)}


def padded(rows, n):
    """Pads tensors [l, ...] of sequences to one tensor [B, n, ...], with zeros at padding."""
    out = torch.zeros(len(rows), n, *rows[0].shape[1:], dtype=torch.float64)
    for j, row in enumerate(rows):
        out[j, : len(row)] = row
    return out


def sequence_inputs(n=8):
    return {"in.items": torch.tensor([h + [0] * (n - len(h)) for h in HISTORIES]),
            "in.lengths": torch.tensor([len(h) for h in HISTORIES]), "in.targets": torch.tensor(TARGETS)}


def ranked(logits, targets):
    own = logits.gather(1, (targets - 1)[:, None])
    return 1 + (logits >= own).scatter(1, (targets - 1)[:, None], False).sum(1)


def finish(name, model, p, loss, tensors, decay=0.001, zero=(), without=(), stage="train", **meta):
    """Computes the gradients of the loss and a step of Adam, and writes the file."""
    loss.backward()
    grads = {key: torch.zeros_like(value) if value.grad is None or key in without else value.grad for key, value in p.items()}
    norm_of_all = torch.cat([grads[key].flatten() for key in p if key not in without]).norm()
    factor = min(1.0, 5.0 / (float(norm_of_all) + 1e-6))
    tensors |= {"out.loss": loss, "out.grad_norm": norm_of_all}
    for key, value in p.items():
        tensors |= {f"param.{key}": value, f"grad.{key}": grads[key]}
        if key not in zero and key not in without:
            gradient = grads[key] * factor + decay * value.detach()
            tensors[f"adam.{key}"] = value.detach() - 1e-3 * gradient / (gradient.abs() + 1e-8)
    tolerance = {**TOLERANCE, "grad": {"atol": 3e-5, "rtol": 1e-4}}
    write(name, {"model": model, "stage": stage, "tolerance": tolerance, "zero_grad": list(zero), "without_grad": list(without),
                 "adam": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": decay, "clip_norm": 5.0}, **meta}, tensors)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True).clamp(min=EPS)


# ---------------------------------------------------------------- SINE


def sine(name, regularizer=0.0, positions=False, unmasked=False):
    d, prototypes, k, items, n, tau = 10, 7, 2, 17, 8, 0.2
    shapes = {"item_embedding": [items, d], "prototype": [prototypes, d], "concept.w1": [d, d], "concept.w2": [d],
              "intention.w3": [d, d], "intention.w4": [d], "interest.w1": [k, d, d], "interest.w2": [k, d]}
    shapes |= {f"{which}_norm.{part}": [d] for which in ["concept", "intention"] for part in ["weight", "bias"]}
    if positions:
        shapes["position"] = [n, d]
    p = draw(shapes)
    padding = torch.randn(d).float().double()
    tensors, out = sequence_inputs(), {}
    if unmasked:
        tensors["in.padding"] = padding
    users, chosen = [], []
    for history in HISTORIES:
        x = p["item_embedding"][torch.tensor(history) - 1]
        if unmasked:
            x = torch.cat([x, padding.expand(n - len(x), d)])
        position = p["position"][: len(x)] if positions else torch.zeros_like(x)
        a = torch.softmax(torch.tanh((x + position) @ p["concept.w1"]) @ p["concept.w2"], 0)
        z = a @ x
        s = p["prototype"] @ z
        kept = s.detach().argsort()[-k:]
        c = torch.sigmoid(s[kept])[:, None] * p["prototype"][kept]
        assignment = torch.softmax(unit(x @ p["intention.w3"]) @ norm(p, "concept_norm", c).T, 1)
        attention = torch.stack([torch.softmax(torch.tanh((x + position) @ p["interest.w1"][i]) @ p["interest.w2"][i], 0) for i in range(k)])
        delta = unit((assignment.T * attention) @ x)
        y = assignment @ c
        b = torch.softmax(torch.tanh((y + position) @ p["intention.w3"]) @ p["intention.w4"], 0)
        u = norm(p, "intention_norm", b @ y)
        e = torch.softmax(delta @ u / tau, 0)
        users.append(e @ delta)
        chosen.append(kept)
        for key, value in [("concept_weights", a), ("concept", z), ("prototype_scores", s), ("assignment", assignment), ("attention", attention),
                           ("interests", delta), ("intention_weights", b), ("intention", u), ("mixture", e)]:
            out.setdefault(key, []).append(value)
    user, targets = torch.stack(users), torch.tensor(TARGETS)
    logits = user @ p["item_embedding"].T
    rows = torch.nn.functional.cross_entropy(logits, targets - 1, reduction="none")
    centred = p["prototype"] - p["prototype"].mean(1, keepdim=True)
    covariance = centred @ centred.T / d
    penalty = (covariance.pow(2).sum() - covariance.diag().pow(2).sum()) / 2
    for key in ["concept_weights", "assignment", "intention_weights"]:
        tensors[f"out.{key}"] = padded(out.pop(key), n)
    tensors["out.attention"] = padded([a.T for a in out.pop("attention")], n).transpose(1, 2)
    tensors |= {f"out.{key}": torch.stack(value) for key, value in out.items()}
    tensors |= {"out.chosen": torch.stack(chosen), "out.user": user, "out.logits": logits, "out.ranks": ranked(logits, targets),
                "out.cross_entropy_rows": rows, "out.cross_entropy": rows.mean(), "out.regularizer": penalty}
    finish(name, "sine", p, rows.mean() + regularizer * penalty, tensors, zero=["concept_norm.bias"],
           switches={"positions": "on" if positions else "off", "padding": "unmasked" if unmasked else "masked"},
           dims={"batch": 5, "interests": k, "items": items, "model": d, "positions": n, "prototypes": prototypes},
           scalars={"regularizer": regularizer, "tau": tau})


# ---------------------------------------------------------------- FDSA


def layers_of(p, prefix, x, layers, heads, causal=True):
    """Returns all tokens of one sequence [n, d] after each layer."""
    outs = []
    for l in range(layers):
        name = f"{prefix}layer.{l}"
        query, key, value = (linear(p, f"{name}.attention.{k}", x) for k in ["query", "key", "value"])
        width, mixed = x.shape[1] // heads, []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = query[:, part] @ key[:, part].T / width**0.5
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            mixed.append(torch.softmax(scores, 1) @ value[:, part])
        x = norm(p, f"{name}.attention.norm", x + linear(p, f"{name}.attention.output", torch.cat(mixed, 1)))
        up = linear(p, f"{name}.feed_forward.up", x)
        gelu = up * 0.5 * (1 + torch.erf(up / 2**0.5))
        x = norm(p, f"{name}.feed_forward.norm", x + linear(p, f"{name}.feed_forward.down", gelu))
        outs.append(x)
    return outs


def layer_shapes(prefix=""):
    d, inner, layers = (SEQUENCE_DIMS[key] for key in ["model", "feed_forward", "layers"])
    return {prefix + key: shape for key, shape in transformer_shapes(1, d, inner, layers).items() if key.startswith("layer.")}


def key_biases(p):
    return [key for key in p if key.endswith("attention.key.bias")]


def fdsa(name, modalities=("text", "image"), use_categories=False, adapter="two", pooling="mean", norms="shared"):
    items, n, d, layers, heads = (SEQUENCE_DIMS[key] for key in ["items", "positions", "model", "layers", "heads"])
    generator, widths, categories = torch.Generator().manual_seed(6), {"text": 5, "image": 7}, 6
    tensors, rows = sequence_inputs(), {}
    shapes = {"id_embedding": [items + 1, d]}
    for m in modalities:
        tensors[f"in.features.{m}.values"], tensors[f"in.features.{m}.offsets"], rows[m] = ragged(generator, items, widths[m])
        shapes |= {f"adapter.{m}.first.weight": [widths[m], d], f"adapter.{m}.first.bias": [d]}
        if adapter == "two":
            shapes |= {f"adapter.{m}.second.weight": [d, d], f"adapter.{m}.second.bias": [d]}
    own, stored = lists(generator, items, categories)
    if use_categories:
        shapes["category_embedding"] = [categories, d]
        tensors |= stored
    shapes |= {"fusion.hidden.weight": [d, d], "fusion.hidden.bias": [d], "fusion.score.weight": [d, 1], "fusion.score.bias": [1], "position": [n, d]}
    norm_names = ["item.input_norm", "feature.input_norm", "output_norm"] if norms == "separate" else ["input_norm"] * 3
    shapes |= {f"{norm_name}.{part}": [d] for norm_name in norm_names for part in ["weight", "bias"]}
    shapes |= layer_shapes("item.") | layer_shapes("feature.") | {"output.weight": [2 * d, d], "output.bias": [d]}
    p = draw(shapes)
    fields = []
    for m in modalities:
        x = means(rows[m], widths[m])
        if pooling == "padded_mean":
            most = max(len(r) for r in rows[m])
            x = torch.stack([r.sum(0) / most for r in rows[m]])
        for part in ["first", "second"] if adapter == "two" else ["first"]:
            x = torch.relu(linear(p, f"adapter.{m}.{part}", x))
        tensors[f"out.field.{m}"] = x
        fields.append(x)
    if use_categories:
        fields.append(torch.stack([p["category_embedding"][torch.tensor(part) - 1].mean(0) if part else torch.zeros(d, dtype=torch.float64) for part in own]))
    stacked = torch.stack(fields, 1)
    weights = torch.softmax(linear(p, "fusion.score", torch.relu(linear(p, "fusion.hidden", stacked)))[..., 0], 1)
    feature = (weights[..., None] * stacked).sum(1)
    hs, branches = [], {}
    for history in HISTORIES:
        index, last = torch.tensor(history), []
        for branch, tokens, norm_name in [("item", p["id_embedding"][index], norm_names[0]), ("feature", feature[index - 1], norm_names[1])]:
            x = norm(p, norm_name, tokens + p["position"][: len(tokens)])
            outs = layers_of(p, f"{branch}.", x, layers, heads)
            branches.setdefault(f"{branch}.input", []).append(x)
            for l, out in enumerate(outs):
                branches.setdefault(f"{branch}.layer.{l}", []).append(out)
            branches.setdefault(f"h.{branch}", []).append(outs[-1][-1])
            last.append(outs[-1][-1])
        hs.append(norm(p, norm_names[2], linear(p, "output", torch.cat(last))))
    for key, value in branches.items():
        tensors[f"out.{key}"] = torch.stack(value) if key.startswith("h.") else padded(value, n)
    h, targets = torch.stack(hs), torch.tensor(TARGETS)
    logits = h @ p["id_embedding"][1:].T
    tensors |= {"out.fusion_weights": weights, "out.feature": feature, "out.h": h, "out.logits": logits, "out.ranks": ranked(logits, targets)}
    zero = key_biases(p) + ["fusion.score.bias"]
    if len(fields) == 1:
        zero += ["fusion.score.weight", "fusion.hidden.weight", "fusion.hidden.bias"]
    finish(name, "fdsa", p, torch.nn.functional.cross_entropy(logits, targets - 1), tensors, zero=zero, modalities=list(modalities),
           switches={"adapter": adapter, "norms": norms, "pooling": pooling, "use_categories": use_categories}, scalars={},
           dims={**SEQUENCE_DIMS, "categories": categories})


# ---------------------------------------------------------------- DIF-SR


def difsr(name, modalities=("text", "image"), fusion="gate", keys="masked", attributes="features", predictor="on"):
    items, n, d, inner, layers, heads = (SEQUENCE_DIMS[key] for key in ["items", "positions", "model", "feed_forward", "layers", "heads"])
    generator, widths, count, d_a, weight = torch.Generator().manual_seed(7), {"text": 5, "image": 7}, 6, 9, 3.0
    tensors, rows = sequence_inputs(), {}
    fields = list(modalities) if attributes == "features" else ["categories"]
    shapes = {"id_embedding": [items + 1, d], "position": [n, d], "input_norm.weight": [d], "input_norm.bias": [d]}
    own, stored = lists(generator, items, count)
    for m in modalities if attributes == "features" else []:
        tensors[f"in.features.{m}.values"], tensors[f"in.features.{m}.offsets"], rows[m] = ragged(generator, items, widths[m])
        shapes |= {f"adapter.{m}.first.weight": [widths[m], d_a], f"adapter.{m}.first.bias": [d_a]}
    if attributes == "categories":
        shapes["category_embedding"] = [count, d_a]
        tensors |= stored
    sources = len(fields) + 2
    for l in range(layers):
        maps = [("query", d, d), ("key", d, d), ("value", d, d), ("output", d, d), ("position.query", d, d), ("position.key", d, d)]
        maps += [(f"{f}.{part}", d_a, d_a) for f in fields for part in ["query", "key"]]
        maps += {"gate": [("gate.hidden", n, n), ("gate.score", n, 1)], "concat": [("concat", sources * n, n)], "sum": []}[fusion]
        for part, a, b in maps:
            shapes |= {f"layer.{l}.attention.{part}.weight": [a, b], f"layer.{l}.attention.{part}.bias": [b]}
        for part, a, b in [("up", d, inner), ("down", inner, d)]:
            shapes |= {f"layer.{l}.feed_forward.{part}.weight": [a, b], f"layer.{l}.feed_forward.{part}.bias": [b]}
        for part in ["attention.norm", "feed_forward.norm"]:
            shapes |= {f"layer.{l}.{part}.weight": [d], f"layer.{l}.{part}.bias": [d]}
    for f in fields if predictor == "on" else []:
        out = d_a if attributes == "features" else count
        shapes |= {f"predictor.{f}.weight": [d, out], f"predictor.{f}.bias": [out]}
    p = draw(shapes)
    vectors, zero_row = {}, torch.zeros(1, d_a, dtype=torch.float64)
    for f in fields:
        if attributes == "features":
            vectors[f] = torch.relu(linear(p, f"adapter.{f}.first", means(rows[f], widths[f])))
        else:
            vectors[f] = torch.stack([p["category_embedding"][torch.tensor(part) - 1].sum(0) if part else zero_row[0] for part in own])
        tensors[f"out.attribute.{f}"] = vectors[f]
    hs, kept = [], {}
    for history in HISTORIES:
        real, index = len(history), torch.tensor(history)
        tokens, side = p["id_embedding"][index], {f: vectors[f][index - 1] for f in fields}
        if keys == "full":
            tokens = torch.cat([tokens, torch.zeros(n - real, d, dtype=torch.float64)])
            side = {f: torch.cat([side[f], zero_row.expand(n - real, d_a)]) for f in fields}
        x = norm(p, "input_norm", tokens)
        length = len(x)
        allowed = (torch.arange(length)[None, :] <= torch.arange(length)[:, None]) & (torch.arange(length)[None, :] < real)
        kept.setdefault("input", []).append(x[:real])
        for l in range(layers):
            name_of = f"layer.{l}.attention"
            inputs = [(f"{name_of}.{f}", side[f]) for f in fields] + [(name_of, x), (f"{name_of}.position", p["position"][:length])]
            value, mixed, gates, weights = linear(p, f"{name_of}.value", x), [], [], []
            for head in range(heads):
                scores = []
                for prefix, tensor in inputs:
                    width = tensor.shape[1] // heads
                    part = slice(head * width, (head + 1) * width)
                    score = linear(p, f"{prefix}.query", tensor)[:, part] @ linear(p, f"{prefix}.key", tensor)[:, part].T
                    score = score if keys == "full" else score * allowed
                    scores.append(torch.cat([score, torch.zeros(length, n - length, dtype=torch.float64)], 1))
                stacked = torch.stack(scores, 1)
                if fusion == "gate":
                    energy = linear(p, f"{name_of}.gate.score", torch.relu(linear(p, f"{name_of}.gate.hidden", stacked)))[..., 0]
                    gate = torch.softmax(energy, 1)
                    fused = (gate[..., None] * stacked).sum(1)
                    gates.append(gate)
                elif fusion == "sum":
                    fused = stacked.sum(1)
                else:
                    fused = linear(p, f"{name_of}.concat", stacked.reshape(length, -1))
                width = d // heads
                prob = torch.softmax((fused[:, :length] / width**0.5).masked_fill(~allowed, -torch.inf), 1)
                weights.append(torch.cat([prob, torch.zeros(length, n - length, dtype=torch.float64)], 1))
                mixed.append(prob @ value[:, head * width : (head + 1) * width])
            x = norm(p, f"{name_of}.norm", x + linear(p, f"{name_of}.output", torch.cat(mixed, 1)))
            up = linear(p, f"layer.{l}.feed_forward.up", x)
            gelu = up * 0.5 * (1 + torch.erf(up / 2**0.5))
            x = norm(p, f"layer.{l}.feed_forward.norm", x + linear(p, f"layer.{l}.feed_forward.down", gelu))
            kept.setdefault(f"layer.{l}", []).append(x[:real])
            kept.setdefault(f"attention_weights.{l}", []).append(torch.stack(weights, 1)[:real])
            if gates:
                kept.setdefault(f"gate.{l}", []).append(torch.stack(gates, 1)[:real])
        hs.append(x[real - 1])
    for key, value in kept.items():
        value = padded(value, n)
        tensors[f"out.{key}"] = value.transpose(1, 2) if value.dim() == 4 else value
    h, targets = torch.stack(hs), torch.tensor(TARGETS)
    logits = h @ p["id_embedding"][1:].T
    loss = torch.nn.functional.cross_entropy(logits, targets - 1)
    tensors["out.item_loss"] = loss
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    for f in fields if predictor == "on" else []:
        predicted = linear(p, f"predictor.{f}", h)
        if attributes == "features":
            present = torch.tensor([i for i in range(items) if len(rows[f][i])])
            mean = bce(predicted @ vectors[f][present].T, (present[None, :] == targets[:, None] - 1).double())
        else:
            labels = torch.tensor([[float(c + 1 in own[t - 1]) for c in range(count)] for t in TARGETS], dtype=torch.float64)
            mean = bce(predicted, labels)
        tensors[f"out.attribute_loss.{f}"] = mean
        loss = loss + weight * mean
    tensors |= {"out.h": h, "out.logits": logits, "out.ranks": ranked(logits, targets)}
    zero = [key for key in p if key.endswith("gate.score.bias") or (fusion == "sum" and key.endswith("key.bias"))]
    finish(name, "difsr", p, loss, tensors, zero=zero, modalities=list(modalities), scalars={"weight": weight},
           switches={"attributes": attributes, "fusion": fusion, "keys": keys, "predictor": predictor},
           dims={**SEQUENCE_DIMS, "attribute": d_a, "categories": count})


# ---------------------------------------------------------------- S3-Rec


def s3rec_shapes(attributes, widths, count):
    items, n, d = (SEQUENCE_DIMS[key] for key in ["items", "positions", "model"])
    shapes = {"id_embedding": [items + 1, d], "mask_embedding": [d], "position": [n, d], "input_norm.weight": [d], "input_norm.bias": [d]}
    shapes |= layer_shapes()
    if attributes == "features":
        for m, width in widths.items():
            shapes |= {f"adapter.{m}.first.weight": [width, d], f"adapter.{m}.first.bias": [d]}
    else:
        shapes["category_embedding"] = [count, d]
    return shapes | {f"{head}.{part}": [d, d] if part == "weight" else [d] for head in ["aap", "mip", "map", "sp"] for part in ["weight", "bias"]}


def s3rec_pretrain(name, attributes="features", pair="twice", reduction="mean", modalities=("text", "image")):
    items, n, layers, heads = (SEQUENCE_DIMS[key] for key in ["items", "positions", "layers", "heads"])
    generator, count, weights = torch.Generator().manual_seed(8), 6, {"aap": 0.3, "mip": 0.9, "map": 1.1, "sp": 0.6}
    widths = {m: {"text": 5, "image": 7}[m] for m in modalities}
    tensors = {key: value for key, value in sequence_inputs().items() if key != "in.targets"}
    rows = {}
    for m in widths if attributes == "features" else []:
        tensors[f"in.features.{m}.values"], tensors[f"in.features.{m}.offsets"], rows[m] = ragged(generator, items, widths[m])
    own, stored = lists(generator, items, count)
    if attributes == "categories":
        tensors |= stored
    p = draw(s3rec_shapes(attributes, widths, count))
    masked = [[0, 1, 0, 0, 1, 1], [1], [0, 0], [1] * 8, [0, 1, 0]]
    negatives = [[0, 4, 0, 0, 11, 9], [6], [0, 0], [9, 10, 11, 12, 13, 14, 15, 16], [0, 17, 0]]
    starts, lengths = [2, 0, 1, 4, 0], [3, 0, 1, 2, 1]
    others = [[0, 0, 7, 1, 12, 0], [0], [0, 5], [0, 0, 0, 0, 17, 2, 0, 0], [8, 0, 0]]
    tensors |= {"in.masked": torch.tensor([m + [0] * (n - len(m)) for m in masked], dtype=torch.uint8),
                "in.negatives": torch.tensor([m + [0] * (n - len(m)) for m in negatives]),
                "in.segment_start": torch.tensor(starts), "in.segment_length": torch.tensor(lengths),
                "in.segment_negative": torch.tensor([m + [0] * (n - len(m)) for m in others])}

    def encode(tokens):
        x = norm(p, "input_norm", torch.stack(tokens) + p["position"][: len(tokens)])
        return layers_of(p, "", x, layers, heads, causal=False)[-1]

    fields = {}
    for m in rows:
        present = [i for i in range(items) if len(rows[m][i])]
        fields[m] = torch.relu(linear(p, f"adapter.{m}.first", means(rows[m], widths[m])[present])), lambda i, f, present=present: float(present[f] == i - 1)
    if attributes == "categories":
        fields["categories"] = p["category_embedding"], lambda i, f: float(f + 1 in own[i - 1])
    sums = {f"{task}.{f}": 0.0 for task in ["aap", "map"] for f in fields}
    mip, sp, hidden, segments = 0.0, 0.0, [], {"context": [], "positive": [], "negative": []}
    squash = torch.sigmoid if pair == "twice" else lambda x: x
    below = lambda a, b: -torch.nn.functional.logsigmoid(squash(a) - squash(b))
    for j, history in enumerate(HISTORIES):
        item = lambda i: p["id_embedding"][i]
        h = encode([p["mask_embedding"] if hide else item(i) for i, hide in zip(history, masked[j])])
        hidden.append(h)
        for at, (i, hide) in enumerate(zip(history, masked[j])):
            task = "map" if hide else "aap"
            for f, (table, label) in fields.items():
                labels = torch.tensor([label(i, c) for c in range(len(table))], dtype=torch.float64)
                scores = table @ linear(p, task, h[at])
                sums[f"{task}.{f}"] = sums[f"{task}.{f}"] + torch.nn.functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
            if hide:
                q = linear(p, "mip", h[at])
                mip = mip + below(q @ item(i), q @ item(negatives[j][at]))
        if lengths[j]:
            inside = range(starts[j], starts[j] + lengths[j])
            mask = p["mask_embedding"]
            parts = {"context": [mask if at in inside else item(i) for at, i in enumerate(history)],
                     "positive": [item(i) if at in inside else mask for at, i in enumerate(history)],
                     "negative": [item(others[j][at]) if at in inside else mask for at in range(len(history))]}
            u, positive, negative = (encode(tokens)[-1] for tokens in parts.values())
            for key, value in zip(parts, [u, positive, negative]):
                segments[key].append(value)
            q = linear(p, "sp", u)
            sp = sp + below(q @ positive, q @ negative)
    share = 1 / len(HISTORIES) if reduction == "mean" else 1.0
    losses = {"aap": sum(sums[f"aap.{f}"] for f in fields) * share, "map": sum(sums[f"map.{f}"] for f in fields) * share,
              "mip": mip * share, "sp": sp * share}
    tensors |= {f"out.{key}": value for key, value in (sums | losses).items()}
    tensors |= {f"out.attribute.{f}": table for f, (table, _) in fields.items()}
    tensors |= {f"out.segment.{key}": torch.stack(value) for key, value in segments.items()} | {"out.h": padded(hidden, n)}
    finish(name, "s3rec", p, sum(weights[key] * losses[key] for key in losses), tensors, zero=key_biases(p), stage="pretrain",
           modalities=list(modalities), scalars=weights, switches={"attributes": attributes, "pair": pair, "reduction": reduction},
           dims={**SEQUENCE_DIMS, "categories": count})


def s3rec_finetune(name):
    layers, heads = SEQUENCE_DIMS["layers"], SEQUENCE_DIMS["heads"]
    shapes = s3rec_shapes("categories", {}, 1)
    kept = ["id_embedding", "position", "input_norm.weight", "input_norm.bias"]
    p = draw({key: shape for key, shape in shapes.items() if key in kept or key.startswith("layer.")})
    h = torch.stack([causal_transformer(p, p["id_embedding"][torch.tensor(history)], layers, heads) for history in HISTORIES])
    targets = torch.tensor(TARGETS)
    logits = h @ p["id_embedding"][1:].T
    tensors = sequence_inputs() | {"out.h": h, "out.logits": logits, "out.ranks": ranked(logits, targets)}
    finish(name, "s3rec", p, torch.nn.functional.cross_entropy(logits, targets - 1), tensors, zero=key_biases(p), stage="finetune",
           modalities=[], scalars={"aap": 0.2, "mip": 1.0, "map": 1.0, "sp": 0.5}, dims=SEQUENCE_DIMS,
           switches={"attributes": "features", "pair": "twice", "reduction": "mean"})


# ---------------------------------------------------------------- UniSRec

# The names of `model.unisrec.false_negatives` in the stored cases, which are older than the key.
STORED_NAMES = {"exclude": "leave_out", "keep": "keep", "zero_logit": "zero"}


def unisrec(name, stage, false_negatives="exclude", augment="items", noise=True, fix_encoder=True, id_embedding=True, modalities=("text", "image")):
    items, n, d_0, layers, heads = (SEQUENCE_DIMS[key] for key in ["items", "positions", "model", "layers", "heads"])
    generator, d, experts, tau, weight = torch.Generator().manual_seed(9), 6, 3, 0.3, 0.02
    tensors, rows = sequence_inputs(), {}
    for m in modalities:
        tensors[f"in.features.{m}.values"], tensors[f"in.features.{m}.offsets"], rows[m] = ragged(generator, items, d)
    shapes = {"adaptor.gate.weight": [d, experts]} | ({"adaptor.noise.weight": [d, experts]} if noise else {})
    for k in range(experts):
        shapes |= {f"adaptor.expert.{k}.bias": [d], f"adaptor.expert.{k}.weight": [d, d_0]}
    shapes |= {"position": [n, d_0], "input_norm.weight": [d_0], "input_norm.bias": [d_0]} | layer_shapes()
    if stage == "finetune" and id_embedding:
        shapes["id_embedding"] = [items + 1, d_0]
    p = draw(shapes)
    joined = [torch.cat([rows[m][i] for m in modalities]) for i in range(items)]
    x = means(joined, d)
    targets, count = torch.tensor(TARGETS), len(TARGETS)
    normal = lambda *shape: torch.randn(*shape, generator=generator).float().double()

    def adapt(x, eps=None):
        logits = x @ p["adaptor.gate.weight"]
        if eps is not None and noise:
            logits = logits + eps * (torch.nn.functional.softplus(x @ p["adaptor.noise.weight"]) + 0.01)
        gate = torch.softmax(logits, -1)
        return sum(gate[..., k : k + 1] * ((x - p[f"adaptor.expert.{k}.bias"]) @ p[f"adaptor.expert.{k}.weight"]) for k in range(experts))

    def encode(tokens):
        start = norm(p, "input_norm", tokens + p["position"][: len(tokens)])
        return start, layers_of(p, "", start, layers, heads)

    cosine = lambda a, b: unit(a) @ unit(b).T / tau
    eps_items = normal(count, n, experts)
    meta = {"stage": stage, "modalities": list(modalities), "scalars": {"tau": tau, "lambda": weight}, "dims": {**SEQUENCE_DIMS, "experts": experts},
            "switches": {"augment": augment, "fix_encoder": fix_encoder, "id_embedding": id_embedding, "noise": noise, "same_target": STORED_NAMES[false_negatives]}}
    if noise:
        tensors["in.noise.items"] = eps_items
    if stage == "finetune":
        eps_all = normal(items, experts)
        tensors["in.noise.candidates"] = eps_all
        ids = p["id_embedding"] if id_embedding else torch.zeros(items + 1, d_0, dtype=torch.float64)

        def run(noisy):
            candidates = adapt(x, eps_all if noisy else None) + ids[1:]
            starts, hs, steps = [], [], [[] for _ in range(layers)]
            for j, history in enumerate(HISTORIES):
                index = torch.tensor(history)
                start, outs = encode(adapt(x[index - 1], eps_items[j, : len(history)] if noisy else None) + ids[index])
                starts.append(start)
                hs.append(outs[-1][-1])
                for l in range(layers):
                    steps[l].append(outs[l])
            return candidates, torch.stack(hs), starts, steps

        candidates, h, starts, steps = run(True)
        plain_candidates, plain_h, _, _ = run(False)
        logits, scores = cosine(h, candidates), cosine(plain_h, plain_candidates)
        tensors |= {"out.input": padded(starts, n), "out.h": h, "out.candidates": candidates, "out.logits": logits, "out.scoring.h": plain_h,
                    "out.scoring.candidates": plain_candidates, "out.scores": scores, "out.ranks": ranked(scores, targets)}
        tensors |= {f"out.layer.{l}": padded(step, n) for l, step in enumerate(steps)}
        loss = torch.nn.functional.cross_entropy(logits, targets - 1)
        without = [key for key in p if key == "position" or key.startswith("layer.")] if fix_encoder else []
        finish(name, "unisrec", p, loss, tensors, zero=[] if without else key_biases(p), without=without, **meta)
        return
    second, augmented, uses = x, HISTORIES, None
    if augment == "rows":
        replaced = [[0, 1, 0, 0, 1, 1], [1], [0, 0], [1, 0] * 4, [0, 1, 1]]
        kept = {m: torch.rand(len(tensors[f"in.features.{m}.values"]), generator=generator) > 0.4 for m in modalities}
        for m in modalities:
            a, b = tensors[f"in.features.{m}.offsets"][7], tensors[f"in.features.{m}.offsets"][8]
            kept[m][a:b] = False
            tensors[f"in.row_keep.{m}"] = kept[m].to(torch.uint8)
        second = []
        for i in range(items):
            parts = [rows[m][i][kept[m][tensors[f"in.features.{m}.offsets"][i] : tensors[f"in.features.{m}.offsets"][i + 1]]] for m in modalities]
            some = torch.cat(parts)
            second.append(some if len(some) else joined[i])
        second = means(second, d)
        tensors |= {"in.replaced": torch.tensor([r + [0] * (n - len(r)) for r in replaced], dtype=torch.uint8), "out.pooled_augmented": second}
    else:
        keep = [[1, 0, 1, 1, 0, 1], [0], [1, 0], [1, 1, 0, 0, 1, 1, 1, 0], [0, 1, 1]]
        augmented = [[i for at, (i, k) in enumerate(zip(h, own)) if at == 0 or k] for h, own in zip(HISTORIES, keep)]
        replaced = [[0] * len(h) for h in augmented]
        tensors["in.keep"] = torch.tensor([k + [0] * (n - len(k)) for k in keep], dtype=torch.uint8)
    eps_augmented, eps_targets = normal(count, n, experts), normal(count, experts)
    if noise:
        tensors |= {"in.noise.augmented": eps_augmented, "in.noise.targets": eps_targets}
    starts, hs, other_starts, others = [], [], [], []
    for j, (history, other) in enumerate(zip(HISTORIES, augmented)):
        start, outs = encode(adapt(x[torch.tensor(history) - 1], eps_items[j, : len(history)]))
        starts.append(start)
        hs.append(outs[-1][-1])
        vectors = torch.stack([(second if r else x)[i - 1] for i, r in zip(other, replaced[j])])
        start, outs = encode(adapt(vectors, eps_augmented[j, : len(other)]))
        other_starts.append(start)
        others.append(outs[-1][-1])
    h, other, z = torch.stack(hs), torch.stack(others), adapt(x[targets - 1], eps_targets)
    same = (targets[:, None] == targets[None, :]) & ~torch.eye(count).bool()

    def contrast(a, b):
        logits = cosine(a, b)
        own = logits.diag()
        if false_negatives == "exclude":
            logits = logits.masked_fill(same, -torch.inf)
        elif false_negatives == "zero_logit":
            logits = logits.masked_fill(same, 0.0)
        return torch.logsumexp(logits, 1) - own

    seq_item, seq_seq = contrast(h, z), contrast(h, other)
    tensors |= {"out.pooled": x, "out.input": padded(starts, n), "out.input_augmented": padded(other_starts, n), "out.h": h, "out.h_augmented": other,
                "out.z": z, "out.items_augmented": torch.tensor([o + [0] * (n - len(o)) for o in augmented]), "out.seq_item_rows": seq_item,
                "out.seq_seq_rows": seq_seq, "out.seq_item": seq_item.mean(), "out.seq_seq": seq_seq.mean()}
    finish(name, "unisrec", p, seq_item.mean() + weight * seq_seq.mean(), tensors, zero=key_biases(p), **meta)


# ---------------------------------------------------------------- helpers of the multimodal general models


GRAPH_WIDTHS = {"text": 5, "image": 7, "audio": 4}
leaky = lambda x: torch.nn.functional.leaky_relu(x, 0.01)


def events(modalities, seed):
    """Returns the training sequences as inputs, and the means of the items' rows by modality."""
    generator = torch.Generator().manual_seed(seed)
    parts, offsets = training()
    tensors, rows = {"in.train.items": torch.tensor(sum(parts, [])), "in.train.offsets": torch.tensor(offsets)}, {}
    for m in modalities:
        width = GRAPH_WIDTHS[m]
        tensors[f"in.features.{m}.values"], tensors[f"in.features.{m}.offsets"], own = ragged(generator, ITEMS, width, 3)
        rows[m] = means(own, width)
    return parts, tensors, rows


def triples(parts):
    """Draws users, positives and negatives, 1-based."""
    users = torch.randint(1, USERS + 1, (BATCH,))
    positives = torch.tensor([parts[u - 1][j % len(parts[u - 1])] for j, u in enumerate(users.tolist())])
    open_items = [[i for i in range(1, ITEMS + 1) if i not in part] for part in parts]
    negatives = torch.tensor([open_items[u - 1][j % len(open_items[u - 1])] for j, u in enumerate(users.tolist())])
    return users, positives, negatives


def scored(tensors, parts, of_users, of_items, targets=(13, 4, 12, 7)):
    users, targets = torch.tensor([2, 5, 9, 1]), torch.tensor(targets)
    scores = of_users[users - 1] @ of_items.T
    removed = torch.zeros(len(users), ITEMS, dtype=torch.uint8)
    for row, (user, target) in enumerate(zip(users.tolist(), targets.tolist())):
        for item in parts[user - 1]:
            removed[row, item - 1] = int(item != target)
    own = scores.gather(1, (targets - 1)[:, None])
    others = (scores >= own).scatter(1, (targets - 1)[:, None], False)
    tensors |= {"in.users": users, "in.targets": targets, "in.removed": removed, "out.scores": scores,
                "out.ranks_all": 1 + others.sum(1), "out.ranks": 1 + (others & (removed == 0)).sum(1)}


def edge_list(parts):
    return [(u, i - 1) for u, part in enumerate(parts) for i in sorted(set(part))]


# ---------------------------------------------------------------- GRCN


def grcn(name, modalities=("text", "image"), routing=3, weights="confidence", pruning=True, fusion="concat", decay=0.0, score=False):
    parts, tensors, rows = events(modalities, 12)
    d, c, weight, edges = WIDTH, 5, 0.05, edge_list(parts)
    shapes = {"user_embedding": [USERS, d], "item_embedding": [ITEMS, d]}
    for m in modalities:
        shapes |= {f"preference.{m}": [USERS, c], f"feature.{m}.weight": [GRAPH_WIDTHS[m], c], f"feature.{m}.bias": [c]}
    shapes |= {"confidence.users": [USERS, len(modalities)], "confidence.items": [ITEMS, len(modalities)]}
    p = draw(shapes, 1.0)

    def softmax_over(values, node):
        groups = {}
        for e, edge in enumerate(edges):
            groups.setdefault(edge[node], []).append(e)
        out = [None] * len(edges)
        for own in groups.values():
            for e, value in zip(own, torch.softmax(values[torch.tensor(own)], 0)):
                out[e] = value
        return torch.stack(out)

    user_of, item_of = torch.tensor([u for u, _ in edges]), torch.tensor([i for _, i in edges])

    def to_users(w, x):
        return torch.zeros(USERS, x.shape[1], dtype=torch.float64).index_add(0, user_of, w[:, None] * x[item_of])

    def to_items(w, x):
        return torch.zeros(ITEMS, x.shape[1], dtype=torch.float64).index_add(0, item_of, w[:, None] * x[user_of])

    alphas_user, alphas_item, of_users, of_items = [], [], [], []
    for m in modalities:
        f = unit(leaky(rows[m] @ p[f"feature.{m}.weight"] + p[f"feature.{m}.bias"]))
        q = unit(p[f"preference.{m}"])
        for _ in range(routing):
            q = unit(q + to_users(softmax_over((q[user_of] * f[item_of]).sum(1), 0), f))
        s = (q[user_of] * f[item_of]).sum(1)
        a, b = softmax_over(s, 0), softmax_over(s, 1)
        alphas_user.append(a)
        alphas_item.append(b)
        of_users.append(q + to_users(a, f))
        of_items.append(f + to_items(b, q))
        tensors |= {f"out.feature.{m}": f, f"out.prototype.{m}": q, f"out.to_user.{m}": a, f"out.to_item.{m}": b,
                    f"out.content_users.{m}": of_users[-1], f"out.content_items.{m}": of_items[-1]}

    def fuse(alphas, confidence):
        stacked = torch.stack(alphas, 1)
        if weights == "confidence":
            stacked = stacked * confidence
        fused = stacked.mean(1) if weights == "mean" else stacked.amax(1)
        return torch.relu(fused) if pruning else fused

    w_user, w_item = fuse(alphas_user, p["confidence.items"][item_of]), fuse(alphas_item, p["confidence.users"][user_of])
    z_user, z_item = unit(p["user_embedding"]), unit(p["item_embedding"])
    r_user, r_item = z_user, z_item
    for _ in range(2):
        z_user, z_item = to_users(w_user, z_item), to_items(w_item, z_user)
        r_user, r_item = r_user + z_user, r_item + z_item
    tensors |= {"out.edge.to_user": w_user, "out.edge.to_item": w_item, "out.id_users": r_user, "out.id_items": r_item}
    if fusion == "concat":
        r_user, r_item = torch.cat([r_user, *of_users], 1), torch.cat([r_item, *of_items], 1)
    tensors |= {"out.user_vectors": r_user, "out.item_vectors": r_item}
    meta = {"modalities": list(modalities), "scalars": {"reg_weight": weight}, "dims": {"users": USERS, "items": ITEMS, "model": d, "content": c},
            "switches": {"routing": routing, "weights": weights, "pruning": pruning, "fusion": fusion}}
    if score:
        scored(tensors, parts, r_user, r_item)
        kept = {key: value for key, value in tensors.items() if key.startswith("in.") or "vectors" in key or "rank" in key or "scores" in key}
        write(name, {"model": "grcn", "stage": "score", **meta}, kept | {f"param.{key}": value for key, value in p.items()})
        return
    users, positives, negatives = triples(parts)
    positive, negative = ((r_user[users - 1] * r_item[i - 1]).sum(1) for i in [positives, negatives])
    bpr = -torch.nn.functional.logsigmoid(positive - negative).mean()
    square = lambda key, at: p[key][at - 1].pow(2).mean()
    reg = square("user_embedding", users) + (square("item_embedding", positives) + square("item_embedding", negatives)) / 2
    reg = reg + sum(square(f"preference.{m}", users) for m in modalities)
    tensors |= {"in.users": users, "in.positives": positives, "in.negatives": negatives, "out.positive": positive, "out.negative": negative,
                "out.bpr": bpr, "out.regularisation": reg}
    without = [] if weights == "confidence" else ["confidence.users", "confidence.items"]
    finish(name, "grcn", p, bpr + weight * reg, tensors, decay=decay, without=without, **meta)


# ---------------------------------------------------------------- DualGNN


def dualgnn(name, modalities=("text", "image"), user_fusion="separate", lists="once", k=3, decay=0.0, stage="train"):
    parts, tensors, rows = events(modalities, 13)
    d, weight = WIDTH, 0.05
    sets = [set(part) for part in parts]
    neighbours = []
    for u in range(USERS):
        shared = [(len(sets[u] & sets[n]), n) for n in range(USERS) if n != u and sets[u] & sets[n]]
        neighbours.append([(n, count) for count, n in sorted(shared, key=lambda pair: (-pair[0], pair[1]))[:k]])
    offsets = [0]
    for own in neighbours:
        offsets.append(offsets[-1] + len(own))
    exact = lambda own: torch.softmax(torch.tensor([float(count) for _, count in own], dtype=torch.float64), 0) if own else torch.zeros(0, dtype=torch.float64)
    graph = {"offsets": torch.tensor(offsets), "users": torch.tensor([n + 1 for own in neighbours for n, _ in own]),
             "counts": torch.tensor([count for own in neighbours for _, count in own]), "weights": torch.cat([exact(own) for own in neighbours])}
    meta = {"modalities": list(modalities), "scalars": {"reg_weight": weight}, "switches": {"user_fusion": user_fusion, "neighbours": lists},
            "dims": {"users": USERS, "items": ITEMS, "model": d, "neighbours": k}}
    if stage == "graph":
        kept = {key: value for key, value in tensors.items() if key.startswith("in.train")}
        write(name, {"model": "dualgnn", "stage": "graph", **meta}, kept | {f"out.neighbours.{key}": value for key, value in graph.items()})
        return
    if lists == "resampled":
        neighbours = [own + [own[(u + at) % len(own)] for at in range(k - len(own))] if own else [] for u, own in enumerate(neighbours)]
        tensors |= {"in.neighbours": torch.tensor([[n + 1 for n, _ in own] or [0] * k for own in neighbours]),
                    "in.counts": torch.tensor([[count for _, count in own] or [0] * k for own in neighbours])}
    elif stage == "train":
        tensors |= {f"in.neighbours.{key}": value for key, value in graph.items()}
    shapes = {}
    for m in modalities:
        shapes |= {f"preference.{m}": [USERS, d], f"feature.{m}.hidden.weight": [GRAPH_WIDTHS[m], 4 * d], f"feature.{m}.hidden.bias": [4 * d],
                   f"feature.{m}.output.weight": [4 * d, d], f"feature.{m}.output.bias": [d]}
    p = draw(shapes | {"modality_weight": [USERS, len(modalities)]}, 0.7)
    adjacency, of_users, items = dense_adjacency(parts), [], 0.0
    for m in modalities:
        f = linear(p, f"feature.{m}.output", leaky(linear(p, f"feature.{m}.hidden", rows[m])))
        x = torch.cat([unit(p[f"preference.{m}"]), unit(f)])
        r = x + adjacency @ x + adjacency @ (adjacency @ x)
        tensors |= {f"out.users.{m}": r[:USERS], f"out.items.{m}": r[USERS:]}
        of_users.append(r[:USERS])
        items = items + r[USERS:]
    if user_fusion == "summed":
        of_users[-1] = sum(of_users)
    t = sum(p["modality_weight"][:, m : m + 1] * r for m, r in enumerate(of_users))
    gathered = torch.stack([exact(own) @ t[torch.tensor([n for n, _ in own])] if own else torch.zeros(d, dtype=torch.float64) for own in neighbours])
    v = t + gathered
    tensors |= {"out.fused": t, "out.gathered": gathered, "out.user_vectors": v, "out.item_vectors": items}
    if stage == "score":
        scored(tensors, parts, v, items)
        kept = {key: value for key, value in tensors.items() if key.startswith("in.") or "_vectors" in key or "rank" in key or "scores" in key}
        write(name, {"model": "dualgnn", "stage": "score", **meta}, kept | {f"param.{key}": value for key, value in p.items()})
        return
    users, positives, negatives = triples(parts)
    positive, negative = ((v[users - 1] * items[i - 1]).sum(1) for i in [positives, negatives])
    bpr = -(torch.nn.functional.logsigmoid(positive - negative) / math.log(2)).mean()
    reg = sum(p[f"preference.{m}"][users - 1].pow(2).mean() for m in modalities) + p["modality_weight"].pow(2).mean()
    tensors |= {"in.users": users, "in.positives": positives, "in.negatives": negatives, "out.positive": positive, "out.negative": negative,
                "out.bpr": bpr, "out.regularisation": reg}
    finish(name, "dualgnn", p, bpr + weight * reg, tensors, decay=decay, **meta)


# ---------------------------------------------------------------- CLCRec


def clcrec(name, modalities=("text", "image"), decay=0.0, candidates=None):
    parts, tensors, rows = events(modalities, 14)
    d, hidden, k, tau, lam, weight, cold_below = WIDTH, 9, 4, 0.6, 0.3, 0.07, 4
    wide = sum(GRAPH_WIDTHS[m] for m in modalities)
    p = draw({"user_embedding": [USERS, d], "item_embedding": [ITEMS, d], "feature.hidden.weight": [wide, hidden], "feature.hidden.bias": [hidden],
              "feature.output.weight": [hidden, d], "feature.output.bias": [d]}, 0.8)
    joined = torch.cat([unit(rows[m]) for m in modalities], 1)
    content = linear(p, "feature.output", leaky(linear(p, "feature.hidden", joined)))
    meta = {"modalities": list(modalities), "scalars": {"tau": tau, "lambda": lam, "reg_weight": weight},
            "dims": {"users": USERS, "items": ITEMS, "model": d, "hidden": hidden, "negatives": k}}
    tensors["out.content"] = content
    if candidates:
        counts = torch.tensor([sum(part.count(i + 1) for part in parts) for i in range(ITEMS)])
        cold = counts < cold_below
        vectors = torch.where(cold[:, None], content, p["item_embedding"])
        of_cold = (cold.nonzero()[:, 0] + 1).tolist()
        scored(tensors, parts, p["user_embedding"], vectors, (of_cold * 4)[1:5])
        if candidates == "cold":
            tensors["in.removed"] = tensors["in.removed"] | (~cold).to(torch.uint8)[None, :]
            for row, target in enumerate(tensors["in.targets"].tolist()):
                own = tensors["out.scores"][row, target - 1]
                others = [i for i in range(ITEMS) if i != target - 1 and not tensors["in.removed"][row, i]]
                tensors["out.ranks"][row] = 1 + sum(int(tensors["out.scores"][row, i] >= own) for i in others)
        tensors |= {"out.events": counts, "out.cold": cold.to(torch.uint8), "out.user_vectors": p["user_embedding"], "out.item_vectors": vectors}
        meta["scalars"]["cold"] = cold_below
        write(name, {"model": "clcrec", "stage": "score", **meta, "switches": {"candidates": candidates}},
              tensors | {f"param.{key}": value for key, value in p.items()})
        return
    users = torch.randint(1, USERS + 1, (BATCH,))
    drawn = []
    for j, u in enumerate(users.tolist()):
        open_items = [i for i in range(1, ITEMS + 1) if i not in parts[u - 1]]
        drawn.append([parts[u - 1][j % len(parts[u - 1])]] + [open_items[i] for i in torch.randperm(len(open_items))[:k].tolist()])
    drawn, replaced = torch.tensor(drawn), torch.rand(BATCH, 1 + k) < 0.5
    re_logits = (unit(p["item_embedding"])[drawn[:, :1] - 1] * unit(content)[drawn - 1]).sum(2) / tau
    y = torch.where(replaced[..., None], content[drawn - 1], p["item_embedding"][drawn - 1])
    ui_logits = (p["user_embedding"][users - 1][:, None] * y).sum(2) / tau
    re_rows, ui_rows = (torch.logsumexp(l, 1) - l[:, 0] for l in [re_logits, ui_logits])
    reg = (p["user_embedding"][users - 1].norm(dim=1).mean() + p["item_embedding"][drawn - 1].norm(dim=2).mean()) / 2
    tensors |= {"in.users": users, "in.items": drawn, "in.replaced": replaced.to(torch.uint8), "out.re_logits": re_logits, "out.ui_logits": ui_logits,
                "out.re_rows": re_rows, "out.ui_rows": ui_rows, "out.re": re_rows.mean(), "out.ui": ui_rows.mean(), "out.regularisation": reg}
    finish(name, "clcrec", p, lam * re_rows.mean() + (1 - lam) * ui_rows.mean() + weight * reg, tensors, decay=decay, switches={}, **meta)


# ---------------------------------------------------------------- MV-RNN


def mvrnn(name, variant, cell, modalities=("text", "image"), score=False):
    items, n, d, lam = 17, 8, 5, 0.3
    generator = torch.Generator().manual_seed(15)
    tensors, f = {}, {}
    for m in modalities:
        width = GRAPH_WIDTHS[m]
        tensors[f"in.features.{m}.values"], tensors[f"in.features.{m}.offsets"], rows = ragged(generator, items, width)
        f[m] = unit(means(rows, width))
        if not score:
            tensors[f"out.pooled.{m}"] = f[m]
    gates, wide = (4 if cell == "lstm" else 3), (len(modalities) + 1 if variant == "con" else 2) * d
    cells = {"cell.id": d, "cell.view": d} if variant == "separate" else {"cell": wide}
    shapes = {"item_embedding": [items, d]} | {f"projection.{m}.weight": [GRAPH_WIDTHS[m], d] for m in modalities}
    for key, w in cells.items():
        shapes |= {f"{key}.input.weight": [w, gates * w], f"{key}.hidden.weight": [w, gates * w], f"{key}.bias": [gates * w]}
    p = draw(shapes)

    def vector(item, kept):
        views = [f[m][item - 1] @ p[f"projection.{m}.weight"] * kept[m] for m in modalities]
        x = p["item_embedding"][item - 1]
        return (torch.cat([x, *views]) if variant == "con" else torch.cat([x, sum(views)])), sum(views)

    def run(vectors):
        outs, from_column = [], 0
        for key, w in cells.items():
            h = s = torch.zeros(w, dtype=torch.float64)
            own = []
            for e in vectors:
                x = e[from_column : from_column + w] @ p[f"{key}.input.weight"] + p[f"{key}.bias"]
                u = p[f"{key}.hidden.weight"]
                if cell == "lstm":
                    i, forget, g, o = (x + h @ u).chunk(4)
                    s = torch.sigmoid(forget) * s + torch.sigmoid(i) * torch.tanh(g)
                    h = torch.sigmoid(o) * torch.tanh(s)
                else:
                    z, r = torch.sigmoid(x[: 2 * w] + h @ u[:, : 2 * w]).chunk(2)
                    g = torch.tanh(x[2 * w :] + (r * h) @ u[:, 2 * w :])
                    h = (1 - z) * h + z * g
                own.append(h)
            outs.append(torch.stack(own))
            from_column += w
        return torch.cat(outs, 1)

    whole = {m: 1.0 for m in modalities}
    tensors |= {key: value for key, value in sequence_inputs().items() if key != "in.targets"}
    meta = {"modalities": list(modalities), "dims": {"items": items, "model": d, "batch": 5, "positions": n}, "switches": {"variant": variant, "cell": cell},
            "scalars": {"lambda": lam}}
    if score:
        users = torch.stack([run([vector(i, whole)[0] for i in history])[-1] for history in HISTORIES])
        all_items, targets = torch.stack([vector(i, whole)[0] for i in range(1, items + 1)]), torch.tensor(TARGETS)
        scores = users @ all_items.T
        tensors |= {"in.targets": targets, "out.items": all_items, "out.users": users, "out.scores": scores, "out.ranks": ranked(scores, targets)}
        write(name, {"model": "mvrnn", "stage": "score", **meta}, tensors | {f"param.{key}": value for key, value in p.items()})
        return
    # Here, the last step of a sequence also has a target; the third sequence scores only its last step.
    targets = [h[1:] + [t] for h, t in zip(HISTORIES, TARGETS)]
    targets[2][0] = 0
    negatives = [[(7 * j + 3 * at) % items + 1 if t else 0 for at, t in enumerate(own)] for j, own in enumerate(targets)]
    hides = variant in ["fusion", "separate"]
    keep = {part: {m: (torch.rand(5, n, generator=generator) > 0.4).long() if hides else torch.ones(5, n).long() for m in modalities}
            for part in ["items", "targets", "negatives"]}
    hs, margins, ranking, errors, pairs = [], [], [], {m: 0.0 for m in modalities}, 0
    for j, history in enumerate(HISTORIES):
        at_use = lambda part, at: {m: float(keep[part][m][j, at]) for m in modalities}
        h = run([vector(i, at_use("items", at))[0] for at, i in enumerate(history)])
        margin, rows = [], []
        for at, (target, negative) in enumerate(zip(targets[j], negatives[j])):
            if not target:
                margin.append(torch.zeros((), dtype=torch.float64))
                rows.append(torch.zeros((), dtype=torch.float64))
                continue
            own, own_views = vector(target, at_use("targets", at))
            other, other_views = vector(negative, at_use("negatives", at))
            margin.append(h[at] @ (own - other))
            rows.append(-torch.nn.functional.logsigmoid(margin[-1]))
            pairs += 1
            for m in modalities:
                for item, views in [(target, own_views), (negative, other_views)]:
                    errors[m] = errors[m] + (f[m][item - 1] - p[f"projection.{m}.weight"] @ views).pow(2).sum() / GRAPH_WIDTHS[m]
        hs.append(h)
        margins.append(torch.stack(margin))
        ranking.append(torch.stack(rows))
    loss = torch.cat(ranking).sum() / pairs
    tensors |= {"in.targets": torch.tensor([t + [0] * (n - len(t)) for t in targets]), "out.h": padded(hs, n), "out.margin": padded(margins, n),
                "in.negatives": torch.tensor([t + [0] * (n - len(t)) for t in negatives]), "out.ranking_rows": padded(ranking, n), "out.ranking": loss}
    if hides:
        for m in modalities:
            tensors |= {f"in.keep.{part}.{m}": keep[part][m] for part in keep}
            tensors[f"out.reconstruction.{m}"] = errors[m] / pairs
            loss = loss + lam / 2 * errors[m] / pairs
    finish(name, "mvrnn", p, loss, tensors, **meta)


# ---------------------------------------------------------------- MASR


def masr(name, encoder="pre_norm", blocks="stacked", memory=True, stage="train", top_head=1):
    items, n, d, inner, layers, heads = (SEQUENCE_DIMS[key] for key in ["items", "positions", "model", "feed_forward", "layers", "heads"])
    generator, top_tail, margin, omega = torch.Generator().manual_seed(16), 3, 0.2, 0.7
    shapes = {"item_embedding": [items, d], "mask_embedding": [d], "position": [n, d]} | layer_shapes()
    if encoder == "post_norm":
        shapes |= {"input_norm.weight": [d], "input_norm.bias": [d]}
    for part in ["sequence", "head", "tail"] if memory else ["sequence"]:
        shapes |= {f"output.{part}.weight": [d, items], f"output.{part}.bias": [items]}
    if memory:
        shapes |= {"gate.copy.weight": [2 * d, 1], "gate.copy.bias": [1], "gate.tail.weight": [2 * items, 1], "gate.tail.bias": [1]}
    p = draw(shapes)
    is_head = torch.tensor([i in [1, 3, 8, 9] for i in range(1, items + 1)])
    bank_items = [2, 2, 4, 5, 6, 6, 6, 11, 16, 17, 17]
    bank = unit(torch.randn(len(bank_items), d, generator=generator)).float().double()
    filled = torch.tensor([int(i in [1, 8, 9]) for i in range(1, items + 1)])
    centroid = (0.8 * unit(torch.randn(items, d, generator=generator)) * filled[:, None]).float().double()
    table = torch.cat([p["item_embedding"], p["mask_embedding"][None]])
    constant = p["item_embedding"].detach()

    def encode(tokens):
        position = p["position"][n - len(tokens) :]
        x = table[torch.tensor(tokens) - 1] + position
        steps = []
        if encoder == "post_norm":
            x = norm(p, "input_norm", x)
            if blocks == "last":
                shifted = {key.replace(f"layer.{layers - 1}.", "layer.0."): value for key, value in p.items()}
                steps = layers_of(shifted, "", x, 1, heads, causal=False)
            else:
                steps = layers_of(p, "", x, layers, heads, causal=False)
            return x, steps
        start = x
        for l in range(layers - 1 if blocks == "last" else 0, layers):
            normed = norm(p, f"layer.{l}.attention.norm", x)
            query, key, value = (linear(p, f"layer.{l}.attention.{k}", normed) for k in ["query", "key", "value"])
            width, mixed = d // heads, []
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                mixed.append(torch.softmax(query[:, part] @ key[:, part].T / width**0.5, 1) @ value[:, part])
            x = x + linear(p, f"layer.{l}.attention.output", torch.cat(mixed, 1))
            up = linear(p, f"layer.{l}.feed_forward.up", norm(p, f"layer.{l}.feed_forward.norm", x))
            x = x + linear(p, f"layer.{l}.feed_forward.down", up * 0.5 * (1 + torch.erf(up / 2**0.5)))
            steps.append(x)
        return start, steps

    out = {}

    def row(x):
        """Returns the logits of a state, and the query vector whose inner products with the items' vectors they are."""
        a = unit(x.detach())
        s = bank @ a
        best = s.argsort(descending=True)[:top_tail]
        w = torch.softmax(s[best], 0)
        t = w @ constant[torch.tensor(bank_items)[best] - 1]
        s = (centroid @ a).masked_fill(filled == 0, -torch.inf)
        near = s.argsort(descending=True)[:top_head]
        c = (s[near][:, None] * centroid[near]).mean(0)
        alpha = torch.sigmoid(torch.cat([x, c]) @ p["gate.copy.weight"] + p["gate.copy.bias"])[0]
        mixed = (1 - alpha) * linear(p, "output.head", c) + alpha * linear(p, "output.sequence", x)
        tail = linear(p, "output.tail", t)
        beta = torch.sigmoid(torch.cat([mixed, tail]) @ p["gate.tail.weight"] + p["gate.tail.bias"])[0]
        for key, value in [("tail_items", torch.tensor(bank_items)[best]), ("tail_weights", w), ("copy_tail", t), ("head_items", near + 1), ("copy_head", c),
                           ("gate_copy", alpha), ("gate_tail", beta), ("hidden", x)]:
            out.setdefault(key, []).append(value)
        of = torch.cat([beta * (1 - alpha) * c, beta * alpha * x, (1 - beta) * t, torch.stack([beta * (1 - alpha), beta * alpha, 1 - beta])])
        return beta * mixed + (1 - beta) * tail, of

    tensors = {"in.is_head": is_head.to(torch.uint8)}
    if memory:
        tensors |= {"in.tail_bank.features": bank, "in.tail_bank.items": torch.tensor(bank_items), "in.centroid.features": centroid,
                    "in.centroid.filled": filled}
    meta = {"dims": SEQUENCE_DIMS, "switches": {"blocks": blocks, "encoder": encoder, "memory": "on" if memory else "off"},
            "scalars": {"margin": margin, "omega": omega, "top_head": top_head, "top_tail": top_tail}}
    if stage == "score":
        histories = [history[-(n - 1) :] for history in HISTORIES]
        users, logits = [], []
        for history in histories:
            scores, of = row(encode(history + [items + 1])[1][-1][-1])
            users.append(of)
            logits.append(scores)
        parts = ["head", "sequence", "tail"]
        matrix = torch.cat([p[f"output.{part}.weight"].T for part in parts] + [p[f"output.{part}.bias"][:, None] for part in parts], 1)
        scores, targets = torch.stack(logits), torch.tensor(TARGETS)
        tensors |= {f"out.{key}": torch.stack(value) for key, value in out.items()}
        tensors |= {"in.history": torch.tensor([h + [0] * (n - 1 - len(h)) for h in histories]), "in.targets": targets, "out.users": torch.stack(users),
                    "out.items": matrix, "out.scores": scores, "out.ranks": ranked(scores, targets)}
        write(name, {"model": "masr", "stage": "score", **meta}, tensors | {f"param.{key}": value for key, value in p.items()})
        return
    hidden = [[3, 18, 1, 9, 8, 2], [18], [9, 4], [1, 18, 3, 4, 18, 6, 7, 18], [16, 18, 3]]
    labels = [[0, 8, 0, 17, 0, 0], [5], [0, 0], [0, 2, 0, 0, 5, 0, 0, 8], [16, 3, 0]]
    states, chosen, starts, steps = [], [], [], [[] for _ in range(1 if blocks == "last" else layers)]
    for tokens, own in zip(hidden, labels):
        start, outs = encode(tokens)
        starts.append(start)
        for l, value in enumerate(outs):
            steps[l].append(value)
        states += [outs[-1][at] for at, label in enumerate(own) if label]
        chosen += [label for label in own if label]
    targets = torch.tensor(chosen)
    logits = torch.stack([row(x)[0] if memory else linear(p, "output.sequence", x) for x in states])
    rows = torch.nn.functional.cross_entropy(logits, targets - 1, reduction="none")
    loss = rows.mean()
    tensors |= {"in.items": torch.tensor([h + [0] * (n - len(h)) for h in hidden]), "in.labels": torch.tensor([l + [0] * (n - len(l)) for l in labels]),
                "in.lengths": torch.tensor([len(h) for h in hidden]), "out.logits": logits, "out.cross_entropy_rows": rows, "out.cross_entropy": loss,
                "out.hidden": torch.stack(states), "out.sequence.input": padded(starts, n)}
    first = layers - len(steps)
    tensors |= {f"out.sequence.layer.{first + l}": padded(step, n) for l, step in enumerate(steps)}
    if memory:
        tensors |= {f"out.{key}": torch.stack(value) for key, value in out.items()}
        negatives, pull, push, count, over = [4, 11, 6], 0.0, 0.0, 0, 0
        entries = lambda item: [bank[e] for e, other in enumerate(bank_items) if other == item]
        for x, label in zip(states, chosen):
            if is_head[label - 1]:
                continue
            count, a = count + 1, unit(x)
            pull = pull + sum((1 - a @ entry for entry in entries(label)), torch.zeros((), dtype=torch.float64))
            for item in negatives:
                for entry in entries(item):
                    if a @ entry > margin:
                        push, over = push + a @ entry, over + 1
        tensors |= {"in.negatives": torch.tensor(negatives), "out.memory_pull": pull / count, "out.memory_push": push / count,
                    "out.memory_push_pairs": torch.tensor(over)}
        loss = loss + omega * (pull + push) / count
    without = [key for key in p if blocks == "last" and key.startswith("layer.") and not key.startswith(f"layer.{layers - 1}.")]
    zero = [key for key in key_biases(p) if key not in without]
    finish(name, "masr", p, loss, tensors, decay=0.0001, zero=zero, without=without, **meta)


def masr_state(name):
    """Writes the memory banks after steps in which both rings wrap around, an item has more states than slots, and all states of another
    item are overwritten."""
    items, d, ring, slots = 7, 3, 4, 2
    is_head = torch.tensor([1, 0, 1, 0, 0, 0, 0], dtype=torch.uint8)
    generator = torch.Generator().manual_seed(17)
    head, head_items, cursor = torch.zeros(ring, d, dtype=torch.float64), torch.zeros(ring, dtype=torch.long), 0
    centroid, filled = torch.zeros(items, d, dtype=torch.float64), torch.zeros(items, dtype=torch.long)
    tail, written = torch.zeros(items, slots, d, dtype=torch.float64), torch.zeros(items, dtype=torch.long)
    tensors = {"in.is_head": is_head}
    for batch, labels in enumerate([[1, 4, 3], [4, 1, 4, 3, 7, 4, 1], [2, 3], [3, 1, 1, 5, 1, 1, 1]], 1):
        states = torch.randn(len(labels), d, generator=generator).float().double()
        for state, label in zip(unit(states), labels):
            if is_head[label - 1]:
                head[cursor], head_items[cursor], cursor = state, label, (cursor + 1) % ring
            else:
                tail[label - 1, written[label - 1] % slots] = state
                written[label - 1] += 1
        for label in set(labels):
            if is_head[label - 1] and (head_items == label).any():
                centroid[label - 1], filled[label - 1] = head[head_items == label].mean(0), 1
        tensors |= {f"in.{batch}.states": states, f"in.{batch}.labels": torch.tensor(labels)}
        state = {"head_bank.features": head, "head_bank.items": head_items, "head_bank.cursor": torch.tensor(cursor), "centroid.features": centroid,
                 "centroid.filled": filled, "tail_bank.slots": tail, "tail_bank.written": written}
        tensors |= {f"out.{batch}.{key}": value.clone() for key, value in state.items()}
    write(name, {"model": "masr", "stage": "state", "scalars": {}, "switches": {},
                 "dims": {"batches": 4, "head_bank": ring, "items": items, "model": d, "tail_slots": slots}}, tensors)


# ---------------------------------------------------------------- eSASRec


def esasrec_shapes(bias, final, ligr):
    items, n, d, inner, layers = (SEQUENCE_DIMS[key] for key in ["items", "positions", "model", "feed_forward", "layers"])
    shapes = {"item_embedding": [items, d], "position": [n, d]}
    for l in range(layers):
        own = [("attention.gate", d, d), ("feed_forward.gate", d, d), ("feed_forward.switch", d, inner)] if ligr else []
        for name, a, b in [("attention.query", d, d), ("attention.key", d, d), ("attention.value", d, d), ("attention.output", d, d), *own,
                           ("feed_forward.up", d, inner), ("feed_forward.down", inner, d)]:
            shapes[f"layer.{l}.{name}.weight"] = [a, b]
            if bias or name.startswith("attention") or name.endswith("gate"):
                shapes[f"layer.{l}.{name}.bias"] = [b]
        shapes |= {f"layer.{l}.{part}.norm.{of}": [d] for part in ["attention", "feed_forward"] for of in ["weight", "bias"]}
    if final:
        shapes |= {f"output_norm.{of}": [d] for of in ["weight", "bias"]}
    return shapes


def esasrec(name, loss="sampled_softmax", positions="from_end", log_q=False, bias=False, final=False, negatives=4, calibration=0.75,
            kind="ligr"):
    """Writes a case with one batch that is padded on the left: row 0 of the table is padding, and no token attends to it."""
    F = torch.nn.functional
    items, n, d, layers, heads = (SEQUENCE_DIMS[key] for key in ["items", "positions", "model", "layers", "heads"])
    p = draw(esasrec_shapes(bias, final, kind == "ligr"))
    generator = torch.Generator().manual_seed(12)
    count = len(HISTORIES)
    follow = [history[1:] + [target] for history, target in zip(HISTORIES, TARGETS)]
    read, asked, drawn = (torch.zeros(count, n, *more, dtype=torch.long) for more in [(), (), (negatives,)])
    for j, (history, after) in enumerate(zip(HISTORIES, follow)):
        read[j, n - len(history):] = torch.tensor(history)
        asked[j, n - len(history):] = torch.tensor(after)
        drawn[j, n - len(history):] = torch.randint(1, items + 1, (len(history), negatives), generator=generator)
    # The sampled negatives repeat items, and one of them is the target.
    drawn[0, -1, :2] = asked[0, -1]
    drawn[3, 2, 1:3] = drawn[3, 2, 0]
    real = read > 0

    def module(key):
        """Returns a linear layer with the parameters of the case, whose weights have the inputs as rows."""
        return lambda x: F.linear(x, p[f"{key}.weight"].T, p.get(f"{key}.bias"))

    def layer_norm(key, x):
        return F.layer_norm(x, (d,), p[f"{key}.weight"], p[f"{key}.bias"], EPS)

    table = torch.cat([torch.zeros(1, d, dtype=torch.float64), p["item_embedding"]])
    indices = torch.arange(n - 1, -1, -1).expand(count, n)
    if positions == "from_start":
        indices = (real.cumsum(1) - 1).clamp(min=0)
    x = table[read] + p["position"][indices]
    outs = {"input": x}
    # A padding token attends to itself, so that its softmax is defined; its output is not used.
    visible = torch.ones(n, n).tril().bool()[None] & (real[:, None, :] | torch.eye(n).bool()[None])
    for l in range(layers):
        of = f"layer.{l}"
        z = layer_norm(f"{of}.attention.norm", x)
        split = lambda y: y.view(count, n, heads, d // heads).transpose(1, 2)
        # SASRec's authors normalise only what asks.
        sources = [("query", z), ("key", z if kind == "ligr" else x), ("value", z if kind == "ligr" else x)]
        query, key, value = (split(module(f"{of}.attention.{part}")(source)) for part, source in sources)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible[:, None])
        branch = module(f"{of}.attention.output")(mixed.transpose(1, 2).reshape(count, n, d))
        if kind == "sasrec":
            z = layer_norm(f"{of}.feed_forward.norm", z + branch)
            x = outs[f"layer.{l}"] = z + module(f"{of}.feed_forward.down")(F.relu(module(f"{of}.feed_forward.up")(z)))
            continue
        gate = torch.sigmoid(module(f"{of}.attention.gate")(x))
        outs |= {f"attention.{l}": branch, f"attention.{l}.gate": gate}
        x = x + gate * branch
        z = layer_norm(f"{of}.feed_forward.norm", x)
        branch = module(f"{of}.feed_forward.down")(F.silu(module(f"{of}.feed_forward.switch")(z)) * module(f"{of}.feed_forward.up")(z))
        gate = torch.sigmoid(module(f"{of}.feed_forward.gate")(x))
        outs |= {f"feed_forward.{l}": branch, f"feed_forward.{l}.gate": gate}
        x = x + gate * branch
        outs[f"layer.{l}"] = x
    if final:
        x = layer_norm("output_norm", x)
    outs["h"] = x
    parts, offsets = training()
    if loss == "softmax":
        rows = F.cross_entropy(x[real] @ p["item_embedding"].T, asked[real] - 1, reduction="none")
    else:
        candidates = torch.cat([asked[..., None], drawn], 2)
        logits = (table[candidates] @ x[..., None]).squeeze(-1)
        if log_q:
            events = torch.bincount(torch.tensor(sum(parts, [])), minlength=items + 1).clamp(min=1).double()
            logits = logits - (events / offsets[-1]).log()[candidates]
        outs["sampled_logits"] = logits
        if loss == "sampled_softmax":
            rows = F.cross_entropy(logits[real], torch.zeros(int(real.sum()), dtype=torch.long), reduction="none")
        else:
            alpha = negatives / (items - 1)
            beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
            positive = torch.sigmoid(logits[real][:, 0]) ** beta
            negative = torch.sigmoid(logits[real][:, 1:])
            rows = torch.cat([F.binary_cross_entropy(positive, torch.ones_like(positive), reduction="none")[:, None],
                              F.binary_cross_entropy(negative, torch.zeros_like(negative), reduction="none")], 1).mean(1)
    left = lambda values: padded([row[mask] for row, mask in zip(values, real)], n)
    tensors = sequence_inputs() | {"in.follow": torch.tensor([after + [0] * (n - len(after)) for after in follow]),
                                   "in.train.items": torch.tensor(sum(parts, [])), "in.train.offsets": torch.tensor(offsets)}
    if loss != "softmax":
        tensors["in.negatives"] = drawn[real]
    tensors |= {f"out.{key}": left(value) for key, value in outs.items()}
    scores = x[:, -1] @ p["item_embedding"].T
    tensors |= {"out.loss_rows": rows, "out.scores": scores, "out.ranks": ranked(scores, torch.tensor(TARGETS))}
    finish(name, "esasrec", p, rows.mean(), tensors, zero=key_biases(p), dims=SEQUENCE_DIMS | {"negatives": negatives},
           scalars={"calibration": calibration},
           switches={"layers": kind, "loss": loss, "positions": positions, "log_q": "on" if log_q else "off", "feed_forward_bias": "on" if bias else "off",
                     "final_norm": "on" if final else "off"})


if __name__ == "__main__":
    train("lightgcn_default", 3, "squared", 0.05, 0.0)
    train("lightgcn_norm", 1, "norm", 0.1, 0.001)
    train("lightgcn_no_layer", 0, "squared", 0.0, 0.0)
    score("lightgcn_score", 2)
    cl4srec("cl4srec_default", "dot", 1.0, 1, 0.0001)
    cl4srec("cl4srec_cosine", "cosine", 0.3, 2, 0.0)
    sine("sine_default")
    sine("sine_regularizer_positions", regularizer=0.3, positions=True)
    sine("sine_unmasked", unmasked=True)
    fdsa("fdsa_default")
    fdsa("fdsa_categories", modalities=("image",), use_categories=True, adapter="one", norms="separate")
    fdsa("fdsa_categories_only", modalities=(), use_categories=True, pooling="padded_mean")
    fdsa("fdsa_padded_mean", pooling="padded_mean")
    difsr("difsr_default")
    difsr("difsr_full", modalities=("text",), keys="full")
    difsr("difsr_sum_categories", fusion="sum", attributes="categories")
    difsr("difsr_concat_full_categories", fusion="concat", keys="full", attributes="categories")
    difsr("difsr_concat_no_predictor", fusion="concat", predictor="off")
    s3rec_pretrain("s3rec_pretrain_default")
    s3rec_pretrain("s3rec_pretrain_once_sum", pair="once", reduction="sum", modalities=("image",))
    s3rec_pretrain("s3rec_pretrain_categories", attributes="categories")
    s3rec_finetune("s3rec_finetune")
    unisrec("unisrec_pretrain_default", "pretrain")
    unisrec("unisrec_pretrain_rows", "pretrain", false_negatives="zero_logit", augment="rows")
    unisrec("unisrec_pretrain_no_noise", "pretrain", false_negatives="keep", noise=False, modalities=("text",))
    unisrec("unisrec_finetune_default", "finetune")
    unisrec("unisrec_finetune_free", "finetune", fix_encoder=False, modalities=("image",))
    unisrec("unisrec_finetune_no_id", "finetune", id_embedding=False)
    grcn("grcn_default")
    grcn("grcn_unpruned", modalities=("text", "image", "audio"), routing=1, pruning=False, decay=0.001)
    grcn("grcn_max_id", weights="max", fusion="id", routing=0)
    grcn("grcn_mean", modalities=("audio",), weights="mean")
    grcn("grcn_score", score=True)
    dualgnn("dualgnn_graph", stage="graph", k=4)
    dualgnn("dualgnn_default")
    dualgnn("dualgnn_summed", modalities=("text", "image", "audio"), user_fusion="summed", k=2)
    dualgnn("dualgnn_resampled", lists="resampled", k=7, decay=0.001)
    dualgnn("dualgnn_score", stage="score")
    clcrec("clcrec_default")
    clcrec("clcrec_three_modalities", modalities=("text", "image", "audio"), decay=0.001)
    clcrec("clcrec_score", candidates="all")
    clcrec("clcrec_score_cold_only", candidates="cold")
    for variant, cell in [("con", "lstm"), ("add", "gru"), ("fusion", "gru"), ("separate", "lstm"), ("separate", "gru")]:
        mvrnn(f"mvrnn_{variant}_{cell}", variant, cell)
    mvrnn("mvrnn_score", "add", "lstm", score=True)
    mvrnn("mvrnn_con_score", "con", "gru", modalities=("text", "image", "audio"), score=True)
    masr("masr_default")
    masr("masr_post_norm", encoder="post_norm", top_head=2)
    masr("masr_last_block", blocks="last")
    masr("masr_post_norm_last_block", encoder="post_norm", blocks="last")
    masr("masr_warmup", memory=False)
    masr("masr_score", stage="score", top_head=2)
    masr_state("masr_state")
    esasrec("esasrec_default")
    esasrec("esasrec_log_q", log_q=True, positions="from_start")
    esasrec("esasrec_gbce", loss="gbce", bias=True, negatives=5)
    esasrec("esasrec_softmax", loss="softmax", final=True)
    esasrec("esasrec_sasrec_layers", kind="sasrec", bias=True, final=True)
