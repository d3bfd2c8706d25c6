"""Writes a features file with one row per item: the TF-IDF vector of its sentences, reduced by a truncated SVD. A comparison with it shows
what a text encoder adds to the words themselves.

usage: python3 examples/tfidf_features.py artifacts/sample [width]        (pip install scikit-learn pyarrow safetensors numpy)

The default width is 128. To train on the features: model.modalities = [{ name = "text", features = "tfidf" }]
"""

import json
import os
import sys

import numpy
import pyarrow.parquet
import safetensors
import safetensors.numpy
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

folder = sys.argv[1]
width = int(sys.argv[2]) if len(sys.argv) > 2 else 128

with safetensors.safe_open(f"{folder}/dataset/sequences.safetensors", "numpy") as file:
    item_hash = json.loads(file.metadata()["mp4sr"])["items"]
items = pyarrow.parquet.read_table(f"{folder}/dataset/items.parquet", columns=["sentences"])
texts = [" ".join(sentences) for sentences in items["sentences"].to_pylist()]

# Words that occur in only one item do not make it similar to any other item.
counts = TfidfVectorizer(sublinear_tf=True, min_df=2, stop_words="english").fit_transform(texts)
svd = TruncatedSVD(min(width, counts.shape[1] - 1), random_state=0)
rows = normalize(svd.fit_transform(counts)).astype(numpy.float32)

# An item without known words has no row, like an item without text.
known = numpy.asarray(counts.getnnz(axis=1) > 0)
offsets = numpy.concatenate([[0], numpy.cumsum(known)]).astype(numpy.int64)
os.makedirs(f"{folder}/features", exist_ok=True)
header = {"format": "features", "version": 1, "stage": "tfidf_features.py", "items": item_hash}
tensors = {"offsets": offsets, "values": numpy.ascontiguousarray(rows[known])}
safetensors.numpy.save_file(tensors, f"{folder}/features/text.tfidf.safetensors", {"mp4sr": json.dumps(header)})
share = svd.explained_variance_ratio_.sum()
print(f"{known.sum()} of {len(texts)} items, width {rows.shape[1]}, {counts.shape[1]} words, {share:.0%} of the variance")
