#!/usr/bin/env python3
"""Times training steps and rankings of mp4sr and of PyTorch in turn (A B A B), on the same numbers.

For every comparison the peer (`torch_step.py`, beside this file) writes its workload once; then both programs run in turn,
--rounds times. Losses of the first three steps without dropout are compared first. The last lines are one JSON object a
comparison: {"stage": ..., "peer": ..., "ratio": peer's median of medians / ours, ...}. Run it on an idle machine: PyTorch's
threads wait for each other where they are disturbed, which flatters us.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
# Stage, variant of the peer, further arguments, whether the comparison is left out by --quick.
STEPS = [
    ("pretrain", "tuned", [], False),
    ("finetune", "tuned", [], False),
    ("finetune", "tuned", ["--items", "60000"], True),
    ("pretrain", "released", [], True),
    ("finetune", "released", [], True),
]
RANKINGS = [(8_000, 4096), (60_000, 4096), (1_000_000, 512)]


def line_of(command, threads):
    environment = dict(os.environ, RAYON_NUM_THREADS=str(threads))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def say(text):
    print(text, file=sys.stderr, flush=True)


def compare_steps(a, stage, variant, more, folder):
    def peer(*extra):
        script = [sys.executable, a.peer, "--stage", stage, "--variant", variant, "--threads", str(a.threads)]
        return line_of([*script, *more, *extra], a.threads)

    def ours(*extra):
        return line_of([a.ours, "step", "--stage", stage, "--workload", workload, *extra], a.threads)

    peer("--dump", folder, "--steps", "0", "--warmup", "0")
    workload = os.path.join(folder, f"{stage}.safetensors")
    exact = ["--dropout", "0", "--steps", "3", "--warmup", "0"]
    losses = zip(peer(*exact)["loss"], ours(*exact)["loss"])
    difference = max(abs(x - y) / abs(x) for x, y in losses)
    assert difference < 1e-3, f"{stage}: the losses differ by {difference}"
    steps = ["--steps", "3", "--warmup", "1"] if variant == "released" else []
    runs = {"ours": [], "peer": []}
    for turn in range(a.rounds):
        runs["peer"].append(peer(*steps))
        runs["ours"].append(ours())
        say(f"{stage} {variant} {' '.join(more)} round {turn + 1}: peer {runs['peer'][-1]['median_ms']} ms, "
            f"ours {runs['ours'][-1]['median_ms']} ms")
    middle = {name: statistics.median(run["median_ms"] for run in all_) for name, all_ in runs.items()}
    return {
        "stage": stage, "peer": variant, "ratio": round(middle["peer"] / middle["ours"], 2),
        "items": runs["peer"][0]["shapes"]["items"], "dtype": "f32", "threads": a.threads, "rounds": a.rounds,
        "ours_ms": middle["ours"], "peer_ms": middle["peer"],
        "ours_range_ms": [min(r["min_ms"] for r in runs["ours"]), max(r["max_ms"] for r in runs["ours"])],
        "peer_range_ms": [min(r["min_ms"] for r in runs["peer"]), max(r["max_ms"] for r in runs["peer"])],
        "ours_peak_mib": max(r["peak_mib"] for r in runs["ours"]),
        "peer_peak_mib": max(r["peak_rss_mb"] for r in runs["peer"]),
        "largest_loss_difference": difference, "torch": runs["peer"][0]["torch"],
    }


def torch_ranking(items, users, width=128, batch=256):
    """Users a second of a matrix product and its 20 best, the median of three after a warm-up."""
    import torch

    matrix, vectors = torch.rand(items, width) - 0.5, torch.rand(users, width) - 0.5
    times = []
    for _ in range(4):
        began = time.perf_counter()
        for block in vectors.split(batch):
            (block @ matrix.T).topk(20)
        times.append(time.perf_counter() - began)
    return users / statistics.median(times[1:])


def compare_rankings(a, items, users):
    ours, peer = [], []
    for _ in range(a.rounds):
        peer.append(torch_ranking(items, users))
        command = [a.ours, "rank", "--items", str(items), "--users", str(users), "--rounds", "3"]
        ours.append(line_of(command, a.threads))
    middle = statistics.median(run["users_per_s"] for run in ours)
    return {
        "stage": "rank", "peer": "torch matmul + topk", "ratio": round(middle / statistics.median(peer), 2),
        "items": items, "width": 128, "threads": a.threads, "rounds": a.rounds,
        "ours_users_per_s": middle, "peer_users_per_s": round(statistics.median(peer)),
        "ours_peak_mib": max(run["peak_mib"] for run in ours),
    }


def main():
    q = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    q.add_argument("--ours", required=True, help="the program mp4sr-bench")
    q.add_argument("--peer", default=os.path.join(HERE, "torch_step.py"))
    q.add_argument("--threads", type=int, default=2)
    q.add_argument("--rounds", type=int, default=5)
    q.add_argument("--quick", action="store_true", help="the tuned steps of the default size alone")
    a = q.parse_args()
    try:
        import torch
        import safetensors  # noqa: F401
    except ImportError as missing:
        print(f"skipped: {sys.executable} lacks {missing.name}; pip install torch safetensors numpy")
        return
    torch.set_num_threads(a.threads)
    results = []
    for stage, variant, more, slow in STEPS:
        if not (a.quick and slow):
            with tempfile.TemporaryDirectory() as folder:
                results.append(compare_steps(a, stage, variant, more, folder))
    if not a.quick:
        results += [compare_rankings(a, items, users) for items, users in RANKINGS]
    for result in results:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
