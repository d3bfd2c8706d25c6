#!/usr/bin/env python3
"""Times sentence and image encoders of mp4sr, of the Python libraries and of ONNX Runtime in turn, on the same sentences, files and
weights.

usage: compare.py --ours PATH/TO/mp4sr-bench --folder FOLDER --sentences MINILM_FOLDER [--rounds 3] [--threads 2]

The benchmark requires torch, sentence-transformers, transformers and Pillow. If onnxruntime and onnxscript are installed, it also exports
the same models in f32 and times them in ONNX Runtime. If FOLDER does not exist, mp4sr-bench creates it. All programs sort sentences by
length, and the time includes reading and decoding JPEG files. transformers encodes images in eager mode and with torch.compile. With
--bf16, mp4sr and the Python libraries are also timed in bf16. The benchmark prints one JSON object per measurement, then a table, whose
ratios are relative to the fastest peer that computes in f32.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path


def ours(a, what, precision="f32"):
    flags = {"sentences": lambda: ["--sentences", a.sentences], "images": lambda: ["--images"],
             "images, ResNet-50": lambda: ["--images", "--image-model", resnet_folder(a)]}[what]()
    environment = dict(os.environ, RAYON_NUM_THREADS=str(a.threads))
    command = [a.ours, "extract", "--folder", a.folder, "--rounds", "1", "--precision", precision, *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])["per_second"]


def timed(work, count):
    def rate():
        start = time.perf_counter()
        work()
        return count / (time.perf_counter() - start)

    rate()
    return rate


def session_of(model, names, inputs, axes, path, threads):
    """Exports a module to ONNX and opens it in ONNX Runtime."""
    import onnxruntime
    import torch

    torch.onnx.export(model, tuple(inputs), path, input_names=names, output_names=["out"], dynamo=True,
                      dynamic_shapes=[dict(axes) for _ in names], external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def sentence_peers(a):
    """Loads the sentence encoders of the peers and returns them by name. A call encodes all sentences and returns their rate per second."""
    import torch
    from sentence_transformers import SentenceTransformer

    sentences = (Path(a.folder) / "sentences.txt").read_text().splitlines()
    model = SentenceTransformer(a.sentences, device="cpu")
    encode = lambda: model.encode(sentences, batch_size=64, show_progress_bar=False)
    peers = {"sentence-transformers": timed(encode, len(sentences))}
    if a.bf16:
        def in_bf16():
            with torch.autocast("cpu", torch.bfloat16):
                encode()
        peers["sentence-transformers bf16"] = timed(in_bf16, len(sentences))
    if has_onnx():
        import numpy as np

        bert, tokenizer = model[0].auto_model, model.tokenizer

        class Pooled(torch.nn.Module):
            def forward(self, ids, mask):
                hidden = bert(input_ids=ids, attention_mask=mask).last_hidden_state
                weights = mask.unsqueeze(-1).to(hidden.dtype)
                return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)

        tokens = tokenizer(["one sentence", "and another one"], padding=True, return_tensors="pt")
        axes = {0: torch.export.Dim("sentences"), 1: torch.export.Dim("tokens")}
        session = session_of(Pooled().eval(), ["ids", "mask"], [tokens["input_ids"], tokens["attention_mask"]], axes,
                             str(Path(a.folder) / "sentences.onnx"), a.threads)

        def work():
            order = sorted(range(len(sentences)), key=lambda at: -len(sentences[at]))
            out = np.empty((len(sentences), bert.config.hidden_size), np.float32)
            for start in range(0, len(order), 64):
                own = order[start:start + 64]
                batch = tokenizer([sentences[at] for at in own], padding=True, truncation=True, return_tensors="np")
                out[own] = session.run(None, {"ids": batch["input_ids"], "mask": batch["attention_mask"]})[0]
            return out

        difference = float(np.abs(work() - model.encode(sentences, normalize_embeddings=True)).max())
        assert difference < 1e-4, f"the vectors of ONNX Runtime differ by {difference}"
        peers["onnxruntime"] = timed(work, len(sentences))
    return peers


def resnet_folder(a):
    """Returns the folder of a ResNet-50 with random weights, which is created if it does not exist."""
    import torch
    from transformers import ResNetConfig, ResNetModel

    folder = Path(a.folder) / "resnet"
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        model = ResNetModel(ResNetConfig())
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text((Path(a.folder) / "clip" / "preprocessor_config.json").read_text())
    return str(folder)


def clip_peers(a):
    """Returns the CLIP image encoders of the peers by name, in the form of `sentence_peers`."""
    import torch
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(Path(a.folder) / "clip").eval()

    class Features(torch.nn.Module):
        def forward(self, pixels):
            return model.visual_projection(model.vision_model(pixels).pooler_output)

    return image_peers(a, Features().eval())


def resnet_peers(a):
    """Returns the ResNet encoders of the peers by name, in the form of `sentence_peers`."""
    import torch
    from transformers import ResNetModel

    model = ResNetModel.from_pretrained(resnet_folder(a)).eval()

    class Features(torch.nn.Module):
        def forward(self, pixels):
            return model(pixels).pooler_output.flatten(1)

    return image_peers(a, Features().eval(), channels_last=True)


def image_peers(a, features, channels_last=False):
    """Returns the peers that compute `features` of pixels. With `channels_last`, PyTorch uses the channels-last memory format, in which
    its convolutions are faster."""
    import torch
    from PIL import Image
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(Path(a.folder) / "clip")
    paths = sorted((Path(a.folder) / "images").iterdir())

    def over_files(encode):
        def work():
            with torch.inference_mode():
                for start in range(0, len(paths), 32):
                    images = [Image.open(path).convert("RGB") for path in paths[start : start + 32]]
                    pixels = processor(images, return_tensors="pt")["pixel_values"]
                    encode(pixels.to(memory_format=torch.channels_last) if channels_last else pixels)
        return timed(work, len(paths))

    if has_onnx():
        pixels = torch.zeros(2, 3, 224, 224)
        axes = {0: torch.export.Dim("images")}
        session = session_of(features, ["pixels"], [pixels], axes, str(Path(a.folder) / "images.onnx"), a.threads)
    if channels_last:
        features = features.to(memory_format=torch.channels_last)
    peers = {"transformers": over_files(features), "transformers compiled": over_files(torch.compile(features))}
    if a.bf16:
        def in_bf16(pixels):
            with torch.autocast("cpu", torch.bfloat16):
                features(pixels)
        peers["transformers bf16"] = over_files(in_bf16)
    if has_onnx():
        peers["onnxruntime"] = over_files(lambda pixels: session.run(None, {"pixels": pixels.contiguous().numpy()}))
    return peers


def has_onnx():
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as missing:
        print(f"skipped ONNX Runtime: `{sys.executable}` lacks the package `{missing.name}`", file=sys.stderr)
        return False
    return True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ours", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--sentences", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="the only comparison to run: `sentences`, `images` or `images, ResNet-50`")
    parser.add_argument("--bf16", action="store_true", help="also time mp4sr and the Python libraries in bf16")
    a = parser.parse_args()
    import torch

    torch.set_num_threads(a.threads)
    lines = []
    for what, peers_of in (("sentences", sentence_peers), ("images", clip_peers), ("images, ResNet-50", resnet_peers)):
        if a.only and what != a.only:
            continue
        ours(a, what)
        sides = {"ours": lambda: ours(a, what)}
        if a.bf16:
            sides["ours bf16"] = lambda: ours(a, what, "bf16")
        peers = peers_of(a)
        sides.update(peers)
        rates = {side: [] for side in sides}
        for _ in range(a.rounds):
            for side, rate in sides.items():
                rates[side].append(rate())
            print(what, {side: round(rate[-1], 1) for side, rate in rates.items()}, file=sys.stderr, flush=True)
        middle = {side: statistics.median(values) for side, values in rates.items()}
        best = max((side for side in peers if not side.endswith("bf16")), key=middle.get)
        for side in sides:
            lines.append({"what": what, "side": side, "per_second": round(middle[side], 1), "threads": a.threads,
                          "range": [round(min(rates[side]), 1), round(max(rates[side]), 1)],
                          "ratio": round(middle[side] / middle[best], 2)})
    for line in lines:
        print(json.dumps(line))
    print()
    for line in lines:
        print(f"{line['what']:18} {line['side']:28} {line['per_second']:8.1f} per second  {line['ratio']:5.2f}")


main()
