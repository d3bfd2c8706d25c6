"""Compares lists that FAISS and LanceDB compute from exported vectors with the exported lists. Argument: the folder of an export."""

import json
import sys
import tempfile

import faiss
import lancedb
import numpy
import pyarrow.parquet
import safetensors.numpy

folder = sys.argv[1]
lists = [json.loads(line) for line in open(f"{folder}/lists/lists.jsonl")]
description = json.load(open(f"{folder}/vectors/vectors.json"))
item_ids = json.load(open(f"{folder}/vectors/item_ids.json"))
user_ids = json.load(open(f"{folder}/vectors/user_ids.json"))
read = lambda name: numpy.load(f"{folder}/vectors/{name}.npy")
items, queries, histories, offsets = map(read, ["items", "queries", "histories", "history_offsets"])
assert [own["user_id"] for own in lists] == user_ids and len(item_ids) == len(items) == description["items"]
assert queries.shape == (len(user_ids) * description["interests"], description["width"])

# All formats have the same content.
tensors = safetensors.numpy.load_file(f"{folder}/vectors/vectors.safetensors")
for name, array in [("items", items), ("queries", queries), ("histories", histories), ("history_offsets", offsets)]:
    assert numpy.array_equal(tensors[name], array), name
item_table = pyarrow.parquet.read_table(f"{folder}/vectors/items.parquet")
query_table = pyarrow.parquet.read_table(f"{folder}/vectors/queries.parquet")
assert item_table["item_id"].to_pylist() == item_ids
assert numpy.array_equal(numpy.array(item_table["vector"].to_pylist(), numpy.float32), items)
assert numpy.array_equal(numpy.array(query_table["vector"].to_pylist(), numpy.float32), queries)
for row, (history, user) in enumerate(zip(query_table["history"].to_pylist(), query_table["user_id"].to_pylist())):
    at = row // description["interests"]
    assert user == user_ids[at]
    assert history == [item_ids[item - 1] for item in histories[offsets[at] : offsets[at + 1]]]


def check(search, what):
    """`search` gives a query's best items, numbers from 0, with their inner products."""
    swapped = 0
    for at, own in enumerate(lists):
        best = {}
        for interest in range(description["interests"]):
            for item, score in search(queries[at * description["interests"] + interest]):
                best[item] = max(score, best.get(item, -numpy.inf))
        if description["removes_seen_items"]:
            for item in histories[offsets[at] : offsets[at + 1]]:
                best.pop(item - 1, None)
        top = sorted(best.items(), key=lambda pair: -pair[1])[: len(own["items"])]
        found = numpy.array([score for _, score in top])
        numpy.testing.assert_allclose(found, own["scores"], rtol=1e-4, atol=1e-5, err_msg=f"{what}: {own['user_id']}")
        for (item, _), expected in zip(top, own["items"]):
            if item_ids[item] != expected:
                # Only items whose scores tie up to rounding may be in another order.
                near = [score for other, score in best.items() if item_ids[other] == expected]
                assert near and abs(near[0] - best[item]) < 1e-4 * max(1, abs(best[item])), (what, own["user_id"])
                swapped += 1
    print(f"{what}: {len(lists)} users, {swapped} items of near ties in another order")


index = faiss.IndexFlatIP(description["width"])
index.add(items)


def by_faiss(query):
    scores, found = index.search(query[None], len(items))
    return list(zip(found[0], scores[0]))


check(by_faiss, "faiss")
with tempfile.TemporaryDirectory() as folder_of_table:
    table = lancedb.connect(folder_of_table).create_table("items", item_table)

    def by_lancedb(query):
        rows = table.search(query, vector_column_name="vector").distance_type("dot").limit(len(items)).to_list()
        return [(row["item"] - 1, 1 - row["_distance"]) for row in rows]

    lists = lists[:20]
    check(by_lancedb, "lancedb")
