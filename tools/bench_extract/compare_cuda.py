#!/usr/bin/env python3
"""Times sentence and image encoders of mp4sr and of the Python libraries on one NVIDIA GPU in turn, on the same sentences, files and
weights.

usage, from the root of the repository:
  compare_cuda.py --ours PATH/TO/mp4sr-bench --folder FOLDER [--what bert-small,bert-base,clip,resnet] [--dtypes f32,bf16]

The benchmark requires torch, sentence-transformers, transformers and Pillow, but no network: the encoders have random weights and are
created in FOLDER if they are missing. `--minilm FOLDER` also times a real sentence encoder. The vectors of both programs are compared
first. The peer sorts sentences by length, reads images with one process per processor core, and uses the batch size with which it is
fastest. Images are timed twice: from their files, and from pixels in memory. The benchmark prints one JSON object per comparison, then a
table.
"""
import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

# The hidden width, the layers, the heads and the width of the feed-forward layer of all-MiniLM-L6-v2 and of bert-base.
BERTS = {"bert-small": (384, 6, 12, 1536), "bert-base": (768, 12, 12, 3072)}
LEAST_COSINE = {"f32": 0.9999, "bf16": 0.99}
VOCABULARY = 30522


def make_bert(folder, sizes, sentences):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word.lower() for line in sentences for word in line.split()})
    vocabulary = (special + words)[:VOCABULARY]
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    width, layers, heads, feed = sizes
    torch.manual_seed(1)
    # The initialisation is wider than BERT's, with which all sentences would have nearly the same vector.
    config = BertConfig(vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                        intermediate_size=feed, initializer_range=0.05)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    write = lambda name, value: (folder / name).write_text(json.dumps(value))
    write("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, "pad_token": "[PAD]",
                                    "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"})
    write("sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write("modules.json", [{"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
                           for at, (path, kind) in enumerate(kinds)])
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "2_Normalize").mkdir(exist_ok=True)
    write("1_Pooling/config.json", {"word_embedding_dimension": width, "pooling_mode_cls_token": False,
                                    "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False,
                                    "pooling_mode_mean_sqrt_len_tokens": False})


def make_resnet(folder):
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(1)
    ResNetModel(ResNetConfig()).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "crop_pct": 0.875, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_processor_type": "ConvNextImageProcessor",
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3, "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 224}}))


def ours(a, flags, dtype, rounds, vectors=None):
    command = [a.ours, "extract", "--folder", a.folder, "--rounds", str(rounds), "--device", "cuda:0", "--precision", dtype, *flags,
               "--sentence-count", str(a.sentences), "--image-count", str(a.images)]
    if vectors:
        command += ["--vectors", vectors]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])["per_second"] if done.stdout.strip() else None


class Files(torch.utils.data.Dataset):
    def __init__(self, paths, processor):
        self.paths, self.processor = paths, processor

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, at):
        from PIL import Image

        return self.processor(Image.open(self.paths[at]).convert("RGB"), return_tensors="pt")["pixel_values"][0]


class Sentences:
    """The peer's sentence encoder. A call returns the vectors of all sentences."""

    def __init__(self, a, folder, dtype):
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(folder), device="cuda")
        if dtype == "bf16":
            self.model.bfloat16()
        self.sentences = (Path(a.folder) / "sentences.txt").read_text().splitlines()

    def __len__(self):
        return len(self.sentences)

    def __call__(self, batch):
        return np.asarray(self.model.encode(self.sentences, batch_size=batch, show_progress_bar=False))


class Images:
    """The peer's image encoder, for files or for pixels in memory. A call returns the vectors of all images."""

    def __init__(self, a, folder, dtype, kind, from_files, pixels=None):
        from transformers import AutoImageProcessor, CLIPModel, ResNetModel

        self.kind, self.from_files = kind, from_files
        model = (CLIPModel if kind == "clip" else ResNetModel).from_pretrained(folder).eval().to("cuda")
        self.model = model.bfloat16() if dtype == "bf16" else model
        if kind == "resnet":
            self.model = self.model.to(memory_format=torch.channels_last)
        self.type = torch.bfloat16 if dtype == "bf16" else torch.float32
        self.files = Files(sorted((Path(a.folder) / "images").iterdir()), AutoImageProcessor.from_pretrained(folder))
        self.pixels = pixels

    def __len__(self):
        return len(self.files)

    def blocks(self, batch):
        if not self.from_files:
            return self.pixels.split(batch)
        return torch.utils.data.DataLoader(self.files, batch_size=batch, num_workers=os.cpu_count(), pin_memory=True)

    def __call__(self, batch):
        found = []
        with torch.inference_mode():
            for pixels in self.blocks(batch):
                pixels = pixels.to("cuda", non_blocking=True).to(self.type)
                if self.kind == "clip":
                    out = self.model.get_image_features(pixel_values=pixels)
                    # Newer versions of transformers return a model output that contains the projected vector.
                    out = out if torch.is_tensor(out) else out.pooler_output
                else:
                    out = self.model(pixel_values=pixels.to(memory_format=torch.channels_last)).pooler_output.flatten(1)
                found.append(out.float())
            return torch.cat(found).cpu().numpy()


def all_pixels(a, folder):
    peer = Images.__new__(Images)
    from transformers import AutoImageProcessor

    peer.files = Files(sorted((Path(a.folder) / "images").iterdir()), AutoImageProcessor.from_pretrained(folder))
    peer.from_files = True
    # Both programs start with pageable memory, so the pixels are copied out of pinned memory.
    return torch.cat(list(peer.blocks(64))).clone()


def least_cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def compare(a, name, what, dtype, make_peer, flags):
    peer = make_peer(dtype)
    with tempfile.TemporaryDirectory() as room:
        path = os.path.join(room, "vectors")
        ours(a, flags, dtype, 0, path)
        found = np.fromfile(path, dtype="<f4").reshape(len(peer), -1)
    cosine = least_cosine(found, make_peer("f32")(64) if dtype != "f32" else peer(64))
    assert cosine >= LEAST_COSINE[dtype], f"{name} {what} {dtype}: cosine {cosine}"
    rates = {}
    for batch in map(int, a.batches.split(",")):
        peer(batch)
        start = time.perf_counter()
        peer(batch)
        rates[batch] = len(peer) / (time.perf_counter() - start)
    best = max(rates, key=rates.get)
    own, theirs = [], []
    for _ in range(a.rounds):
        start = time.perf_counter()
        peer(best)
        theirs.append(len(peer) / (time.perf_counter() - start))
        own.append(ours(a, flags, dtype, 3))
    middle = statistics.median(own), statistics.median(theirs)
    del peer
    gc.collect()
    torch.cuda.empty_cache()
    return {"encoder": name, "what": what, "dtype": dtype, "count": len(found), "least_cosine": cosine, "ours_per_second": round(middle[0], 1),
            "peer_per_second": round(middle[1], 1), "ratio": round(middle[0] / middle[1], 2), "peer_batch": best,
            "peer_by_batch": {batch: round(rate, 1) for batch, rate in rates.items()}, "card": torch.cuda.get_device_name(),
            "torch": torch.__version__, "cores": os.cpu_count()}


def main():
    q = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    q.add_argument("--ours", required=True, help="the program mp4sr-bench, built with the feature `cuda`")
    q.add_argument("--folder", required=True)
    q.add_argument("--what", default="bert-small,bert-base,clip,resnet")
    q.add_argument("--minilm", help="the folder of a sentence encoder, such as all-MiniLM-L6-v2")
    q.add_argument("--dtypes", default="f32,bf16")
    q.add_argument("--batches", default="64,128,256,512,1024")
    q.add_argument("--rounds", type=int, default=3)
    q.add_argument("--sentences", type=int, default=40000, help="the number of sentences to generate if the folder does not exist")
    q.add_argument("--images", type=int, default=2048, help="the number of images to generate if the folder does not exist")
    q.add_argument("--out", help="a file to which the JSON lines are also appended")
    a = q.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    folder = Path(a.folder)
    ours(a, [], "f32", 0)
    names = a.what.split(",") + (["minilm"] if a.minilm else [])
    work = []
    for name in names:
        if name in BERTS or name == "minilm":
            model = Path(a.minilm) if name == "minilm" else folder / name
            if name in BERTS and not (model / "model.safetensors").exists():
                make_bert(model, BERTS[name], (folder / "sentences.txt").read_text().splitlines())
            make = lambda dtype, model=model: Sentences(a, model, dtype)
            work.append((name, "sentences", make, ["--sentences", str(model)]))
        else:
            model = folder / name
            if name == "resnet" and not (model / "model.safetensors").exists():
                make_resnet(model)
            pixels = all_pixels(a, model)
            for what in ("pixels", "images"):
                make = lambda dtype, model=model, name=name, what=what, pixels=pixels: Images(
                    a, model, dtype, name, what == "images", pixels)
                flags = ["--images", "--image-model", str(model)] + (["--pixels"] if what == "pixels" else [])
                work.append((name, what, make, flags))
    results = []
    for name, what, make, flags in work:
        for dtype in a.dtypes.split(","):
            results.append(compare(a, name, what, dtype, make, flags))
            print(json.dumps(results[-1]), flush=True)
            if a.out:
                with open(a.out, "a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
    print(f"{'encoder':10} {'what':9} {'dtype':5} {'ours/s':>10} {'peer/s':>10} {'ratio':>6} {'batch':>5} {'cosine':>9}")
    for r in results:
        print(f"{r['encoder']:10} {r['what']:9} {r['dtype']:5} {r['ours_per_second']:10.1f} {r['peer_per_second']:10.1f} "
              f"{r['ratio']:6.2f} {r['peer_batch']:5} {r['least_cosine']:9.6f}")


if __name__ == "__main__":
    main()
