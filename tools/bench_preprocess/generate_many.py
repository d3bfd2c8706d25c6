"""Generates EVENTS events without holding all of them in memory, and writes FOLDER/many.parquet, FOLDER/many.tsv.gz or both.

usage: python3 generate_many.py FOLDER EVENTS [parquet|tsv]...   (requires numpy, polars and pyarrow)

As in generate.py, there are ten events per user and fifty per item on average; some users and items have many events, and many have few.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

CHUNK = 5_000_000


def chunk(draw, events, users, items):
    user = (users * draw.random(events) ** 2).astype(np.int64)
    item = (items * draw.random(events) ** 3).astype(np.int64)
    time = 1_300_000_000 + (draw.random(events) * 2500).astype(np.int64) * 86_400
    text = lambda name, width: pl.lit(name) + pl.col(name).cast(pl.String).str.zfill(width)
    return pl.DataFrame({"A": user, "B": item, "timestamp": time}).select(
        text("A", 13).alias("user_id"), text("B", 9).alias("item_id"), "timestamp"
    )


def main():
    folder, events = Path(sys.argv[1]), int(sys.argv[2])
    forms = sys.argv[3:] or ["parquet", "tsv"]
    folder.mkdir(parents=True, exist_ok=True)
    draw, writer = np.random.default_rng(1), None
    tsv = gzip.open(folder / "many.tsv.gz", "wb", compresslevel=1) if "tsv" in forms else None
    for start in range(0, events, CHUNK):
        frame = chunk(draw, min(CHUNK, events - start), events // 10, events // 50)
        if tsv:
            tsv.write(frame.write_csv(separator="\t", include_header=start == 0).encode())
        if "parquet" in forms:
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            writer = writer or pq.ParquetWriter(folder / "many.parquet", table.schema, compression="zstd")
            writer.write_table(table, row_group_size=1_000_000)
    if tsv:
        tsv.close()
    if writer:
        writer.close()


main()
