#!/usr/bin/env python3
"""Times one training step of a baseline (loss, backward, clipping, Adam) in PyTorch on the CPU.

It reads the file that `mp4sr-bench baseline --dump` wrote: the initial parameters, the batch, and what was sampled for it. Padding, finding
distinct items and building sparse matrices are done in advance and are not timed. The program prints one line of JSON.
"""
import argparse
import json
import platform
import resource
import statistics

import torch

from common import keep_freed_memory, run
from graphs import ClcRec, DualGnn, Grcn, LightGcn
from sequential import Cl4sRec, DifSr, Fdsa, Masr, MvRnn, S3Rec, SasRec, Sine, UniSRecFinetune, UniSRecPretrain

STEPS = {
    "sasrec": SasRec, "cl4srec": Cl4sRec, "sine": Sine, "fdsa": Fdsa, "difsr": DifSr, "s3rec": S3Rec,
    "unisrec-pretrain": UniSRecPretrain, "unisrec-finetune": UniSRecFinetune, "lightgcn": LightGcn, "grcn": Grcn,
    "dualgnn": DualGnn, "mvrnn": MvRnn, "clcrec": ClcRec, "masr": Masr,
}  # fmt: skip


def main():
    q = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    q.add_argument("--model", required=True, choices=STEPS)
    q.add_argument("--workload", required=True)
    q.add_argument("--no-dropout", action="store_true")
    q.add_argument("--compile", action="store_true", help="use torch.compile")
    q.add_argument("--threads", type=int, default=2)
    q.add_argument("--steps", type=int, default=10)
    q.add_argument("--warmup", type=int, default=3)
    a = q.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    keep_freed_memory()
    step = STEPS[a.model](a.workload, not a.no_dropout)
    losses, times, busy = run(step, a.warmup, a.steps, a.compile)
    median, least, most = (round(f(times), 2) for f in (statistics.median, min, max))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # Linux counts in KiB
    print(json.dumps(dict(
        model=a.model, threads=a.threads, dropout=not a.no_dropout, compiled=a.compile, steps=a.steps, median_ms=median,
        processor_ms=round(statistics.mean(busy), 1), min_ms=least, max_ms=most, loss=losses[:3], torch=torch.__version__, python=platform.python_version(), peak_mib=peak)))


if __name__ == "__main__":
    main()
