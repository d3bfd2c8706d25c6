"""Writes a features file of your own, here with one random row per item; docs/artifacts.md describes its content.

usage: python3 examples/own_features.py artifacts/sample        (pip install safetensors numpy)
"""
import json, sys, numpy, safetensors, safetensors.numpy

folder = sys.argv[1]
with safetensors.safe_open(f"{folder}/dataset/sequences.safetensors", "numpy") as file:
    header, count = json.loads(file.metadata()["mp4sr"]), int(file.get_tensor("item_count")[0])
rows = numpy.random.default_rng(0).normal(size=(count, 32)).astype(numpy.float32)
tensors = {"offsets": numpy.arange(count + 1, dtype=numpy.int64), "values": rows}
own = {"format": "features", "version": 1, "stage": "my-script", "items": header["items"]}
safetensors.numpy.save_file(tensors, f"{folder}/features/audio.mine.safetensors", {"mp4sr": json.dumps(own)})
