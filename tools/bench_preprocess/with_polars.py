"""Preprocesses interactions with polars, as `mp4sr preprocess` does: keeps the last of repeated events, applies the 5-core, and sorts.

usage: python3 with_polars.py FILE.tsv|FILE.json.gz OUT_FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl


def read(path):
    if path.endswith(".tsv"):
        return pl.scan_csv(path, separator="\t", schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}, quote_char=None)
    columns = {"reviewerID": pl.String, "asin": pl.String, "unixReviewTime": pl.Int64}
    names = {"reviewerID": "user_id", "asin": "item_id", "unixReviewTime": "timestamp"}
    return pl.scan_ndjson(path, schema=columns).rename(names)


def main():
    events = read(sys.argv[1]).sort("user_id", "timestamp", maintain_order=True)
    events = events.unique(["user_id", "item_id"], keep="last", maintain_order=True).collect()
    while True:
        before = len(events)
        for key in ["user_id", "item_id"]:
            events = events.filter(pl.len().over(key) >= 5)
        if len(events) == before:
            break
    ids = {key: events.select(pl.col(key).unique(maintain_order=True)).with_row_index("number") for key in ["user_id", "item_id"]}
    numbers = {key: events.select(key).join(ids[key], on=key, how="left", maintain_order="left")["number"] for key in ids}
    out = Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    times = events["timestamp"].to_numpy()
    np.savez(out / "sequences.npz", users=numbers["user_id"].to_numpy(), items=numbers["item_id"].to_numpy(), times=times)
    ids["user_id"].write_parquet(out / "users.parquet")
    ids["item_id"].write_parquet(out / "items.parquet")
    print(len(ids["user_id"]), len(ids["item_id"]), len(events))


main()
