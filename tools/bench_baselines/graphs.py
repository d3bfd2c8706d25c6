"""Training steps of the models on the user-item graph: products with sparse CSR matrices, whose transposes are prepared in advance."""

import warnings

import torch
import torch.nn.functional as F

from common import MODALITIES, Step, unit

warnings.filterwarnings("ignore", category=UserWarning, message="Sparse")


def csr(rows, columns, values, shape):
    """Returns a CSR matrix of entries that are sorted by row, then by column."""
    starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(rows, minlength=shape[0]).cumsum(0)])
    return torch.sparse_csr_tensor(starts, columns, values, shape)


class Graph:
    """The distinct events of users with items, as edges sorted by user, and the same edges sorted by item."""

    def __init__(self, step):
        items, offsets = step.inputs["train.items"] - 1, step.inputs["train.offsets"]
        self.shape = (len(offsets) - 1, step.items)
        users = torch.repeat_interleave(torch.arange(self.shape[0]), offsets.diff())
        edges = (users * step.items + items).unique()
        self.users, self.items = edges // step.items, edges % step.items
        self.by_item = (self.items * self.shape[0] + self.users).argsort()
        ones = torch.ones(len(edges))
        self.forth = csr(self.users, self.items, ones, self.shape)
        self.back = csr(self.items[self.by_item], self.users[self.by_item], ones, self.shape[::-1])

    def adjacency(self):
        """Returns the symmetric adjacency matrix of users, then items, with the weights 1 / sqrt(d_u d_i)."""
        users = self.shape[0]
        rows, columns = torch.cat([self.users, users + self.items]), torch.cat([users + self.items, self.users])
        degree = torch.bincount(rows, minlength=sum(self.shape)).double()
        order = (rows * sum(self.shape) + columns).argsort()
        rows, columns = rows[order], columns[order]
        weights = (degree[rows] * degree[columns]).rsqrt().float()
        return csr(rows, columns, weights, (sum(self.shape),) * 2)


class Symmetric(torch.autograd.Function):
    """The product with a symmetric matrix."""

    @staticmethod
    def forward(ctx, x, matrix):
        ctx.matrix = matrix
        return matrix @ x

    @staticmethod
    def backward(ctx, gradient):
        return ctx.matrix @ gradient, None


class Constant(torch.autograd.Function):
    """The product with a constant matrix whose transpose is also given."""

    @staticmethod
    def forward(ctx, x, matrix, transposed):
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    def backward(ctx, gradient):
        return ctx.transposed @ gradient, None, None


def weighed(matrix, values):
    return torch.sparse_csr_tensor(matrix.crow_indices(), matrix.col_indices(), values, matrix.shape, check_invariants=False)


def dots(matrix, rows, columns):
    """Returns the inner product of a row and a column at each entry of the matrix."""
    return torch.sparse.sampled_addmm(matrix, rows, columns.T, beta=0.0).values()


class EdgeDot(torch.autograd.Function):
    """The inner product q_u . f_i at every edge."""

    @staticmethod
    def forward(ctx, users, items, graph):
        ctx.graph = graph
        ctx.save_for_backward(users, items)
        return dots(graph.forth, users, items)

    @staticmethod
    def backward(ctx, gradient):
        (users, items), graph = ctx.saved_tensors, ctx.graph
        return weighed(graph.forth, gradient) @ items, weighed(graph.back, gradient[graph.by_item]) @ users, None


class EdgeSum(torch.autograd.Function):
    """The sum of the neighbours of every user or every item, weighted by the edges."""

    @staticmethod
    def forward(ctx, weights, x, graph, to_items):
        ctx.graph, ctx.to_items = graph, to_items
        ctx.save_for_backward(weights, x)
        return weighed(graph.back, weights[graph.by_item]) @ x if to_items else weighed(graph.forth, weights) @ x

    @staticmethod
    def backward(ctx, gradient):
        (weights, x), graph = ctx.saved_tensors, ctx.graph
        if ctx.to_items:
            return dots(graph.forth, x, gradient), weighed(graph.forth, weights) @ gradient, None, None
        return dots(graph.forth, gradient, x), weighed(graph.back, weights[graph.by_item]) @ gradient, None, None


class Events(Step):
    """Bayesian personalised ranking over events."""

    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        self.users = self.inputs["users"]
        self.positives, self.negatives = self.inputs["positives"] - 1, self.inputs["negatives"] - 1
        self.graph = Graph(self)

    def bpr(self, of_users, of_items):
        users = F.embedding(self.users, of_users)
        difference = F.embedding(self.negatives, of_items) - F.embedding(self.positives, of_items)
        return F.softplus((users * difference).sum(-1)).mean()


class LightGcn(Events):
    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        self.adjacency = self.graph.adjacency()

    def loss(self):
        p, users = self.p, self.graph.shape[0]
        x = torch.cat([p["user_embedding"], p["item_embedding"]])
        total = x
        for _ in range(self.own["layers"]):
            x = Symmetric.apply(x, self.adjacency)
            total = total + x
        mean = total / (self.own["layers"] + 1)
        bpr = self.bpr(mean[:users], mean[users:])
        rows = [(self.users, "user"), (self.positives, "item"), (self.negatives, "item")]
        squares = sum(F.embedding(at, p[f"{name}_embedding"]).square().sum() for at, name in rows)
        return bpr + self.own["reg_weight"] * squares / (2 * len(self.users))


class Grcn(Events):
    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        self.means = {m: self.inputs[f"means.{m}"] for m in MODALITIES}

    def softmax(self, scores, ends, count):
        """Computes a softmax over the edges of every node. Scores are cosines, so their maximum need not be subtracted."""
        weights = torch.exp(scores)
        return weights / torch.zeros(count).index_add(0, ends, weights)[ends]

    def loss(self):
        p, own, graph = self.p, self.own, self.graph
        (users, items), to_users, to_items, of_users, of_items = graph.shape, [], [], [], []
        for m in MODALITIES:
            feature = unit(F.leaky_relu(self.linear(self.means[m], f"feature.{m}"), 0.01))
            prototype = unit(p[f"preference.{m}"])
            for _ in range(own["routing"]):
                routes = self.softmax(EdgeDot.apply(prototype, feature, graph), graph.users, users)
                prototype = unit(prototype + EdgeSum.apply(routes, feature, graph, False))
            scores = EdgeDot.apply(prototype, feature, graph)
            to_users.append(self.softmax(scores, graph.users, users))
            to_items.append(self.softmax(scores, graph.items, items))
            of_users.append(prototype + EdgeSum.apply(to_users[-1], feature, graph, False))
            of_items.append(feature + EdgeSum.apply(to_items[-1], prototype, graph, True))
        to_user = F.relu((torch.stack(to_users, 1) * F.embedding(graph.items, p["confidence.items"])).amax(1))
        to_item = F.relu((torch.stack(to_items, 1) * F.embedding(graph.users, p["confidence.users"])).amax(1))
        user, item = unit(p["user_embedding"]), unit(p["item_embedding"])
        user_sum, item_sum = user, item
        for _ in range(2):
            user, item = EdgeSum.apply(to_user, item, graph, False), EdgeSum.apply(to_item, user, graph, True)
            user_sum, item_sum = user_sum + user, item_sum + item
        bpr = self.bpr(torch.cat([user_sum, *of_users], 1), torch.cat([item_sum, *of_items], 1))
        mean = lambda name, at: F.embedding(at, p[name]).square().mean()
        reg = mean("user_embedding", self.users) + sum(mean(f"preference.{m}", self.users) for m in MODALITIES)
        reg = reg + (mean("item_embedding", self.positives) + mean("item_embedding", self.negatives)) / 2
        return bpr + own["reg_weight"] * reg


class DualGnn(Events):
    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        own, users = self.inputs, self.graph.shape[0]
        self.adjacency = self.graph.adjacency()
        self.means = {m: own[f"means.{m}"] for m in MODALITIES}
        # Only the rows of the batch's users are needed from the user graph.
        starts, others, counts = own["neighbours.offsets"], own["neighbours.users"], own["neighbours.counts"].double()
        self.distinct, self.uses = self.users.unique(return_inverse=True)
        rows, columns, weights = [], [], []
        for row, user in enumerate(self.distinct.tolist()):
            part = slice(int(starts[user]), int(starts[user + 1]))
            order = others[part].argsort()
            rows.append(torch.full_like(others[part], row))
            columns.append(others[part][order])
            weights.append(torch.softmax(counts[part], 0)[order].float())
        rows, columns, weights = torch.cat(rows), torch.cat(columns), torch.cat(weights)
        back = (columns * len(self.distinct) + rows).argsort()
        self.neighbours = csr(rows, columns, weights, (len(self.distinct), users))
        self.transposed = csr(columns[back], rows[back], weights[back], (users, len(self.distinct)))

    def loss(self):
        p, users, d = self.p, self.graph.shape[0], self.own["width"]
        sides = []
        for m in MODALITIES:
            inner = F.leaky_relu(self.linear(self.means[m], f"feature.{m}.hidden"), 0.01)
            sides.append(torch.cat([unit(p[f"preference.{m}"]), unit(self.linear(inner, f"feature.{m}.output"))]))
        x = torch.cat(sides, 1)
        once = Symmetric.apply(x, self.adjacency)
        passed = x + once + Symmetric.apply(once, self.adjacency)
        of_users, of_items = (part.unflatten(1, (len(MODALITIES), d)) for part in passed.tensor_split([users]))
        fused = (p["modality_weight"].unsqueeze(-1) * of_users).sum(1)
        neighbours = Constant.apply(fused, self.neighbours, self.transposed)
        own = F.embedding(self.distinct, fused) + neighbours
        items = of_items.sum(1)
        difference = F.embedding(self.negatives, items) - F.embedding(self.positives, items)
        bpr = F.softplus((F.embedding(self.uses, own) * difference).sum(-1)).mean() / 0.6931471805599453
        reg = sum(F.embedding(self.users, p[f"preference.{m}"]).square().mean() for m in MODALITIES)
        return bpr + self.own["reg_weight"] * (reg + p["modality_weight"].square().mean())


class ClcRec(Step):
    """Computes all products of anchors with items and picks the sampled ones, which is cheaper than gathering the items' vectors."""

    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        own = self.inputs
        self.features = torch.cat([unit(own[f"means.{m}"]) for m in MODALITIES], 1)
        self.users, self.rows = own["users"], own["sampled"].view(len(own["users"]), -1) - 1
        self.hole = self.rows < 0
        self.rows = self.rows.clamp_min(0)
        self.stand_ins = self.rows + self.items * own["replaced"].view_as(self.rows)
        self.draws = torch.bincount(own["sampled"], minlength=self.items + 1)[1:].float()
        self.real = int(self.draws.sum())

    def pick(self, logits, rows):
        logits = (logits / self.own["temperature"]).gather(1, rows).masked_fill(self.hole, -torch.inf)
        return (torch.logsumexp(logits, 1) - logits[:, 0]).mean()

    def loss(self):
        p, weight = self.p, self.own["lambda"]
        contents = self.linear(F.leaky_relu(self.linear(self.features, "feature.hidden"), 0.01), "feature.output")
        users, items = F.embedding(self.users, p["user_embedding"]), p["item_embedding"]
        anchors = unit(F.embedding(self.rows[:, 0], items))
        re = self.pick(anchors @ unit(contents).T, self.rows)
        ui = self.pick(users @ torch.cat([items, contents]).T, self.stand_ins)
        lengths = (items.norm(dim=1) * self.draws).sum() / self.real
        reg = (users.norm(dim=1).mean() + lengths) / 2
        return weight * re + (1 - weight) * ui + self.own["reg_weight"] * reg
