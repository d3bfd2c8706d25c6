"""Writes a control for a features file, to show what its vectors contribute: random vectors in their place, or the whitened vectors.

usage: python3 examples/control_features.py artifacts/sample text.tiny-sentence random|whitened     (pip install safetensors numpy)

`text.tiny-sentence` stands for the file `features/text.tiny-sentence.safetensors`; the new file is `features/text.random.safetensors` or
`features/text.whitened.safetensors`. Whitening subtracts the mean and gives all principal directions the same variance; directions whose
standard deviation is below a hundredth of the largest are left out. To train on the new features:
model.modalities = [{ name = "text", features = "random" }]
"""

import json
import sys

import numpy
import safetensors
import safetensors.numpy

folder, name, kind = sys.argv[1:4]
if kind not in ("random", "whitened"):
    sys.exit(f"unknown control `{kind}`: expected `random` or `whitened`")
with safetensors.safe_open(f"{folder}/features/{name}.safetensors", "numpy") as file:
    items = json.loads(file.metadata()["mp4sr"])["items"]
    offsets, values = file.get_tensor("offsets"), file.get_tensor("values").astype(numpy.float32)

if kind == "random":
    values = numpy.random.default_rng(0).normal(size=values.shape)
else:
    centered = values - values.mean(axis=0)
    directions, deviations, _ = numpy.linalg.svd(centered, full_matrices=False)
    values = directions[:, deviations > 0.01 * deviations[0]]
values /= numpy.maximum(numpy.linalg.norm(values, axis=1, keepdims=True), 1e-12)

header = {"format": "features", "version": 1, "stage": "control_features.py", "items": items}
tensors = {"offsets": offsets, "values": numpy.ascontiguousarray(values.astype(numpy.float32))}
modality = name.split(".")[0]
safetensors.numpy.save_file(tensors, f"{folder}/features/{modality}.{kind}.safetensors", {"mp4sr": json.dumps(header)})
print(f"{values.shape[0]} rows, width {values.shape[1]}")
