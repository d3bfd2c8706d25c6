"""Reads a folder as MMRec does (`src/utils/dataset.py`, `src/common/abstract_recommender.py`), and prints the content as JSON. Argument: the folder."""

import json
import os
import sys

import numpy
import pandas
import yaml

folder = sys.argv[1]
name = os.path.basename(folder)
config = yaml.safe_load(open(f"{folder}/{name}.yaml"))
columns = [config["USER_ID_FIELD"], config["ITEM_ID_FIELD"], "x_label"]
frame = pandas.read_csv(os.path.join(folder, config["inter_file_name"]), usecols=columns, sep=config["field_separator"])
assert frame.columns.isin(columns).all()
found = {"items": int(max(frame["itemID"].values)) + 1, "users": int(max(frame["userID"].values)) + 1}
for which, label in [("train", 0), ("valid", 1), ("test", 2)]:
    own = frame[frame["x_label"] == label]
    found[which] = [[int(user), int(item)] for user, item in zip(own["userID"], own["itemID"])]
for modality, key in [("text", "text_feature_file"), ("image", "vision_feature_file")]:
    path = os.path.join(folder, config[key])
    if os.path.isfile(path):
        array = numpy.load(path, allow_pickle=True)
        assert array.dtype == numpy.float32 and (numpy.linalg.norm(array, axis=1) > 0).all()
        found[modality] = list(array.shape)
for name, column in [("u_id_mapping.csv", "userID"), ("i_id_mapping.csv", "itemID")]:
    mapping = pandas.read_csv(os.path.join(folder, name), sep="\t", dtype=str, keep_default_na=False)
    assert mapping[column].astype(int).tolist() == list(range(len(mapping)))
    found[column] = mapping.iloc[:, 0].tolist()
print("FOUND" + json.dumps(found))
