"""Golden cases of the baselines: an independent reference in float64, written to be read, not to be fast.

    python tests/golden/baselines/generate.py      (PyTorch, numpy, safetensors)

writes the `.safetensors` files beside it. Their form is that of `tests/golden/generate.py`: metadata `case` with model, stage, dims,
scalars, switches, adam, tolerance; tensors `in.*`, `param.*`, `out.*`, `grad.*`, `adam.*`. Users and items are 1-based, and no
table has a padding row.
"""

import json
import pathlib

import torch
from safetensors.torch import save_file

torch.manual_seed(11)
FOLDER = pathlib.Path(__file__).parent
USERS, ITEMS, WIDTH, BATCH = 9, 13, 6, 10
TOLERANCE = {"out": {"atol": 2e-5, "rtol": 2e-5}, "grad": {"atol": 1e-5, "rtol": 1e-4}, "adam": {"atol": 2e-5, "rtol": 0.0}}


def training():
    """Training parts: user 3 has one event twice, user 5 a single one; items 12 and 13 have none."""
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
        # The first step of Adam: both moments are corrected to the gradient and its square.
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


if __name__ == "__main__":
    train("lightgcn_default", 3, "squared", 0.05, 0.0)
    train("lightgcn_norm", 1, "norm", 0.1, 0.001)
    train("lightgcn_no_layer", 0, "squared", 0.0, 0.0)
    score("lightgcn_score", 2)
