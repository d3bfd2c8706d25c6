#!/usr/bin/env python3
"""Times a training step of every baseline in mp4sr and in PyTorch in turn (A B A B), on the same inputs.

For every step, `mp4sr-bench baseline` writes its workload once, and the losses of the first three steps without dropout are compared.
Both programs then run in turn, --rounds times, with dropout and two threads each. The peer is eager PyTorch or torch.compile, whichever
is faster (--eager disables torch.compile). The times exclude the construction of the batch and the sampling of negatives, masks and views;
`with drawing` is the time of mp4sr that includes both. The benchmark prints one JSON object per step, then a table. With --growth, it
prints instead how the times of both programs grow with users, items and events. Run it on an idle machine.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = ["lightgcn", "sine", "fdsa", "cl4srec", "difsr", "s3rec", "unisrec-pretrain", "unisrec-finetune", "grcn", "dualgnn", "mvrnn",
          "clcrec", "masr", "sasrec"]
SIZES = {"users": 6040, "items": 3400, "events": 30}
QUICK = {"users": 600, "items": 500, "events": 10}
TOLERANCE = 1e-4


def line_of(command, threads):
    environment = dict(os.environ, RAYON_NUM_THREADS=str(threads))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def log(text):
    print(text, file=sys.stderr, flush=True)


class Comparison:
    """A comparison of both programs on one workload."""

    def __init__(self, a, model, sizes, folder):
        self.a, self.model, self.workload = a, model, os.path.join(folder, f"{model}.safetensors")
        self.flags = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]

    def ours(self, *more):
        return line_of([self.a.ours, "baseline", "--model", self.model, *self.flags, *more], self.a.threads)

    def peer(self, *more):
        command = [sys.executable, os.path.join(HERE, "peer.py"), "--model", self.model, "--workload", self.workload]
        return line_of([*command, "--threads", str(self.a.threads), *more], self.a.threads)

    def check_losses(self):
        """Returns the largest relative difference between the first three losses of the two programs."""
        exact = ["--no-dropout", "--steps", "3", "--warmup", "0"]
        ours, peer = self.ours(*exact, "--dump", self.workload)["loss"], self.peer(*exact)["loss"]
        difference = max(abs(x - y) / abs(x) for x, y in zip(ours, peer))
        if difference > TOLERANCE:
            raise RuntimeError(f"{self.model}: the losses differ by {difference:.1e}: {ours} and {peer}")
        return difference

    def compiled_is_faster(self, eager):
        """Returns whether torch.compile is faster than eager mode; false if it fails."""
        try:
            compiled = self.peer("--compile", "--steps", "5")["median_ms"]
        except RuntimeError as error:
            log(f"{self.model}: torch.compile failed: {str(error).strip().splitlines()[-1]}")
            return False
        log(f"{self.model}: eager {eager} ms, compiled {compiled} ms")
        return compiled < eager


def compare(a, model, sizes, folder):
    both = Comparison(a, model, sizes, folder)
    difference = both.check_losses()
    steps = ["--steps", str(a.steps)]
    compiled = not a.eager and both.compiled_is_faster(both.peer("--steps", "5")["median_ms"])
    mode, runs = ["--compile"] if compiled else [], {"ours": [], "peer": []}
    for turn in range(a.rounds):
        runs["peer"].append(both.peer(*steps, *mode))
        runs["ours"].append(both.ours(*steps))
        log(f"{model} round {turn + 1}: ours {runs['ours'][-1]['median_ms']} ms, peer {runs['peer'][-1]['median_ms']} ms")
    os.remove(both.workload)
    middle = {name: statistics.median(run["median_ms"] for run in all_) for name, all_ in runs.items()}
    ratios = [peer["median_ms"] / ours["median_ms"] for ours, peer in zip(runs["ours"], runs["peer"])]
    first = runs["ours"][0]
    return {
        "model": model, "ratio": round(middle["peer"] / middle["ours"], 2), "ratios": [round(min(ratios), 2), round(max(ratios), 2)],
        "ours_ms": middle["ours"], "with_drawing_ms": statistics.median(run["with_drawing_ms"] for run in runs["ours"]),
        "peer_ms": middle["peer"], "peer": "compiled" if compiled else "eager",
        "processor_ms": [statistics.median(run["processor_ms"] or 0.0 for run in runs[name]) for name in ("ours", "peer")],
        "ours_range_ms": [min(r["min_ms"] for r in runs["ours"]), max(r["max_ms"] for r in runs["ours"])],
        "peer_range_ms": [min(r["min_ms"] for r in runs["peer"]), max(r["max_ms"] for r in runs["peer"])],
        "ours_peak_mib": max(r["peak_mib"] for r in runs["ours"]), "peer_peak_mib": max(r["peak_mib"] for r in runs["peer"]),
        "largest_loss_difference": float(f"{difference:.1e}"), "batch": first["batch"], "tokens": first["tokens"],
        "users": first["users"], "items": first["items"], "events": first["events"], "threads": a.threads, "rounds": a.rounds,
        "parts_ms": first["parts_ms"], "torch": runs["peer"][0]["torch"], "python": runs["peer"][0]["python"],
    }  # fmt: skip


def machine():
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return f"{names[0]}, {len(names)} cores"
    except (OSError, IndexError):
        return platform.machine()


def table(results):
    """Yields the lines of a Markdown table of the comparisons, with the machine, the versions and the sizes."""
    first = results[0]
    yield f"{machine()}; {first['threads']} threads each; PyTorch {first['torch']}, Python {first['python']}; {first['rounds']} rounds in turn."
    yield f"{first['users']} users, {first['items']} items, {first['events']} events."
    yield ""
    yield "| step | ours, ms | with drawing | PyTorch, ms | | ratio | of single rounds | ours, MiB | PyTorch, MiB |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for r in results:
        yield (f"| {r['model']} | {r['ours_ms']:.1f} | {r['with_drawing_ms']:.1f} | {r['peer_ms']:.1f} | {r['peer']} | {r['ratio']:.1f} | "
               f"{r['ratios'][0]:.1f} to {r['ratios'][1]:.1f} | {r['ours_peak_mib']} | {r['peer_peak_mib']} |")  # fmt: skip


def growth(a, models, sizes, folder):
    """Prints the milliseconds of both programs at one, two and four times each size."""
    print("| step | | " + " | ".join(f"{axis} x {factor}" for axis in sizes for factor in (1, 2, 4)) + " |")
    print("|---" * (2 + 3 * len(sizes)) + "|", flush=True)
    for model in models:
        ours, peer = [], []
        for axis in sizes:
            for factor in (1, 2, 4):
                both = Comparison(a, model, {**sizes, axis: sizes[axis] * factor}, folder)
                both.check_losses()
                found = [(both.peer("--steps", "5")["median_ms"], both.ours("--steps", "5")["median_ms"]) for _ in range(a.rounds)]
                peer.append(statistics.median(pair[0] for pair in found))
                ours.append(statistics.median(pair[1] for pair in found))
                os.remove(both.workload)
        for name, times in (("ours", ours), ("PyTorch", peer)):
            print(f"| {model} | {name} | " + " | ".join(f"{time:.1f}" for time in times) + " |", flush=True)


def main():
    q = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    q.add_argument("--ours", required=True, help="the program mp4sr-bench")
    q.add_argument("--model", action="append", choices=MODELS, help="a step to time; may be given several times; by default, all steps")
    q.add_argument("--threads", type=int, default=2)
    q.add_argument("--rounds", type=int)
    q.add_argument("--steps", type=int, default=10)
    q.add_argument("--eager", action="store_true", help="do not use torch.compile")
    q.add_argument("--quick", action="store_true", help="use a small workload and one round, without torch.compile")
    q.add_argument("--check", action="store_true", help="compare only the losses")
    q.add_argument("--growth", action="store_true", help="time eager steps with one, two and four times the users, items and events")
    a = q.parse_args()
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    except ImportError as missing:
        print(f"skipped: `{sys.executable}` lacks the package `{missing.name}`; run `pip install torch safetensors numpy`")
        return
    a.rounds = a.rounds or (1 if a.quick else 3 if a.growth else 5)
    a.eager = a.eager or a.quick
    models, sizes, results, failed = a.model or MODELS, QUICK if a.quick else SIZES, [], []
    with tempfile.TemporaryDirectory() as folder:
        if a.growth:
            growth(a, models, sizes, folder)
            return
        for model in models:
            try:
                if a.check:
                    difference = Comparison(a, model, sizes, folder).check_losses()
                    print(f"{model}: the first three losses differ by at most {difference:.1e}", flush=True)
                    continue
                results.append(compare(a, model, sizes, folder))
                print(json.dumps(results[-1]), flush=True)
            except RuntimeError as error:
                log(str(error))
                failed.append(model)
    if results:
        print("\n".join(["", *table(results)]))
    if failed:
        sys.exit(f"failed to compare {', '.join(failed)}")


if __name__ == "__main__":
    main()
