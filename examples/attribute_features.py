#!/usr/bin/env python3
"""Writes features of a modality `attributes`: one row per item, the vector of a sentence with its genres, director and actors.

    make preprocess PIPELINE=pipelines/ml-1m-plots.toml DATA=folder
    python3 examples/attribute_features.py artifacts/ml-1m-plots folder/ml-1m/items.jsonl movie_id

The script requires numpy, pyarrow, safetensors and sentence-transformers.
"""

import json
import os
import sys

import numpy
import pyarrow.parquet
import safetensors
import safetensors.numpy
from sentence_transformers import SentenceTransformer

folder, items_file, id_field = sys.argv[1:4]
model = SentenceTransformer(sys.argv[4] if len(sys.argv) > 4 else "sentence-transformers/all-MiniLM-L6-v2")

with safetensors.safe_open(f"{folder}/dataset/sequences.safetensors", "numpy") as file:
    item_hash = json.loads(file.metadata()["mp4sr"])["items"]
ids = pyarrow.parquet.read_table(f"{folder}/dataset/items.parquet", columns=["item_id"])["item_id"].to_pylist()

with open(items_file, encoding="utf-8") as lines:
    items = {str(item[id_field]): item for item in map(json.loads, lines)}


def sentence(item):
    parts = [", ".join(item.get("genres") or []), item.get("director") or "", item.get("actors") or ""]
    return ", ".join(part for part in parts if part)


values = model.encode([sentence(items[i]) for i in ids], batch_size=64).astype(numpy.float16)
os.makedirs(f"{folder}/features", exist_ok=True)
header = {"format": "features", "version": 1, "stage": "attribute_features.py", "items": item_hash}
safetensors.numpy.save_file(
    {"offsets": numpy.arange(len(ids) + 1, dtype=numpy.int64), "values": values},
    f"{folder}/features/attributes.minilm.safetensors",
    {"mp4sr": json.dumps(header)},
)
