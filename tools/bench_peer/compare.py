#!/usr/bin/env python3
"""Times training steps and rankings of mp4sr and of PyTorch in turn (A B A B), on the same inputs.

For every comparison, the peer (`torch_step.py` in this folder) writes its workload once, and the losses of the first three steps without
dropout are compared. The programs then run in turn, --rounds times: mp4sr in f32 and, if the processor supports it, in bf16; the variant
`tuned` of the peer in f32, with torch.compile (--compile) and with autocast to bf16. The benchmark prints one JSON object per comparison,
then a table. A ratio in f32 is relative to the faster of eager and compiled `tuned`. Run it on an idle machine: on a busy one, PyTorch's
threads wait for each other, which makes mp4sr look faster than it is.
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
# The stage, the variant of the peer, further arguments, and whether --quick skips the comparison.
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


def log(text):
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
    turns = {"peer": lambda: peer(*steps), "ours": ours}
    if variant == "tuned":
        if a.compile:
            turns["peer_compiled"] = lambda: peer("--compile")
        if a.has_bf16:
            turns["ours_bf16"] = lambda: ours("--precision", "bf16")
            turns["peer_bf16"] = lambda: peer("--dtype", "bf16")
    runs = {name: [] for name in turns}
    for turn in range(a.rounds):
        for name, run in turns.items():
            runs[name].append(run())
        times = ", ".join(f"{name} {run[-1]['median_ms']} ms" for name, run in runs.items())
        log(f"{stage} {variant} {' '.join(more)} round {turn + 1}: {times}")
    middle = {name: statistics.median(run["median_ms"] for run in all_) for name, all_ in runs.items()}
    best = min(middle[name] for name in ("peer", "peer_compiled") if name in middle)
    result = {
        "stage": stage, "peer": variant, "ratio": round(best / middle["ours"], 2),
        "items": runs["peer"][0]["shapes"]["items"], "threads": a.threads, "rounds": a.rounds,
        "ours_peak_mib": max(r["peak_mib"] for r in runs["ours"]),
        "peer_peak_mib": max(r["peak_rss_mb"] for r in runs["peer"]),
        "largest_loss_difference": difference, "torch": runs["peer"][0]["torch"],
    }
    for name, all_ in runs.items():
        result[f"{name}_ms"] = middle[name]
        result[f"{name}_range_ms"] = [min(r["min_ms"] for r in all_), max(r["max_ms"] for r in all_)]
    if "ours_bf16" in middle:
        result["bf16_to_peer_f32"] = round(best / middle["ours_bf16"], 2)
        result["bf16_to_peer_bf16"] = round(middle["peer_bf16"] / middle["ours_bf16"], 2)
    return result


def torch_ranking(items, users, width=128, batch=256):
    """Returns the users per second of a matrix product with a top-20 selection, as the median of three runs after a warm-up."""
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


def table(results):
    columns = ["stage", "items", "peer", "ours_ms", "ours_bf16_ms", "peer_ms", "peer_compiled_ms", "peer_bf16_ms", "ratio",
               "bf16_to_peer_f32", "bf16_to_peer_bf16"]
    cells = [columns] + [[str(r.get(column, "")) for column in columns] for r in results if r["stage"] != "rank"]
    columns = ["stage", "items", "ours_users_per_s", "peer_users_per_s", "ratio"]
    ranks = [columns] + [[str(r.get(column, "")) for column in columns] for r in results if r["stage"] == "rank"]
    for rows in (cells, ranks):
        if len(rows) > 1:
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            print()
            for row in rows:
                print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def main():
    q = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    q.add_argument("--ours", required=True, help="the program mp4sr-bench")
    q.add_argument("--peer", default=os.path.join(HERE, "torch_step.py"))
    q.add_argument("--threads", type=int, default=2)
    q.add_argument("--rounds", type=int, default=5)
    q.add_argument("--compile", action="store_true", help="also time `tuned` with torch.compile, which takes minutes")
    q.add_argument("--stages", default="pretrain,finetune,rank", help="the comparisons to run, separated by commas")
    q.add_argument("--quick", action="store_true", help="run only the steps of `tuned` with the default size")
    a = q.parse_args()
    try:
        import torch
        import safetensors  # noqa: F401
    except ImportError as missing:
        print(f"skipped: `{sys.executable}` lacks the package `{missing.name}`; run `pip install torch safetensors numpy`")
        return
    torch.set_num_threads(a.threads)
    a.has_bf16 = subprocess.run([a.ours, "step", "--items", "100", "--batch", "4", "--steps", "1", "--precision", "bf16"],
                                capture_output=True).returncode == 0
    results, stages = [], a.stages.split(",")
    for stage, variant, more, slow in STEPS:
        if stage in stages and not (a.quick and slow):
            with tempfile.TemporaryDirectory() as folder:
                results.append(compare_steps(a, stage, variant, more, folder))
    if "rank" in stages and not a.quick:
        results += [compare_rankings(a, items, users) for items, users in RANKINGS]
    for result in results:
        print(json.dumps(result))
    table(results)


if __name__ == "__main__":
    main()
