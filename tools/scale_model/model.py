"""Models the step time and the memory of training on 1 to 64 machines, from steps and messages that were measured on one machine.

    RAYON_NUM_THREADS=1 mpirun -n 2 mp4sr-bench group --stage finetune --items 60000 --features f16 >> measured.jsonl
    python3 tools/scale_model/model.py tools/scale_model/measured.jsonl

Compute time is measured as processor time per step and process, which is least affected by other load on the machine. MPI uses busy
waiting, so it includes the time in which a process waits for the other one. It is fitted to one process and to two processes, at both
numbers of items; messages follow the alpha-beta cost model with the formulas below. The first table compares the model with all measured
points, the second one compares the messages, and the third one contains the predictions of the model.
"""

import itertools
import json
import sys

# The sizes of the measured model, which are the defaults of `mp4sr-bench group`.
MODALITIES, WIDTH, BATCH = 2, 64, 1024
FLOAT = 4

# The assumed cost of a network: seconds per message, and bytes per second.
NETWORKS = {"1 Gbit/s": (50e-6, 1e9 / 8), "10 Gbit/s": (20e-6, 10e9 / 8), "100 Gbit/s": (5e-6, 100e9 / 8)}
MACHINES = [1, 2, 4, 8, 16, 32, 64]
ITEMS = [60_000, 1_000_000, 10_000_000]


def all_gather(n, total, alpha, beta):
    """Returns the seconds of a ring all-gather: n - 1 messages, each with the block of one process.

    `total` is the size of all blocks in bytes.
    """
    return (n - 1) * (alpha + total / n / beta)


def exchange(n, total, alpha, beta):
    """Returns the seconds of a pairwise exchange, in which every process sends each other process its part.

    `total` is the size in bytes of the parts that one process holds.
    """
    return (n - 1) * (alpha + total / n / beta)


def all_reduce(n, total, alpha, beta):
    """Returns the seconds of `ProcessGroup::all_reduce`: an exchange, whose parts are added in rank order, and an all-gather."""
    return exchange(n, total, alpha, beta) + all_gather(n, total, alpha, beta)


def messages(stage, n, shared, rows, alpha, beta):
    """Returns the seconds that the messages of a step take.

    `shared` is the number of parameters that all processes hold, `rows` the number of id embeddings that a process fetches.
    """
    if n == 1:
        return 0.0
    seconds = all_reduce(n, shared * FLOAT, alpha, beta) + 2 * all_gather(n, 16 * n, alpha, beta)
    if stage == "pretrain":
        # The views and the target of each modality, and the gradients of all of them.
        block = BATCH * (MODALITIES + 1) * WIDTH * FLOAT
        seconds += MODALITIES * (all_gather(n, block, alpha, beta) + exchange(n, block, alpha, beta))
    else:
        queries = BATCH * MODALITIES * WIDTH * FLOAT
        seconds += all_gather(n, queries, alpha, beta) + exchange(n, queries, alpha, beta)
        sums = BATCH * FLOAT
        seconds += all_gather(n, n * sums, alpha, beta) + all_reduce(n, sums, alpha, beta)
        seconds += 2 * exchange(n, rows * WIDTH * FLOAT, alpha, beta)
    return seconds


def features_mib(items):
    """Returns the MiB of the features that `mp4sr-bench group --features f16` generates and holds: 6.5 rows of 768 values per item."""
    return items * 6.5 * 768 * 2 / 2**20


def ids_mib(items):
    """Returns the MiB of the table of id embeddings, which pre-training holds but does not change."""
    return items * WIDTH * FLOAT / 2**20


def least_squares(rows, found):
    """Solves a least-squares problem by Gaussian elimination of its normal equations."""
    size = len(rows[0])
    table = [
        [sum(row[i] * row[j] for row in rows) for j in range(size)] + [sum(row[i] * y for row, y in zip(rows, found))]
        for i in range(size)
    ]
    for i in range(size):
        table[i] = [value / table[i][i] for value in table[i]]
        for j in range(size):
            if j != i:
                table[j] = [a - table[j][i] * b for a, b in zip(table[j], table[i])]
    return [row[size] for row in table]


def relative_fit(rows, found):
    """Returns the non-negative coefficients with the smallest sum of squared relative errors: the best over all subsets of columns."""
    size, best = len(rows[0]), None
    for count in range(1, size + 1):
        for columns in itertools.combinations(range(size), count):
            scaled = [[row[column] / y for column in columns] for row, y in zip(rows, found)]
            solution = least_squares(scaled, [1.0] * len(found))
            if min(solution) < 0:
                continue
            error = sum((sum(a * b for a, b in zip(row, solution)) - 1) ** 2 for row in scaled)
            if best is None or error < best[0]:
                best = (error, [dict(zip(columns, solution)).get(column, 0.0) for column in range(size)])
    return best[1]


def fitted_network(lines):
    """Returns alpha and beta of the measured machine: the latency of its smallest message and the bandwidth of its largest one."""
    smallest, largest = lines[0], lines[-1]
    n = smallest["processes"]
    alpha = smallest["all_reduce_us"] * 1e-6 / (2 * (n - 1))
    beta = 2 * (n - 1) / n * largest["bytes"] / (largest["all_reduce_us"] * 1e-6)
    return alpha, beta


class Model:
    """A cost model of a step, with parts that are divided among processes and parts that are not: time in seconds, memory in MiB."""

    def __init__(self, steps):
        self.steps = steps

    def least(self, stage, processes, threads, items):
        found = [
            step
            for step in self.steps
            if (step["stage"], step["processes"], step["threads"], step["items"]) == (stage, processes, threads, items)
        ]
        return min(found, key=lambda step: sum(step["processor_ms"]), default=None)

    @staticmethod
    def compute(step):
        """Returns the seconds of processor time per process, including the copying of messages."""
        return sum(step["processor_ms"]) / step["processes"] / 1e3

    def fit(self, stage, items):
        """Fits the model to one process with two threads and to two processes with one thread each, so that both cores are always busy."""
        points = [(n, count, self.least(stage, n, threads, count)) for n, threads in [(1, 2), (2, 1)] for count in items]
        fixed, divided, per_item = relative_fit(
            [[1.0, 1 / n, count / n] for n, count, _ in points], [self.compute(step) for _, _, step in points]
        )
        return {"fixed": fixed, "divided": divided, "item": per_item, "most_items": items[-1], "mib": self.fit_memory(stage)}

    def fit_memory(self, stage):
        """Fits the MiB without features by least squares over all points: a fixed part, a divided part and a divided part per item.

        Pre-training changes nothing per item, so its part per item is the table of id embeddings and is not fitted.
        """
        points = [step for step in self.steps if step["stage"] == stage]
        rows = [[1.0, 1 / step["processes"], step["items"] / step["processes"]] for step in points]
        found = [sum(step["peak_mib"]) / step["processes"] - features_mib(step["items"]) for step in points]
        if stage == "pretrain":
            others = [mib - ids_mib(step["items"]) / step["processes"] for mib, step in zip(found, points)]
            return least_squares([row[:2] for row in rows], others) + [ids_mib(1)]
        return least_squares(rows, found)

    def seconds(self, fit, stage, n, items):
        # A pre-training step reads only the items of the batch, so its time hardly grows once few of them are repeated.
        items = min(items, fit["most_items"]) if stage == "pretrain" else items
        return fit["fixed"] + (fit["divided"] + fit["item"] * items) / n

    def memory(self, fit, n, items):
        """Returns the memory without features, in MiB."""
        return sum(a * b for a, b in zip([1.0, 1 / n, items / n], fit["mib"]))


def main():
    lines = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8") if line.strip().startswith("{")]
    model = Model([line for line in lines if line["bench"] == "group"])
    alpha, beta = fitted_network([line for line in lines if line["bench"] == "messages" and line["processes"] == 2])
    items = sorted({step["items"] for step in model.steps})
    large = items[-1]
    shared = {}
    for stage in ["pretrain", "finetune"]:
        sent = model.least(stage, 2, 1, large)["sent_per_step"]["shared gradients"]["bytes"]
        # Of two processes, each sends half of the gradients in the exchange and half in the all-gather.
        shared[stage] = sent / FLOAT
    print(f"Measured messages: latency {alpha * 1e6:.0f} us, bandwidth {beta / 1e9:.2f} GB/s.\n")
    print("| step | items | processes | processor time per process, ms, run here | modelled | error | MiB per process without features, run here | modelled |")
    print("|---|---|---|---|---|---|---|---|")
    fits = {stage: model.fit(stage, items) for stage in shared}
    for stage, fit in fits.items():
        for step_items in items:
            for n in [1, 2, 4]:
                step = model.least(stage, n, 2 if n == 1 else 1, step_items)
                if step is None:
                    continue
                found, modelled = model.compute(step), model.seconds(fit, stage, n, step_items)
                mib = sum(step["peak_mib"]) / n - features_mib(step_items)
                memory = model.memory(fit, n, step_items)
                off = f"{modelled / found - 1:+.0%}" + ("" if n > 2 else ", fitted")
                print(f"| {stage} | {step_items:,} | {n} | {found * 1e3:.0f} | {modelled * 1e3:.0f} | {off} | {mib:.0f} | {memory:.0f} |")
    print()
    print("| step | items | processes | ms per step in messages, run here, with waiting | transfer alone, modelled |")
    print("|---|---|---|---|---|")
    for stage in fits:
        for step_items in items:
            for n in [2, 4]:
                runs = [
                    sum(kind["ms"] for kind in step["sent_per_step"].values())
                    for step in model.steps
                    if (step["stage"], step["items"], step["processes"]) == (stage, step_items, n)
                ]
                tokens = model.least(stage, n, 1, step_items)["tokens"]
                transfer = messages(stage, n, shared[stage], tokens / n, alpha, beta)
                found = ", ".join(f"{run:.0f}" for run in runs)
                print(f"| {stage} | {step_items:,} | {n} | {found} | {transfer * 1e3:.1f} |")
    print()
    print("| step | items | machines | MiB per process without features | " + " | ".join(f"{name}, ms" for name in NETWORKS) + " | |")
    print("|---|---|---|---|" + "---|" * len(NETWORKS) + "---|")
    for stage, fit in fits.items():
        tokens = model.least(stage, 1, 1, large)["tokens"]
        for count in ITEMS:
            for n in MACHINES:
                memory = model.memory(fit, n, count)
                # Every machine is assumed to have two cores, like the measured one, which share the processor time of a process.
                times = [
                    model.seconds(fit, stage, n, count) / 2 + messages(stage, n, shared[stage], tokens / n, *network)
                    for network in NETWORKS.values()
                ]
                walls = [step["median_ms"] for step in model.steps if (step["stage"], step["processes"], step["threads"], step["items"]) == (stage, n, 2, count)]
                here = f"modelled; run here: {min(walls):,.0f} to {max(walls):,.0f}" if walls else "modelled"
                cells = " | ".join(f"{time * 1e3:,.0f}" for time in times)
                print(f"| {stage} | {count:,} | {n} | {memory:,.0f} | {cells} | {here} |")


main()
