#!/usr/bin/env python3
"""Times training steps of mp4sr and of PyTorch on one NVIDIA GPU in turn, on the same inputs.

For every comparison, the peer (`torch_step.py`, variant `tuned`) writes its workload once, and the losses of the first steps without
dropout are compared. Both programs then run in turn, --rounds times. The peer is timed in eager mode and, with --compile, also with
torch.compile. The benchmark prints one JSON object per comparison, then a table.
"""
import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import torch_step  # noqa: E402

# The two programs round differently in bf16.
TOLERANCE = {"f32": 1e-4, "bf16": 3e-2}


def ours(a, workload, stage, dtype, *more):
    command = [a.ours, "step", "--stage", stage, "--workload", workload, "--device", "cuda:0", "--precision", dtype, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peer(arguments, work, params, steps, warmup):
    """Returns the losses, and the milliseconds of the steps after the warm-up."""
    torch.manual_seed(1)
    model = torch_step.Tuned(work, params, arguments)
    losses, times = torch_step.run(model, arguments, warmup + steps)
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return losses, times[warmup:]


def compare(a, stage, items, batch, dtype):
    flags = ["--stage", stage, "--items", str(items), "--batch", str(batch), "--dtype", dtype, "--device", "cuda"]
    with tempfile.TemporaryDirectory() as folder:
        plain = torch_step.arguments([*flags, "--dump", folder])
        work, params = torch_step.make_workload(plain), torch_step.make_params(plain)
        torch_step.dump(work, params, plain)
        workload = os.path.join(folder, f"{stage}.safetensors")
        exact = torch_step.arguments([*flags, "--dropout", "0"])
        expected, _ = peer(exact, work, params, 3, 0)
        found = ours(a, workload, stage, dtype, "--dropout", "0", "--steps", "3", "--warmup", "0")["loss"]
        difference = max(abs(x - y) / abs(x) for x, y in zip(expected, found))
        assert difference < TOLERANCE[dtype], f"{stage} {items} {batch} {dtype}: the losses differ: expected {expected}, actual {found}"
        variants = {"eager": torch_step.arguments(flags)}
        if a.compile:
            variants["compiled"] = torch_step.arguments([*flags, "--compile"])
        times = {name: [] for name in ["ours", *variants]}
        steps, warmup = a.steps, 10
        own = []
        for _ in range(a.rounds):
            for name, arguments in variants.items():
                times[name] += peer(arguments, work, params, steps, warmup)[1]
            own.append(ours(a, workload, stage, dtype, "--steps", str(steps), "--warmup", str(warmup)))
            times["ours"].append(own[-1]["median_ms"])
    middle = {name: statistics.median(values) for name, values in times.items()}
    result = {"stage": stage, "items": items, "batch": batch, "dtype": dtype, "loss_difference": difference,
              "ours_ms": round(middle["ours"], 3), "card": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name in variants:
        result[f"{name}_ms"] = round(middle[name], 3)
        result[f"{name}_ratio"] = round(middle[name] / middle["ours"], 2)
    result["parts_ms"] = own[-1]["parts_ms"]
    return result


def main():
    q = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    q.add_argument("--ours", required=True, help="the program mp4sr-bench, built with the feature `cuda`")
    q.add_argument("--rounds", type=int, default=3)
    q.add_argument("--steps", type=int, default=30)
    q.add_argument("--compile", action="store_true", help="also time the peer with torch.compile")
    q.add_argument("--stages", default="pretrain,finetune")
    q.add_argument("--items", default="7670,60000")
    q.add_argument("--batches", default="1024,4096")
    q.add_argument("--dtypes", default="f32,bf16")
    q.add_argument("--out", help="a file to which the JSON lines are also appended")
    a = q.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    sizes = itertools.product(a.stages.split(","), map(int, a.items.split(",")), map(int, a.batches.split(",")),
                              a.dtypes.split(","))
    results = []
    for stage, items, batch, dtype in sizes:
        if stage == "pretrain" and items != 7670:
            continue  # A pre-training step encodes only the items of the batch.
        began = time.perf_counter()
        torch._dynamo.reset()
        results.append(compare(a, stage, items, batch, dtype))
        print(json.dumps(results[-1]), f"# {time.perf_counter() - began:.0f} s", flush=True)
        if a.out:
            with open(a.out, "a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    print(f"{'stage':9} {'items':>6} {'batch':>5} {'dtype':5} {'ours':>8} {'eager':>8} {'ratio':>6} {'compiled':>8} {'ratio':>6}")
    for r in results:
        print(f"{r['stage']:9} {r['items']:6} {r['batch']:5} {r['dtype']:5} {r['ours_ms']:8.2f} {r['eager_ms']:8.2f} "
              f"{r['eager_ratio']:6.2f} {r.get('compiled_ms', 0):8.2f} {r.get('compiled_ratio', 0):6.2f}")


if __name__ == "__main__":
    main()
