#!/usr/bin/env python3
"""Writes crates/extract/tests/fixtures: small random encoders, and the outputs of the reference libraries for unusual inputs.

    python3 -m venv /tmp/venv
    /tmp/venv/bin/pip install torch==2.15.0 transformers==5.24.0 sentence-transformers==6.2.0 numpy==2.4.6 pillow==13.0.0
    /tmp/venv/bin/python tools/make_encoder_fixtures.py [MINILM_FOLDER ITEMS_JSONL CLIP_TOKENIZER_FOLDER]

With the optional arguments, it also writes the vectors that all-MiniLM-L6-v2 computes for 200 real sentences, and the vectors of words
that are tokenized by CLIP's real tokenizer. The weights are drawn with a large standard deviation, so that every part of a layer changes
the result.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers.image_transforms import convert_to_rgb
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = Path(__file__).parent.parent / "crates/extract/tests/fixtures"
SENTENCES = [
    "A ceramic mug for camping.",
    "",
    " ",
    "a",
    "  Spaces before and after\t\n",
    "\u001fSeparators of records\u001c",
    "MIXED Case, punctuation!? (and brackets) -- 1,234.50 \u20ac",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 emoji \u2764\ufe0f",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 right to left",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3002\u4e2d\u6587\u53e5\u5b50\u3002\ud55c\uad6d\uc5b4",
    "Caf\u00e9 na\u00efve Stra\u00dfe \u0130stanbul e\u0301",
    "<pad> and [PAD] and </s> as text",
    "zero\u200bwidth \u00a0 no-break \ufffd replacement",
    "one two three four five six seven eight nine ten eleven twelve",
    "soft warm cotton blanket " * 6,
    "a very long sentence that is cut " * 40,
]
CORPUS = [s for s in SENTENCES if s.strip()] + [
    "soft warm cotton wool blanket for a small bed", "large red ceramic mug for the kitchen", "blue lamp of brass and glass",
    "gift set of twelve pencils and brushes", "the quick brown fox jumps over the lazy dog", "wonderful colours and patterns",
]


def tokenizer_of(kind):
    """Trains a small tokenizer of the kind that the model uses."""
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
        first, last = "[CLS]", "[SEP]"
    else:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        first, last = "<s>", "</s>"
        if kind == "unigram":
            tokenizer = Tokenizer(models.Unigram())
            tokenizer.normalizer = normalizers.NFKC()
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            tokenizer.decoder = decoders.Metaspace()
            trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
        elif kind == "bytes":
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(
                vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
            )
        else:
            tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
            tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(t, tokenizer.token_to_id(t)) for t in (first, last)]
    )
    names = dict(zip(["pad_token", "unk_token"], [special[0] if first == "[CLS]" else "<pad>", "[UNK]" if first == "[CLS]" else "<unk>"]))
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token=first, sep_token=last, mask_token=special[-1], model_max_length=64,
        model_input_names=["input_ids", "attention_mask"], **names
    )


def draw(model, seed):
    """Draws weights with a large standard deviation; with a small one, attention is uniform and all sentences get similar vectors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            wide = 0.3 if value.dim() > 1 else 0.2
            value.copy_(torch.randn(value.shape, generator=generator) * wide)
            if "norm" in name.lower() and name.endswith("weight"):
                value.add_(1.0)
    return model.eval()


def sentences():
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    small = {**common, "max_position_embeddings": 64}
    shifted = {**common, "max_position_embeddings": 66}
    cases = {
        "bert": ("wordpiece", hf.BertConfig, small, "mean", True, 48),
        "distilbert": ("wordpiece", hf.DistilBertConfig,
                       {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64}, "cls", False, 64),
        "roberta": ("bytes", hf.RobertaConfig, {**shifted, "type_vocab_size": 1, "layer_norm_eps": 1e-5}, "max", False, 64),
        "xlm-roberta": ("unigram", hf.XLMRobertaConfig, {**shifted, "type_vocab_size": 1, "layer_norm_eps": 1e-5}, "mean", False, 64),
        "mpnet": ("mpnet", hf.MPNetConfig, {**shifted, "max_position_embeddings": 202, "layer_norm_eps": 1e-5}, "mean", True, 200),
    }
    for seed, (name, (kind, config, sizes, pooling, unit, longest)) in enumerate(cases.items()):
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        tokenizer = tokenizer_of(kind)
        tokenizer.model_max_length = max(longest, 64)
        settings = config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
        model = draw(hf.AutoModel.from_config(settings), seed)
        plain = Path("/tmp") / f"fixture-{name}"
        model.save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        modules = [Transformer(str(plain), max_seq_length=longest), Pooling(32, pooling_mode=pooling)]
        whole = SentenceTransformer(modules=modules + [Normalize()] * unit, device="cpu")
        whole.save(str(folder), create_model_card=False)
        # Sentences are encoded one by one, because in a batch the reference's vectors depend on the padding.
        vectors = np.stack([whole.encode(s, convert_to_numpy=True, show_progress_bar=False) for s in SENTENCES])
        save_file({"vectors": vectors.astype(np.float32)}, folder / "expected.safetensors")
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name in ("README.md", "config_sentence_transformers.json", "special_tokens_map.json", "vocab.txt",
                                                "vocab.json", "merges.txt"):
                path.unlink()
        print(name, len(tokenizer), vectors.shape, [len(tokenizer(s, truncation=True)["input_ids"]) for s in SENTENCES])
    (OUT / "sentences.json").write_text(json.dumps(SENTENCES, indent=0) + "\n")


def minilm(folder, items):
    """Encodes the titles of 200 evenly spaced lines of the file; the test reads the same lines."""
    model = SentenceTransformer(folder, device="cpu")
    lines = open(items, encoding="utf-8").read().split("\n")
    lines = [json.loads(line) for line in lines if line]
    texts = [line["title"] for line in lines[:: len(lines) // 200]][:200]
    vectors = np.stack([model.encode(s, show_progress_bar=False) for s in texts])
    save_file({"vectors": vectors.astype(np.float16)}, OUT / "minilm.safetensors")
    print("minilm", vectors.shape)


WORDS = ["red", "a photo of a striped mug", "", "caf\u00e9", "\U0001f600", "long " * 100, "Two Words", "x1-y_2", "\u65e5\u672c"]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SIDE = 32


def pattern(width, height):
    """Draws colours that change fast in some places and slowly in others."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 127 + 127 * np.sin(x * x / (3 * width))
    green = 255 * x / max(width - 1, 1)
    blue = 127 + 127 * np.cos(y / 3) * np.sin(x / 5)
    return np.stack([red, green, blue], -1).round().astype(np.uint8)


def opened(path):
    """Opens an image file and turns the image upright, as the reference does."""
    return ImageOps.exif_transpose(Image.open(path))


def to_rgb(image):
    """Converts an image to RGB on a white background, as the image processors of transformers 5 do."""
    return Image.fromarray(convert_to_rgb(image, return_numpy=True))


def image_files():
    """Writes image files of every kind, and returns them as the reference sees them: upright, in RGB."""
    folder = OUT / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rgb = Image.fromarray(pattern(53, 41))
    grey = rgb.convert("L")
    alpha = Image.fromarray(pattern(53, 41)[:, :, 1])
    rgba, la = rgb.convert("RGBA"), grey.convert("LA")
    rgba.putalpha(alpha)
    la.putalpha(alpha)
    # Pillow itself would clip such values at 255; the upper eight bits are the expected ones.
    deep = (pattern(53, 41)[:, :, 0].astype(np.uint16) * 257 + 100).clip(0, 65535)
    expected = {}

    def save(name, image, seen=None, **how):
        image.save(folder / name, **how)
        expected[name] = seen if seen is not None else to_rgb(opened(folder / name))

    save("rgb.png", rgb)
    save("rgb.jpg", rgb, quality=95, subsampling=0)
    save("rgb-halved-colours.jpg", rgb, quality=85)
    save("progressive.jpg", rgb, quality=90, progressive=True, subsampling=0)
    save("grey.png", grey)
    save("grey.jpg", grey, quality=95)
    save("grey-alpha.png", la)
    save("alpha.png", rgba)
    save("palette.png", rgb.quantize(40))
    save("palette-transparent.png", rgb.quantize(40), transparency=3)
    save("one-bit.png", grey.convert("1"))
    save("cmyk.jpg", rgb.convert("CMYK"), quality=95, subsampling=0)
    save("deep-grey.png", Image.fromarray(deep), Image.fromarray(np.round(deep / 257).astype(np.uint8)).convert("RGB"))
    save("lossless.webp", rgb, lossless=True)
    frames = [rgb.quantize(60), rgb.rotate(180).quantize(60)]
    save("moving.gif", frames[0], save_all=True, append_images=frames[1:], duration=50)
    save("moving.webp", rgb, save_all=True, append_images=[rgb.rotate(180)], lossless=True, duration=50)
    save("moving.png", rgb, save_all=True, append_images=[rgb.rotate(180)])
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(f"turned-{orientation}.jpg", rgb, quality=95, subsampling=0, exif=exif)
    save("two-pixels.png", Image.fromarray(pattern(1, 2)))
    save("tiny.png", Image.fromarray(pattern(3, 2)))
    save("wide.png", Image.fromarray(pattern(400, 7)))
    save("tall.png", Image.fromarray(pattern(5, 301)))
    save("exact.png", Image.fromarray(pattern(SIDE, SIDE)))
    # Pillow 13 resizes the height of this image first; earlier releases resize its width first.
    save("tall-shrinks.png", Image.fromarray(pattern(90, 300)))
    clear = rgb.convert("RGBA")
    clear.putalpha(0)
    save("clear.png", clear)
    return expected


def images():
    folder = OUT / "clip"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    carried = OUT.parent.parent.parent.parent / "data/encoders/tiny-clip/tokenizer.json"
    shutil.copy(carried, folder / "tokenizer.json")
    small = hf.PreTrainedTokenizerFast(tokenizer_file=str(carried))
    size = small.vocab_size
    end = small("red")["input_ids"][-1]
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = hf.CLIPConfig(
        text_config={**common, "vocab_size": size, "eos_token_id": end, "bos_token_id": small("red")["input_ids"][0], "max_position_embeddings": 77},
        vision_config={**common, "image_size": SIDE, "patch_size": 8}, projection_dim=24,
    )
    model = draw(hf.CLIPModel(config), 20)
    model.save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(folder)
    raw = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_normalize=False, do_rescale=False
    )
    files = image_files()
    with torch.no_grad():
        pixels = np.concatenate([raw(image, return_tensors="np")["pixel_values"] for image in files.values()])
        vectors = [model.get_image_features(**processor(image, return_tensors="pt")).pooler_output for image in files.values()]
        words = [model.get_text_features(torch.tensor([small(w, truncation=True, max_length=77)["input_ids"]])).pooler_output for w in WORDS]
        # An embedding table for the real tokenizer would take megabytes, so its values are a hash of their position, as in the test.
        real = hf.PreTrainedTokenizerFast(tokenizer_file=sys.argv[3] + "/tokenizer.json") if len(sys.argv) > 3 else None
        expected = {
            "pixels": pixels.astype(np.uint8), "images": torch.cat(vectors).numpy(), "words": torch.cat(words).numpy(),
        }
        if real:
            positions = np.arange(49408 * 32, dtype=np.uint64)
            table = ((positions * np.uint64(2654435761)) % np.uint64(2**32) >> np.uint64(9)).astype(np.float32) / np.float32(2**23)
            model.text_model.embeddings.token_embedding = torch.nn.Embedding.from_pretrained(
                torch.tensor((table - np.float32(0.5)).reshape(49408, 32)))
            model.text_model.eos_token_id = 49407
            of_real = [model.get_text_features(torch.tensor([real(w, truncation=True, max_length=77)["input_ids"]])).pooler_output for w in WORDS]
            expected["real_words"] = torch.cat(of_real).numpy()
    save_file(expected, folder / "expected.safetensors")
    (folder / "words.json").write_text(json.dumps(WORDS, indent=0) + "\n")
    (OUT / "images.json").write_text(json.dumps(list(files), indent=0) + "\n")
    print("clip", {name: value.shape for name, value in expected.items()})

    folder = OUT / "resnet"
    shutil.rmtree(folder, ignore_errors=True)
    config = hf.ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2])
    model = hf.ResNetModel(config)
    generator = torch.Generator().manual_seed(30)
    with torch.no_grad():
        for name, value in list(model.named_parameters()) + list(model.named_buffers()):
            if value.dtype == torch.float32:
                drawn = torch.randn(value.shape, generator=generator) * (0.15 if value.dim() > 1 else 0.2)
                value.copy_(drawn.abs() + 0.5 if name.endswith(("running_var", "normalization.weight")) else drawn)
    model.eval().save_pretrained(folder)
    processor = ConvNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_pct=0.875, resample=3)
    processor.save_pretrained(folder)
    with torch.no_grad():
        vectors = [model(**processor(image, return_tensors="pt")).pooler_output.flatten(1) for image in files.values()]
    save_file({"images": torch.cat(vectors).numpy()}, folder / "expected.safetensors")
    print("resnet", torch.cat(vectors).shape, [f"{v.abs().max():.2f}" for v in vectors[:3]])


if __name__ == "__main__":
    torch.set_num_threads(1)
    sentences()
    images()
    if len(sys.argv) > 2:
        minilm(sys.argv[1], sys.argv[2])
