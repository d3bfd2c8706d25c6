"""Training steps of the sequential models. Padded batches and distinct items are prepared in advance, as a data loader would do."""

import torch
import torch.nn.functional as F

from common import MODALITIES, Layers, Step, Transformer, last, pad, unit


class SasRec(Step):
    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        self.histories, self.lengths = self.padded("items", "offsets")
        self.rows = (self.histories - 1).clamp_min(0)
        self.targets = self.inputs["targets"] - 1
        self.encode = Transformer(self)

    def loss(self):
        table = self.p["item_embedding"]
        h = self.encode(F.embedding(self.rows, table), self.lengths)
        return F.cross_entropy(h @ table.T, self.targets)


class Cl4sRec(Step):
    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        # Rows of the item table, in which the mask token follows the last item.
        self.rows, self.lengths = self.padded("views.rows", "views.offsets")
        self.targets = self.inputs["targets"] - 1
        self.encode = Transformer(self)

    def loss(self):
        p, count = self.p, len(self.targets)
        table = torch.cat([p["item_embedding"], p["mask_embedding"][None]])
        outputs = self.encode(F.embedding(self.rows, table), self.lengths)
        main = F.cross_entropy(outputs[:count] @ p["item_embedding"].T, self.targets)
        views = outputs[count:]
        logits = (views @ views.T / self.own["temperature"]).masked_fill(torch.eye(2 * count, dtype=torch.bool), -torch.inf)
        return main + self.own["lambda"] * F.cross_entropy(logits, torch.arange(2 * count).roll(count))


class Sine(Step):
    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        histories, lengths = self.padded("items", "offsets")
        self.distinct, uses = self.inputs["items"].unique(return_inverse=True)
        self.distinct = self.distinct - 1
        self.uses = pad(uses, self.inputs["offsets"])
        self.hole = (torch.arange(histories.shape[1]) >= lengths[:, None]).unsqueeze(-1)
        self.targets = self.inputs["targets"] - 1

    def over_history(self, scores):
        return torch.softmax(scores.masked_fill(self.hole, -torch.inf), 1)

    def loss(self):
        p, k, tau = self.p, self.own["interests"], self.own["temperature"]
        d = self.own["width"]
        table = F.embedding(self.distinct, p["item_embedding"])
        maps = torch.cat([p["concept.w1"], *p["interest.w1"], p["intention.w3"]], 1)
        all_ = table @ maps
        w2 = torch.cat([p["concept.w2"][None], p["interest.w2"]])
        scores = (torch.tanh(all_[:, : (1 + k) * d]).unflatten(1, (1 + k, d)) * w2).sum(-1)
        keys = unit(all_[:, (1 + k) * d :])
        x = F.embedding(self.uses, table)
        attention = self.over_history(F.embedding(self.uses, scores))
        z = (attention[..., :1].transpose(1, 2) @ x).squeeze(1)
        with torch.no_grad():
            chosen = (z @ p["prototype"].T).topk(k).indices.flip(1)
        kept = F.embedding(chosen, p["prototype"])
        c = kept * torch.sigmoid((kept * z.unsqueeze(1)).sum(-1, keepdim=True))
        assignment = torch.softmax(F.embedding(self.uses, keys) @ self.norm(c, "concept_norm").transpose(1, 2), -1)
        delta = unit((assignment * attention[..., 1:]).transpose(1, 2) @ x)
        hidden = assignment @ (c @ p["intention.w3"])
        weights = self.over_history((torch.tanh(hidden) @ p["intention.w4"]).unsqueeze(-1))
        shares = weights.transpose(1, 2) @ assignment
        u = self.norm((shares @ c).squeeze(1), "intention_norm")
        mixture = torch.softmax((delta @ u.unsqueeze(-1)).squeeze(-1) / tau, -1)
        user = (mixture.unsqueeze(1) @ delta).squeeze(1)
        return F.cross_entropy(user @ p["item_embedding"].T, self.targets)


class Fdsa(Step):
    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        self.histories, self.lengths = self.padded("items", "offsets")
        distinct, uses = self.inputs["items"].unique(return_inverse=True)
        self.uses = pad(uses, self.inputs["offsets"])
        self.means = {m: self.inputs[f"means.{m}"][distinct - 1] for m in MODALITIES}
        self.targets = self.inputs["targets"] - 1
        self.item_layers, self.feature_layers = Layers(self, "item."), Layers(self, "feature.")

    def features(self):
        """Returns the feature vectors of the distinct items."""
        fields = []
        for m in MODALITIES:
            x = F.relu(self.linear(self.drop(self.means[m]), f"adapter.{m}.first"))
            fields.append(F.relu(self.linear(self.drop(x), f"adapter.{m}.second")))
        fields = torch.stack(fields, 1)
        energy = self.linear(F.relu(self.linear(fields, "fusion.hidden")), "fusion.score")
        return (torch.softmax(energy, 1) * fields).sum(1)

    def loss(self):
        position = self.p["position"][: self.histories.shape[1]]
        table = self.p["id_embedding"]
        tokens = F.embedding(self.histories, table), F.embedding(self.uses, self.features())
        enter = [self.drop(self.norm(x + position, "input_norm")) for x in tokens]
        joined = torch.cat([self.item_layers(enter[0], self.lengths), self.feature_layers(enter[1], self.lengths)], 1)
        h = self.drop(self.norm(self.linear(joined, "output"), "input_norm"))
        return F.cross_entropy(h @ table[1:].T, self.targets)


class DifSr(Step):
    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        self.histories, self.lengths = self.padded("items", "offsets")
        n = self.histories.shape[1]
        self.rows = (self.histories - 1).clamp_min(0)
        self.targets = self.inputs["targets"] - 1
        self.own_row = torch.arange(len(self.targets))
        real = torch.arange(n) < self.lengths[:, None]
        # Rows are queries, and columns are keys.
        self.allowed = (torch.ones(n, n, dtype=torch.bool).tril() & real[:, None])[:, None]
        self.last_allowed = real[:, None, None]
        self.heads = self.transformer["heads"]

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def layer(self, l, x, attributes, top):
        name, n = f"layer.{l}.attention", x.shape[1]
        allowed = self.last_allowed if top else self.allowed
        asking = last(x, self.lengths).unsqueeze(1) if top else x
        last_rows, last_places = last(self.rows, self.lengths).unsqueeze(1), (self.lengths - 1).unsqueeze(1)
        scores = []
        for m in MODALITIES:
            query, key = (self.linear(attributes[m], f"{name}.{m}.{part}") for part in ("query", "key"))
            query = F.embedding(last_rows if top else self.rows, query)
            scores.append(self.split(query) @ self.split(F.embedding(self.rows, key)).transpose(-1, -2))
        query, key = self.split(self.linear(asking, f"{name}.query")), self.split(self.linear(x, f"{name}.key"))
        scores.append(query @ key.transpose(-1, -2))
        positions = self.p["position"][:n]
        query, key = (self.linear(positions, f"{name}.position.{part}") for part in ("query", "key"))
        query = F.embedding(last_places, query) if top else query
        scores.append((self.split(query) @ self.split(key).transpose(-1, -2)).expand_as(scores[-1]))
        stacked = torch.stack(scores, -2) * allowed.unsqueeze(-2)
        hidden = F.relu(F.linear(stacked, self.p[f"{name}.gate.hidden.weight"][:n].t(), self.p[f"{name}.gate.hidden.bias"]))
        gate = torch.softmax(self.linear(hidden, f"{name}.gate.score"), -2)
        fused = (gate.transpose(-1, -2) @ stacked).squeeze(-2) / (x.shape[-1] // self.heads) ** 0.5
        weights = self.drop(torch.softmax(fused.masked_fill(~allowed, torch.finfo(fused.dtype).min), -1))
        context = (weights @ self.split(self.linear(x, f"{name}.value"))).transpose(1, 2).flatten(-2)
        x = self.norm(asking + self.drop(self.linear(context, f"{name}.output")), f"{name}.norm")
        inner = F.gelu(self.linear(x, f"layer.{l}.feed_forward.up"))
        return self.norm(x + self.drop(self.linear(inner, f"layer.{l}.feed_forward.down")), f"layer.{l}.feed_forward.norm")

    def loss(self):
        table, count = self.p["id_embedding"], self.transformer["layers"]
        attributes = {m: F.relu(self.linear(self.inputs[f"means.{m}"], f"adapter.{m}.first")) for m in MODALITIES}
        x = self.drop(self.norm(F.embedding(self.histories, table), "input_norm"))
        for l in range(count):
            x = self.layer(l, x, attributes, l + 1 == count)
        h = x.squeeze(1)
        loss = F.cross_entropy(h @ table[1:].T, self.targets)
        for m in MODALITIES:
            logits = self.linear(h, f"predictor.{m}") @ attributes[m].T
            # The binary cross-entropy with one label per row, computed without a matrix of labels.
            mean = (F.softplus(logits).sum() - logits[self.own_row, self.targets].sum()) / logits.numel()
            loss = loss + self.own["attribute_weight"] * mean
        return loss


class S3Rec(Step):
    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        own, mask = self.inputs, self.items + 1
        offsets, items, masked = own["offsets"], own["items"], own["masked"].bool()
        self.lengths = offsets[1:] - offsets[:-1]
        self.tokens = pad(torch.where(masked, mask, items), offsets)
        n = self.tokens.shape[1]
        indices = (torch.arange(len(self.lengths))[:, None] * n + torch.arange(n))[torch.arange(n) < self.lengths[:, None]]
        self.open, self.masked = indices[~masked], indices[masked]
        self.open_items, self.masked_items, self.negatives = items[~masked], items[masked], own["negatives"][masked]
        sizes = own["segments.offsets"].diff()
        kept = sizes > 0
        at = torch.arange(n)
        inside = (at >= own["segments.starts"][:, None]) & (at < (own["segments.starts"] + sizes)[:, None])
        histories, others = pad(items, offsets), torch.zeros(len(sizes), n, dtype=torch.long)
        others[inside] = own["segments.items"]
        views = [torch.where(inside, mask, histories), torch.where(inside, histories, mask), torch.where(inside, others, mask)]
        self.segments, self.segment_lengths = torch.cat([view[kept] for view in views]), self.lengths[kept].repeat(3)
        self.means = {m: own[f"means.{m}"] for m in MODALITIES}
        self.encode = Transformer(self)

    def below(self, asked, other, own):
        score = lambda vectors: torch.sigmoid((asked * vectors).sum(-1))
        return F.softplus(score(other) - score(own)).sum()

    def attributes_of(self, asked, items, tables):
        """Returns the binary cross-entropy of all attributes with one label per modality, computed without a matrix of labels."""
        positive = sum((asked * F.embedding(items - 1, table)).sum() for table in tables)
        return F.softplus(asked @ torch.cat(tables).T).sum() - positive

    def loss(self):
        p, own, share = self.p, self.own, 1 / len(self.lengths)
        table = torch.cat([p["id_embedding"], p["mask_embedding"][None]])
        hidden = self.encode(F.embedding(self.tokens, table), self.lengths, causal=False, all_tokens=True).flatten(0, 1)
        tables = [F.relu(self.linear(self.means[m], f"adapter.{m}.first")) for m in MODALITIES]
        open_, masked = (hidden.index_select(0, indices) for indices in (self.open, self.masked))
        loss = own["aap_weight"] * self.attributes_of(self.linear(open_, "aap"), self.open_items, tables)
        loss = loss + own["map_weight"] * self.attributes_of(self.linear(masked, "map"), self.masked_items, tables)
        ids = [F.embedding(items, p["id_embedding"]) for items in (self.negatives, self.masked_items)]
        loss = loss + own["mip_weight"] * self.below(self.linear(masked, "mip"), *ids)
        context, positive, negative = self.encode(F.embedding(self.segments, table), self.segment_lengths, causal=False).chunk(3)
        return share * (loss + own["sp_weight"] * self.below(self.linear(context, "sp"), negative, positive))


class UniSRec(Step):
    """The code that both phases share: the adaptor, which is applied to item occurrences without padding, and the encoder."""

    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        self.experts, self.tau = self.own["experts"], self.own["temperature"]
        self.adaptor_rate = self.own["adaptor_dropout"] if dropout else 0.0
        self.features, self.noise = self.inputs["features"], self.inputs["noise"]
        self.targets = self.inputs["targets"] - 1
        self.encode = Transformer(self)

    def adapt(self, rows):
        """Returns the adapted vectors of feature rows, [occurrences, width]."""
        p, x = self.p, self.features[rows]
        maps = torch.cat([p["adaptor.gate.weight"], p["adaptor.noise.weight"]], 1)
        logits, deviation = (x @ maps).chunk(2, -1)
        gate = torch.softmax(logits + self.noise * (F.softplus(deviation) + 0.01), -1)
        weights, biases = ([p[f"adaptor.expert.{k}.{part}"] for k in range(self.experts)] for part in ("weight", "bias"))
        if self.adaptor_rate:
            outputs = torch.stack([F.dropout(x, self.adaptor_rate) @ weight for weight in weights], 1)
        else:
            outputs = (x @ torch.cat(weights, 1)).unflatten(1, (self.experts, -1))
        shifts = torch.stack([bias @ weight for bias, weight in zip(biases, weights)])
        return (gate.unsqueeze(1) @ outputs).squeeze(1) - gate @ shifts


class UniSRecPretrain(UniSRec):
    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        own = self.inputs
        items, other = own["items"], own["augmented.items"]
        second = own["augmented.replaced"] * self.items
        self.rows = torch.cat([items, self.targets + 1, other + second]) - 1
        # The index of the item vector at each position of the padded sequences: those of the batch, then the augmented ones.
        first = torch.arange(len(items))
        then = torch.arange(len(other)) + len(items) + len(self.targets)
        offsets = torch.cat([own["offsets"], own["augmented.offsets"][1:] + len(items)])
        self.lengths, self.indices = offsets.diff(), pad(torch.cat([first, then]), offsets)
        same = self.targets[:, None] == self.targets
        left_out = {"exclude": same & ~torch.eye(len(same), dtype=torch.bool), "keep": torch.zeros_like(same)}
        self.left_out = left_out[self.own["false_negatives"]]
        self.diagonal = torch.arange(len(same))

    def contrast(self, anchors, vectors):
        logits = (anchors @ vectors.T / self.tau).masked_fill(self.left_out, -torch.inf)
        return F.cross_entropy(logits, self.diagonal)

    def loss(self):
        adapted = self.adapt(self.rows)
        tokens, count = len(self.inputs["items"]), len(self.targets)
        h, other = self.encode(F.embedding(self.indices, adapted), self.lengths).chunk(2)
        anchors, z = unit(h), unit(adapted[tokens : tokens + count])
        return self.contrast(anchors, z) + self.own["lambda"] * self.contrast(anchors, unit(other))


class UniSRecFinetune(UniSRec):
    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        items = self.inputs["items"]
        self.histories, self.lengths = self.padded("items", "offsets")
        self.rows = torch.cat([items - 1, torch.arange(self.items)])
        self.indices = pad(torch.arange(len(items)), self.inputs["offsets"])

    def loss(self):
        z, ids = self.adapt(self.rows), self.p["id_embedding"]
        h = self.encode(F.embedding(self.indices, z) + F.embedding(self.histories, ids), self.lengths)
        candidates = z[len(self.inputs["items"]) :] + ids[1:]
        return F.cross_entropy(unit(h) @ unit(candidates).T / self.tau, self.targets)


class MvRnn(Step):
    """MV-RNN with an `nn.LSTM` over packed sequences."""

    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        own, offsets = self.inputs, self.inputs["offsets"]
        self.means = [unit(own[f"means.{m}"]) for m in MODALITIES]
        rows = torch.cat([own["items"], own["targets"], own["negatives"]]) - 1
        self.distinct, uses = rows.unique(return_inverse=True)
        self.means = [means[self.distinct] for means in self.means]
        _, self.targets, self.negatives = uses.chunk(3)
        lengths = offsets.diff()
        wide = self.p["cell.hidden.weight"].shape[0]
        self.lstm = torch.nn.LSTM(wide, wide, batch_first=True)
        with torch.no_grad():
            self.lstm.weight_ih_l0.copy_(self.p.pop("cell.input.weight").T)
            self.lstm.weight_hh_l0.copy_(self.p.pop("cell.hidden.weight").T)
            self.lstm.bias_ih_l0.copy_(self.p.pop("cell.bias"))
            self.lstm.bias_hh_l0.zero_()
        self.lstm.bias_hh_l0.requires_grad_(False)
        packed = torch.nn.utils.rnn.pack_padded_sequence(pad(uses[: len(own["items"])], offsets), lengths, True, False)
        indices = torch.nn.utils.rnn.pack_padded_sequence(pad(torch.arange(len(own["items"])), offsets), lengths, True, False)
        self.order, self.sizes = packed.data, packed.batch_sizes
        self.targets, self.negatives = self.targets[indices.data], self.negatives[indices.data]

    def parameters(self):
        return super().parameters() + [value for value in self.lstm.parameters() if value.requires_grad]

    def loss(self):
        p = self.p
        views = [means @ p[f"projection.{m}.weight"] for m, means in zip(MODALITIES, self.means)]
        table = torch.cat([F.embedding(self.distinct, p["item_embedding"]), *views], 1)
        inputs = torch.nn.utils.rnn.PackedSequence(F.embedding(self.order, table), self.sizes)
        states = self.lstm(inputs)[0].data
        difference = F.embedding(self.targets, table) - F.embedding(self.negatives, table)
        return F.softplus(-(states * difference).sum(-1)).mean()


class Masr(Step):
    """MASR: pre-norm layers without a causal mask; the memory banks are tensors that are written by index."""

    def __init__(self, path, dropout):
        super().__init__(path, dropout)
        own = self.inputs
        self.items_, self.lengths = self.padded("items", "offsets")
        self.rows = (self.items_ - 1).clamp_min(0)
        n, size = self.transformer["max_sequence_length"], self.rows.shape[1]
        real = torch.arange(size) < self.lengths[:, None]
        self.real = real[:, None, None]
        self.indices = torch.where(real, n - self.lengths[:, None] + torch.arange(size), 0)
        labels = own["labels"]
        everywhere = (torch.arange(len(real))[:, None] * size + torch.arange(size))[real]
        self.hidden, self.labels = everywhere[labels > 0], labels[labels > 0]
        is_head = own["is_head"].bool()
        self.head_states = is_head[self.labels - 1].nonzero().squeeze(1)
        self.tail_states = (~is_head[self.labels - 1]).nonzero().squeeze(1)
        self.heads = self.transformer["heads"]
        self.banks = {name[7:]: value for name, value in own.items() if name.startswith("buffer.")}
        # The index of each tail state among the states of the same item in this step.
        items = self.labels[self.tail_states]
        order = items.argsort(stable=True)
        starts = torch.cat([torch.ones(1, dtype=torch.bool), items[order].diff() > 0]).nonzero().squeeze(1)
        runs = torch.arange(len(items)) - starts.repeat_interleave(torch.cat([starts, torch.tensor([len(items)])]).diff())
        self.repeat = torch.empty_like(runs)
        self.repeat[order] = runs

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def encode(self):
        p = self.p
        table = torch.cat([p["item_embedding"], p["mask_embedding"][None]])
        x = self.drop(F.embedding(self.rows, table) + F.embedding(self.indices, p["position"]))
        for layer in range(self.transformer["layers"]):
            name = f"layer.{layer}"
            normed = self.norm(x, f"{name}.attention.norm")
            query, key, value = (self.split(self.linear(normed, f"{name}.attention.{part}")) for part in ("query", "key", "value"))
            context = F.scaled_dot_product_attention(query, key, value, self.real, self.rate)
            x = x + self.drop(self.linear(context.transpose(1, 2).flatten(-2), f"{name}.attention.output"))
            inner = F.gelu(self.linear(self.norm(x, f"{name}.feed_forward.norm"), f"{name}.feed_forward.up"))
            x = self.drop(x + self.drop(self.linear(self.drop(inner), f"{name}.feed_forward.down")))
        return x.flatten(0, 1).index_select(0, self.hidden)

    @torch.no_grad()
    def entries(self):
        """Returns the states in the bank of tail items and their items, counted from 0."""
        slots = self.own["tail_slots"]
        held = torch.arange(slots) < self.banks["tail_bank.written"][:, None]
        return self.banks["tail_bank.slots"][held], held.nonzero()[:, 0]

    @torch.no_grad()
    def copies(self, x, states, items):
        own, asked = self.own, unit(x)
        scores, near = (asked @ states.T).topk(own["top_tail"])
        tail = (torch.softmax(scores, -1).unsqueeze(1) @ self.p["item_embedding"][items[near]]).squeeze(1)
        centroids = self.banks["centroid.features"][self.banks["centroid.filled"] > 0]
        scores, near = (asked @ centroids.T).topk(own["top_head"])
        return tail, (scores.unsqueeze(-1) * centroids[near]).mean(1)

    def memory(self, x, states, items):
        """Returns the loss that pulls states towards those of their own tail item and pushes them away from those of the negatives."""
        own, labels = self.own, self.labels[self.tail_states] - 1
        anchors = unit(x.index_select(0, self.tail_states))
        sums = torch.zeros(self.items, states.shape[1]).index_add(0, items, states)
        counts = torch.bincount(items, minlength=self.items)
        pull = counts[labels].sum() - (anchors * sums[labels]).sum()
        chosen = torch.zeros(self.items, dtype=torch.bool)
        chosen[self.inputs["negatives"] - 1] = True
        scores = anchors @ states[chosen[items]].T
        return (pull + (scores * (scores > own["margin"])).sum()) / len(anchors)

    def loss(self):
        p = self.p
        x = self.encode()
        self.states = x.detach()
        states, items = self.entries()
        tail, head = self.copies(x.detach(), states, items)
        alpha = torch.sigmoid(self.linear(torch.cat([x, head], 1), "gate.copy"))
        # The second gate needs sums over all items of logit times weight, which are computed without the logits.
        mixed, rest = p["gate.tail.weight"].chunk(2)
        along = lambda x, name, weight: x @ (p[f"output.{name}.weight"] @ weight) + p[f"output.{name}.bias"] @ weight
        argument = (1 - alpha) * along(head, "head", mixed) + alpha * along(x, "sequence", mixed) + along(tail, "tail", rest)
        beta = torch.sigmoid(argument + p["gate.tail.bias"])
        shares = [beta * (1 - alpha), beta * alpha, 1 - beta]
        rows = torch.cat([shares[0] * head, shares[1] * x, shares[2] * tail, *shares], 1)
        names = ("head", "sequence", "tail")
        maps = torch.cat([p[f"output.{name}.weight"] for name in names] + [p[f"output.{name}.bias"][None] for name in names])
        return F.cross_entropy(rows @ maps, self.labels - 1) + self.own["omega"] * self.memory(x, states, items)

    @torch.no_grad()
    def after_step(self):
        own, banks, states = self.own, self.banks, unit(self.states)
        size, cursor = own["head_bank"], banks["head_bank.cursor"]
        indices = (cursor + torch.arange(len(self.head_states))) % size
        met = self.labels[self.head_states]
        banks["head_bank.features"][indices] = states[self.head_states]
        banks["head_bank.items"][indices] = met
        cursor.add_(len(indices)).remainder_(size)
        items = self.labels[self.tail_states] - 1
        slot = (banks["tail_bank.written"][items] + self.repeat) % own["tail_slots"]
        banks["tail_bank.slots"][items, slot] = states[self.tail_states]
        banks["tail_bank.written"] += torch.bincount(items, minlength=self.items)
        ring, features = banks["head_bank.items"], banks["head_bank.features"]
        sums = torch.zeros(self.items + 1, features.shape[1]).index_add(0, ring, features)[1:]
        counts = torch.bincount(ring, minlength=self.items + 1)[1:]
        met = met.unique() - 1
        banks["centroid.features"][met] = sums[met] / counts[met].clamp_min(1)[:, None]
        banks["centroid.filled"][met] = 1
