"""Preprocesses interactions with pandas, as `mp4sr preprocess` does: keeps the last of repeated events, applies the 5-core, and sorts.

usage: python3 with_pandas.py FILE.tsv|FILE.json.gz OUT_FOLDER
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd


def read(path):
    if path.endswith(".tsv"):
        return pd.read_csv(path, sep="\t", dtype={"user_id": str, "item_id": str})
    users, items, times = [], [], []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            review = json.loads(line)
            users.append(review["reviewerID"])
            items.append(review["asin"])
            times.append(review["unixReviewTime"])
    return pd.DataFrame({"user_id": users, "item_id": items, "timestamp": times})


def main():
    events = read(sys.argv[1])
    events = events.sort_values(["user_id", "timestamp"], kind="stable").drop_duplicates(["user_id", "item_id"], keep="last")
    while True:
        before = len(events)
        for key in ["user_id", "item_id"]:
            events = events[events.groupby(key)[key].transform("size") >= 5]
        if len(events) == before:
            break
    users, user_ids = pd.factorize(events["user_id"])
    items, item_ids = pd.factorize(events["item_id"])
    out = Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "sequences.npz", users=users, items=items, times=events["timestamp"].to_numpy())
    pd.DataFrame({"user_id": user_ids}).to_parquet(out / "users.parquet")
    pd.DataFrame({"item_id": item_ids}).to_parquet(out / "items.parquet")
    print(len(user_ids), len(item_ids), len(events))


main()
