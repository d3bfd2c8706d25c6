"""Reads a folder of atomic files with RecBole, and prints the content as JSON. Arguments: the parent folder, the name, the model."""

import json
import logging
import sys
import warnings

import numpy

warnings.filterwarnings("ignore")
from recbole.config import Config
from recbole.data import create_dataset, data_preparation

above, name, model = sys.argv[1:4]
sys.argv = sys.argv[:1]
settings = {"data_path": above, "train_neg_sample_args": None} if model == "SASRec" else {"data_path": above}
config = Config(model, name, config_file_list=[f"{above}/{name}/{name}.yaml"], config_dict=settings)
logging.disable(logging.CRITICAL)
dataset = create_dataset(config)
# Number 0 is for padding.
found = {"users": int(dataset.user_num) - 1, "items": int(dataset.item_num) - 1, "events": int(dataset.inter_num)}
for field in config["preload_weight"] or {}:
    weight = dataset.get_preload_weight(field)
    tokens = dataset.id2token(field, numpy.arange(1, len(weight)))
    found[field] = dict(zip(tokens.tolist(), weight[1:].astype(numpy.float32).astype(float).tolist()))
loaders = data_preparation(config, dataset)
for which, loader in zip(["train", "valid", "test"], loaders):
    rows = loader.dataset.inter_feat if hasattr(loader.dataset, "inter_feat") else loader._dataset.inter_feat
    users = dataset.id2token("user_id", rows["user_id"].numpy())
    items = dataset.id2token("item_id", rows["item_id"].numpy())
    found[which] = sorted(zip(users.tolist(), items.tolist()))
print("FOUND" + json.dumps(found))
