"""Step time and memory of training on 1 to 64 machines, from steps and messages that were measured on one machine.

    RAYON_NUM_THREADS=1 mpirun -n 2 mp4sr-bench group --stage finetune >> measured.jsonl     # and so on, see docs/scale.md
    python3 tools/scale_model/model.py tools/scale_model/measured.jsonl

Compute is fitted to the measured steps of one process and of two; messages follow alpha-beta costs with the formulas below. The first table
holds the model against the measured points that it was not fitted to, the second one is the model alone.
"""

import json
import sys

# Sizes of the model that is measured: `mp4sr-bench group` with its defaults.
MODALITIES, WIDTH, BATCH = 2, 64, 1024
FLOAT = 4

# What a network is taken to cost: seconds per message, and bytes per second.
NETWORKS = {"1 Gbit/s": (50e-6, 1e9 / 8), "10 Gbit/s": (20e-6, 10e9 / 8), "100 Gbit/s": (5e-6, 100e9 / 8)}
MACHINES = [1, 2, 4, 8, 16, 32, 64]
ITEMS = [60_000, 1_000_000, 10_000_000]


def all_gather(n, total, alpha, beta):
    """Ring: n - 1 messages, each of the block of one process. `total` has the bytes of all blocks."""
    return (n - 1) * (alpha + total / n / beta)


def exchange(n, total, alpha, beta):
    """Pairwise: every process sends each other one its part. `total` has the bytes that a process holds for all."""
    return (n - 1) * (alpha + total / n / beta)


def all_reduce(n, total, alpha, beta):
    """As `ProcessGroup::all_reduce` does it: an exchange, whose parts are added in the order of ranks, and an all-gather."""
    return exchange(n, total, alpha, beta) + all_gather(n, total, alpha, beta)


def messages(stage, n, shared, rows, alpha, beta):
    """Seconds of a step's messages. `shared` counts the parameters that all processes have, `rows` the rows of ids that a process fetches."""
    if n == 1:
        return 0.0
    seconds = all_reduce(n, shared * FLOAT, alpha, beta) + 2 * all_gather(n, 16 * n, alpha, beta)
    if stage == "pretrain":
        # Views and target of each modality, and the gradients of all.
        block = BATCH * (MODALITIES + 1) * WIDTH * FLOAT
        seconds += MODALITIES * (all_gather(n, block, alpha, beta) + exchange(n, block, alpha, beta))
    else:
        queries = BATCH * MODALITIES * WIDTH * FLOAT
        seconds += all_gather(n, queries, alpha, beta) + exchange(n, queries, alpha, beta)
        sums = BATCH * FLOAT
        seconds += all_gather(n, n * sums, alpha, beta) + all_reduce(n, sums, alpha, beta)
        seconds += 2 * exchange(n, rows * WIDTH * FLOAT, alpha, beta)
    return seconds


def fitted_network(lines):
    """alpha and beta of the machine itself, by the times of its messages: the latency of the smallest, the bandwidth of the largest."""
    smallest, largest = lines[0], lines[-1]
    n = smallest["processes"]
    alpha = smallest["all_reduce_us"] * 1e-6 / (2 * (n - 1))
    beta = 2 * (n - 1) / n * largest["bytes"] / (largest["all_reduce_us"] * 1e-6)
    return alpha, beta


class Model:
    """What of a step is divided among processes and what is not, in seconds, and the same of memory, in MiB."""

    def __init__(self, steps):
        self.steps = steps

    def least(self, stage, processes, threads, items):
        found = [
            step
            for step in self.steps
            if (step["stage"], step["processes"], step["threads"], step["items"]) == (stage, processes, threads, items)
        ]
        return min(found, key=lambda step: step["min_ms"], default=None)

    @staticmethod
    def compute(step):
        """A step's time without its messages."""
        return (step["min_ms"] - sum(of["ms"] for of in step["sent_per_step"].values())) / 1e3

    def fit(self, stage, small, large):
        """Fitted to one process at two numbers of items and to two processes at the larger one, all of one thread."""
        one, many = self.least(stage, 1, 1, small), self.least(stage, 1, 1, large)
        two = self.least(stage, 2, 1, large)
        per_item = (self.compute(many) - self.compute(one)) / (large - small)
        whole, half = self.compute(many), self.compute(two)
        fixed = min(max(2 * half - whole, 0.0), whole)
        divided = whole - fixed - per_item * large
        per_item_mib = (many["peak_mib"][0] - one["peak_mib"][0]) / (large - small)
        base_mib = one["peak_mib"][0] - per_item_mib * small
        return {"fixed": fixed, "divided": divided, "item": per_item, "base_mib": base_mib, "item_mib": per_item_mib}

    def seconds(self, fit, n, items, speed=1.0):
        return speed * (fit["fixed"] + (fit["divided"] + fit["item"] * items) / n)


def main():
    lines = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8") if line.strip().startswith("{")]
    model = Model([line for line in lines if line["bench"] == "group"])
    alpha, beta = fitted_network([line for line in lines if line["bench"] == "messages" and line["processes"] == 2])
    items = sorted({step["items"] for step in model.steps})
    small, large = items[0], items[-1]
    shared = {}
    for stage in ["pretrain", "finetune"]:
        sent = model.least(stage, 2, 1, large)["sent_per_step"]["shared gradients"]["bytes"]
        # Two processes send half of it in the exchange and half in the all-gather.
        shared[stage] = sent / FLOAT
    print(f"Messages here: {alpha * 1e6:.0f} us and {beta / 1e9:.2f} GB/s.\n")
    print("| step | items | processes x threads | run here, ms | modelled, ms | off |")
    print("|---|---|---|---|---|---|")
    fits = {stage: model.fit(stage, small, large) for stage in shared}
    for stage, fit in fits.items():
        for step_items in items:
            for n in [1, 2, 4]:
                step = model.least(stage, n, 1, step_items)
                if step is None:
                    continue
                # More processes than cores take turns.
                turns = max(1, n / 2)
                rows = step["tokens"] / n
                modelled = turns * model.seconds(fit, n, step_items) + messages(stage, n, shared[stage], rows, alpha, beta)
                off = modelled * 1e3 / step["min_ms"] - 1
                print(f"| {stage} | {step_items:,} | {n} x 1 | {step['min_ms']:.0f} | {modelled * 1e3:.0f} | {off:+.0%} |")
    print()
    print("| step | items | machines | MiB per process | " + " | ".join(f"{name}, ms" for name in NETWORKS) + " | |")
    print("|---|---|---|---|" + "---|" * len(NETWORKS) + "---|")
    for stage, fit in fits.items():
        # A machine is one of two threads, as here.
        speed = model.least(stage, 1, 2, large)["min_ms"] / model.least(stage, 1, 1, large)["min_ms"]
        tokens = model.least(stage, 1, 1, large)["tokens"]
        for count in ITEMS:
            for n in MACHINES:
                memory = fit["base_mib"] + fit["item_mib"] * count / (n if stage == "finetune" else 1)
                times = [
                    model.seconds(fit, n, count, speed) + messages(stage, n, shared[stage], tokens / n, *network)
                    for network in NETWORKS.values()
                ]
                here = "run here" if n == 1 and count in items else "modelled"
                cells = " | ".join(f"{time * 1e3:,.0f}" for time in times)
                print(f"| {stage} | {count:,} | {n} | {memory:,.0f} | {cells} | {here} |")


main()
