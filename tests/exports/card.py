"""Reads a model folder with huggingface_hub, yaml and safetensors, and prints the content as JSON. Argument: the folder."""

import json
import sys

import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open

folder = sys.argv[1]
text = open(f"{folder}/README.md").read()
front = yaml.safe_load(text.split("---\n")[1])
card = ModelCard.load(f"{folder}/README.md")
assert card.data.library_name == front["library_name"] == "mp4sr" and card.data.tags == front["tags"]
results = {own.metric_name: own.metric_value for own in card.data.eval_results}
assert all(own.dataset_name and own.task_type for own in card.data.eval_results)
with safe_open(f"{folder}/model.safetensors", "numpy") as file:
    shapes = {name: list(file.get_tensor(name).shape) for name in file.keys()}
settings = json.load(open(f"{folder}/config.json"))
print("FOUND" + json.dumps({"results": results, "shapes": shapes, "settings": settings}))
