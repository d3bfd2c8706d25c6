#!/usr/bin/env python3
"""Times sentence and image encoders of mp4sr and of the Python libraries in turn, on the same sentences, files and weights.

usage: compare.py --ours PATH/TO/mp4sr-bench --folder FOLDER --sentences MINILM_FOLDER [--rounds 3] [--threads 2]

Needs torch, sentence-transformers, transformers and Pillow. FOLDER is made by mp4sr-bench where it is not there. Both sides sort
sentences by length, and read and decode JPEG files within the time. The last lines are one JSON object a comparison.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path


def ours(a, what):
    flags = ["--images"] if what == "images" else ["--sentences", a.sentences]
    environment = dict(os.environ, RAYON_NUM_THREADS=str(a.threads))
    command = [a.ours, "extract", "--folder", a.folder, "--rounds", "1", *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])["per_second"]


def peer(a, what):
    """Loads once; gives a function that times one pass."""
    import torch

    torch.set_num_threads(a.threads)
    if what == "sentences":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(a.sentences, device="cpu")
        sentences = (Path(a.folder) / "sentences.txt").read_text().splitlines()
        work = lambda: model.encode(sentences, batch_size=64, show_progress_bar=False)
        count = len(sentences)
    else:
        from PIL import Image
        from transformers import CLIPImageProcessor, CLIPModel

        model = CLIPModel.from_pretrained(Path(a.folder) / "clip").eval()
        processor = CLIPImageProcessor.from_pretrained(Path(a.folder) / "clip")
        paths = sorted((Path(a.folder) / "images").iterdir())
        count = len(paths)

        def work():
            with torch.inference_mode():
                for start in range(0, count, 32):
                    images = [Image.open(path).convert("RGB") for path in paths[start : start + 32]]
                    model.get_image_features(**processor(images, return_tensors="pt"))

    def rate():
        start = time.perf_counter()
        work()
        return count / (time.perf_counter() - start)

    rate()
    return rate


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ours", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--sentences", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    lines = []
    for what in ("sentences", "images"):
        ours(a, what)
        theirs = peer(a, what)
        rates = {"ours": [], "peer": []}
        for _ in range(a.rounds):
            rates["peer"].append(theirs())
            rates["ours"].append(ours(a, what))
            print(what, {side: round(rate[-1], 1) for side, rate in rates.items()}, file=sys.stderr, flush=True)
        middle = {side: statistics.median(values) for side, values in rates.items()}
        lines.append({"what": what, "ratio": round(middle["ours"] / middle["peer"], 2), "threads": a.threads,
                      "ours_per_second": round(middle["ours"], 1), "peer_per_second": round(middle["peer"], 1)})
    for line in lines:
        print(json.dumps(line))


main()
