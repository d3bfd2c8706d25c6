#!/usr/bin/env python3
"""Writes the fixtures of the encoders that use candle-transformers and candle-nn, in addition to those of make_encoder_fixtures.py.

    python3 -m venv /tmp/venv
    /tmp/venv/bin/pip install torch==2.15.0 transformers==5.24.0 sentence-transformers==6.2.0 numpy==2.4.6 pillow==13.0.0 \\
        timm==1.0.31 torchvision==0.29.2 soundfile==0.14.0
    /tmp/venv/bin/python tools/make_adapter_fixtures.py [NAME ...]

NAME is one of the functions in `ALL` below; without names, all of them run. The encoders are written to
crates/extract/tests/fixtures/adapter. Weights are drawn with a large standard deviation, so that every part of a layer changes the
result. They are rounded to half precision, in which they are stored, before the reference uses them.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from tokenizers import processors

from PIL import Image

from make_encoder_fixtures import SENTENCES, draw, opened, to_rgb, tokenizer_of

OUT = Path(__file__).parent.parent / "crates/extract/tests/fixtures/adapter"
KEPT = {"config.json", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer.json",
        "tokenizer_config.json", "model.safetensors", "model.safetensors.index.json", "preprocessor_config.json",
        "expected.safetensors", "images.json"}


def rounded(model, seed, scale=1.0):
    """Draws the weights and rounds them to half precision."""
    draw(model, seed)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_((value * scale if value.dim() > 1 else value).half().float())
    return model


def halve(path):
    """Stores the weights of a file in half precision, to which they are already rounded."""
    tensors = load_file(path)
    for name, value in tensors.items():
        if value.dtype == np.float32:
            assert np.array_equal(value, value.astype(np.float16).astype(np.float32)), name
            tensors[name] = value.astype(np.float16)
    save_file(tensors, path, metadata={"format": "pt"})


def folder_of(name):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def clean(folder):
    for path in sorted(folder.rglob("*")):
        wanted = path.name in KEPT or path.name.startswith("model-0")
        if path.is_file() and not wanted:
            path.unlink()
        elif path.is_file() and path.suffix == ".safetensors" and path.name != "expected.safetensors":
            halve(path)


def write_sentences(name, model, tokenizer, tail, longest, prompts=None, default_prompt=None, truncate=None, shards=None):
    """Saves a sentence-transformers model and its vectors of SENTENCES, encoded one by one."""
    folder = folder_of(name)
    plain = Path("/tmp") / f"fixture-{name}"
    shutil.rmtree(plain, ignore_errors=True)
    model.save_pretrained(plain)
    tokenizer.model_max_length = longest
    tokenizer.save_pretrained(plain)
    whole = SentenceTransformer(
        modules=[Transformer(str(plain), max_seq_length=longest)] + tail, device="cpu", prompts=prompts,
        default_prompt_name=default_prompt, truncate_dim=truncate,
    )
    whole.save(str(folder), create_model_card=False)
    if shards:
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=shards)
    vectors = np.stack([whole.encode(s, convert_to_numpy=True, show_progress_bar=False) for s in SENTENCES])
    save_file({"vectors": vectors.astype(np.float32)}, folder / "expected.safetensors")
    clean(folder)
    print(name, vectors.shape, f"{np.abs(vectors).max():.2f}", [len(tokenizer(s, truncation=True)["input_ids"]) for s in SENTENCES])


def dense(width, out, seed, **how):
    layer = Dense(width, out, **how)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in layer.parameters():
            value.copy_((torch.randn(value.shape, generator=generator) * 0.3).half().float())
    return layer


def norm(width, seed):
    layer = LayerNorm(width)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.norm.weight.copy_((1 + torch.randn(width, generator=generator) * 0.2).half().float())
        layer.norm.bias.copy_((torch.randn(width, generator=generator) * 0.2).half().float())
    return layer


def ending_with(tokenizer, token):
    """Makes a tokenizer append one token to the text and prepend none, as those of T5 and Qwen3-Embedding do."""
    number = tokenizer.convert_tokens_to_ids(token)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {token}", special_tokens=[(token, number)]
    )
    return tokenizer


SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


def modernbert():
    tokenizer = tokenizer_of("bytes")
    config = hf.ModernBertConfig(
        vocab_size=len(tokenizer), **{**SMALL, "num_hidden_layers": 5}, max_position_embeddings=128, local_attention=8,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2,
    )
    model = rounded(hf.ModernBertModel(config), 100)
    write_sentences("modernbert", model, tokenizer, [Pooling(32, "mean"), Normalize()], 96)


def nomic_bert():
    tokenizer = tokenizer_of("wordpiece")
    config = hf.NomicBertConfig(vocab_size=len(tokenizer), **SMALL, max_position_embeddings=128)
    model = rounded(hf.NomicBertModel(config, add_pooling_layer=False), 101)
    prompts = {"search_document": "search_document: ", "search_query": "search_query: "}
    write_sentences("nomic_bert", model, tokenizer, [Pooling(32, "mean"), Normalize()], 64, prompts, "search_document", 24)


def debertav2():
    tokenizer = tokenizer_of("unigram")
    config = hf.DebertaV2Config(
        vocab_size=len(tokenizer), **SMALL, max_position_embeddings=64, relative_attention=True, position_buckets=8,
        max_relative_positions=-1, pos_att_type="p2c|c2p", share_att_key=True, norm_rel_ebd="layer_norm",
        position_biased_input=False, type_vocab_size=0, pad_token_id=1, layer_norm_eps=1e-7,
    )
    model = rounded(hf.DebertaV2Model(config), 102)
    write_sentences("deberta-v2", model, tokenizer, [Pooling(32, "cls")], 64)


def t5():
    tokenizer = ending_with(tokenizer_of("unigram"), "</s>")
    for name, feed in [("t5", "relu"), ("t5-gated", "gated-gelu")]:
        config = hf.T5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, feed_forward_proj=feed,
            relative_attention_num_buckets=8, relative_attention_max_distance=20, pad_token_id=1, eos_token_id=2,
        )
        model = rounded(hf.T5EncoderModel(config), 103)
        tail = [Pooling(32, "mean"), dense(32, 24, 104, bias=False, activation_function=torch.nn.Identity()), Normalize()]
        write_sentences(name, model, tokenizer, tail, 64, shards="20KB" if name == "t5-gated" else None)


def qwen3():
    tokenizer = ending_with(tokenizer_of("bytes"), "</s>")
    tokenizer.padding_side = "left"
    config = hf.Qwen3Config(
        vocab_size=len(tokenizer), **SMALL, num_key_value_heads=2, head_dim=16, max_position_embeddings=128, rope_theta=1e6,
        tie_word_embeddings=True,
    )
    model = rounded(hf.Qwen3Model(config), 105)
    write_sentences("qwen3", model, tokenizer, [Pooling(32, "lasttoken"), Normalize()], 64)


def heads():
    """Writes a BERT model of the fast path, followed by every supported module, with several pooling modes."""
    tokenizer = tokenizer_of("wordpiece")
    config = hf.BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **{**SMALL, "num_hidden_layers": 1}, max_position_embeddings=64)
    model = rounded(hf.BertModel(config), 106)
    modes = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    tail = [
        Pooling(32, modes), dense(192, 40, 107), norm(40, 108), dense(40, 24, 109, activation_function=torch.nn.GELU()),
        dense(24, 24, 110, use_residual=True, activation_function=torch.nn.ReLU()), Normalize(),
    ]
    write_sentences("heads", model, tokenizer, tail, 64)


class JinaLayer(torch.nn.Module):
    """A layer of jina-embeddings-v2: BERT's attention with ALiBi, a gated feed-forward layer, and post-norm."""

    def __init__(self, width, heads, inner):
        super().__init__()
        make = torch.nn.Linear
        self.attention = torch.nn.ModuleDict({
            "self": torch.nn.ModuleDict({name: make(width, width) for name in ("query", "key", "value")}),
            "output": torch.nn.ModuleDict({"dense": make(width, width), "LayerNorm": torch.nn.LayerNorm(width, eps=1e-12)}),
        })
        self.mlp = torch.nn.ModuleDict({
            "gated_layers": make(width, 2 * inner, bias=False), "wo": make(inner, width),
            "layernorm": torch.nn.LayerNorm(width, eps=1e-12),
        })
        self.heads, self.inner = heads, inner

    def forward(self, x):
        n, d = x.shape
        split = lambda name: self.attention["self"][name](x).view(n, self.heads, -1).transpose(0, 1)
        scores = split("query") @ split("key").transpose(1, 2) / math.sqrt(d / self.heads)
        distance = (torch.arange(n)[:, None] - torch.arange(n)[None, :]).abs()
        slopes = torch.tensor([2.0 ** (-8.0 * (head + 1) / self.heads) for head in range(self.heads)])
        weights = (scores - slopes[:, None, None] * distance).softmax(-1)
        mixed = (weights @ split("value")).transpose(0, 1).reshape(n, d)
        out = self.attention["output"]
        x = out["LayerNorm"](out["dense"](mixed) + x)
        gated = self.mlp["gated_layers"](x)
        inner = torch.nn.functional.gelu(gated[:, : self.inner]) * gated[:, self.inner:]
        return self.mlp["layernorm"](self.mlp["wo"](inner) + x)


class Jina(torch.nn.Module):
    """jina-embeddings-v2 (arXiv 2310.19923). Its code is only on the Hugging Face Hub, so this class follows the paper, with four heads."""

    def __init__(self, vocabulary, width, heads, inner, layers):
        super().__init__()
        self.embeddings = torch.nn.ModuleDict({
            "word_embeddings": torch.nn.Embedding(vocabulary, width), "token_type_embeddings": torch.nn.Embedding(2, width),
            "LayerNorm": torch.nn.LayerNorm(width, eps=1e-12),
        })
        self.encoder = torch.nn.ModuleDict({
            "layer": torch.nn.ModuleList(JinaLayer(width, heads, inner) for _ in range(layers))
        })

    def forward(self, tokens):
        embedded = self.embeddings["word_embeddings"](tokens) + self.embeddings["token_type_embeddings"].weight[0]
        x = self.embeddings["LayerNorm"](embedded)
        for layer in self.encoder["layer"]:
            x = layer(x)
        return x


def jina_bert():
    folder = folder_of("jina_bert")
    tokenizer = tokenizer_of("wordpiece")
    model = rounded(Jina(len(tokenizer), 32, 4, 48, 3), 111)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    save_file({name: value.numpy() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    config = {
        "model_type": "bert", "architectures": ["JinaBertModel"], "attn_implementation": "torch", "emb_pooler": "mean",
        "feed_forward_type": "geglu", "hidden_act": "gelu", "position_embedding_type": "alibi", "layer_norm_eps": 1e-12,
        "max_position_embeddings": 128, "type_vocab_size": 2, "vocab_size": len(tokenizer), "pad_token_id": 0,
        "model_max_length": 128, "classifier_dropout": None, "initializer_range": 0.02, **SMALL,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [{"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{t}"} for i, (p, t) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    ids = [tokenizer(s.strip(), truncation=True, max_length=64)["input_ids"] for s in SENTENCES]
    with torch.no_grad():
        vectors = np.stack([model(torch.tensor(tokens)).mean(0).numpy() for tokens in ids])
    save_file({"vectors": vectors.astype(np.float32)}, folder / "expected.safetensors")
    clean(folder)
    print("jina_bert", vectors.shape)


SIDE = 32


def image_files():
    """Yields the images that make_encoder_fixtures.py wrote, as the reference sees them: upright, in RGB on white. Only some of the
    reference's processors convert images themselves; Pillow would clip 16-bit levels."""
    for name in json.loads((OUT.parent / "images.json").read_text()):
        image = opened(OUT.parent / "images" / name)
        if name == "deep-grey.png":
            image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
        yield to_rgb(image)


def write_images(name, model, processor, vector):
    """Saves an image encoder with its processor, and its vectors of the image files, encoded one by one."""
    folder = folder_of(name)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    with torch.no_grad():
        pixels = [torch.tensor(np.array(processor(image)["pixel_values"])) for image in image_files()]
        vectors = torch.cat([vector(model, one.reshape(1, *one.shape[-3:])) for one in pixels]).numpy()
    save_file({"images": vectors.astype(np.float32)}, folder / "expected.safetensors")
    clean(folder)
    print(name, vectors.shape, f"{np.abs(vectors).max():.2f} {vectors.std(0).mean():.2f}", tuple(pixels[0].shape))


def statistics(model, seed):
    """Draws the statistics of batch normalisations, and rounds them to half precision."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bn.weight"):
                value.add_(1.0).copy_(value.half().float())
        for name, value in model.named_buffers():
            if value.dtype == torch.float32:
                drawn = torch.randn(value.shape, generator=generator) * 0.2
                value.copy_((drawn.abs() + 0.5 if name.endswith("var") else drawn).half().float())
    return model


def siglip():
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    text = {**SMALL, "num_hidden_layers": 1, "vocab_size": 20}
    config = hf.SiglipConfig(text_config=text, vision_config={**SMALL, "image_size": SIDE, "patch_size": 8})
    model = rounded(hf.SiglipModel(config), 200)
    processor = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    write_images("siglip", model, processor, lambda model, x: model.vision_model(x).pooler_output)


def vit():
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    config = hf.ViTConfig(**SMALL, image_size=SIDE, patch_size=8)
    model = rounded(hf.ViTModel(config), 201)
    processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, rescale_factor=1 / 200, resample=1)
    write_images("vit", model, processor, lambda model, x: model(x).last_hidden_state[:, 0])


def dinov2():
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    for name, gated in [("dinov2", False), ("dinov2-gated", True)]:
        config = hf.Dinov2Config(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=42 if gated else 70, patch_size=14,
            use_swiglu_ffn=gated,
        )
        model = rounded(hf.Dinov2Model(config), 202)
        processor = BitImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42})
        write_images(name, model, processor, lambda model, x: model(x).pooler_output)


def convnext():
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875, resample=3)
    for name, config, kind in [("convnext", hf.ConvNextConfig, hf.ConvNextModel), ("convnextv2", hf.ConvNextV2Config, hf.ConvNextV2Model)]:
        model = rounded(kind(config(**sizes)), 203, 1.5)
        write_images(name, model, processor, lambda model, x: model(x).pooler_output)


def efficientnet():
    from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

    config = hf.EfficientNetConfig(
        image_size=65, width_coefficient=0.25, depth_coefficient=1.1, hidden_dim=320, in_channels=[32, 16, 24, 40],
        out_channels=[16, 24, 40, 80], kernel_sizes=[3, 3, 5, 3], strides=[1, 2, 2, 1], num_block_repeats=[1, 2, 2, 1],
        expand_ratios=[1, 6, 6, 6], depthwise_padding=[1],
    )
    model = statistics(rounded(hf.EfficientNetModel(config), 204, 0.9), 205)
    processor = EfficientNetImageProcessorPil(
        size={"height": 65, "width": 65}, resample=0, rescale_factor=1 / 127.5, rescale_offset=True
    )
    write_images("efficientnet", model, processor, lambda model, x: model(x).pooler_output)


def eva02():
    import timm
    from timm.data import create_transform, resolve_data_config
    from timm.models.eva import Eva

    folder = folder_of("eva02")
    model = rounded(Eva(
        img_size=448, patch_size=14, embed_dim=64, depth=2, num_heads=1, qkv_fused=False, mlp_ratio=4 * 2 / 3, swiglu_mlp=True,
        scale_mlp=True, use_rot_pos_emb=True, ref_feat_shape=(16, 16), num_classes=3,
    ), 206)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    settings = {"input_size": [3, 448, 448], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center", "mean": mean, "std": std}
    config = {
        "architecture": "eva02_base_patch14_448", "num_classes": 3, "num_features": 64, "global_pool": "avg",
        "pretrained_cfg": {**settings, "tag": "random", "fixed_input_size": True, "classifier": "head", "license": "mit"},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: value.numpy() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    transform = create_transform(**resolve_data_config(settings))
    names = ["rgb.png", "turned-6.jpg", "wide.png", "tall.png", "alpha.png"]
    with torch.no_grad():
        images = [opened(OUT.parent / "images" / name) for name in names]
        pixels = [transform(to_rgb(image))[None] for image in images]
        vectors = torch.cat([model.forward_head(model.forward_features(x), pre_logits=True) for x in pixels]).numpy()
    save_file({"images": vectors.astype(np.float32)}, folder / "expected.safetensors")
    (folder / "images.json").write_text(json.dumps(names) + "\n")
    clean(folder)
    print("eva02", timm.__version__, vectors.shape, f"{np.abs(vectors).max():.2f} {vectors.std(0).mean():.2f}")


def resizes():
    """Writes the results of resizing a small pattern with every filter of Pillow, in both orders of its passes."""
    lines = []
    for width, height, new_width, new_height in [(9, 30, 4, 6), (30, 9, 6, 4), (9, 30, 5, 20), (7, 5, 9, 11), (13, 9, 20, 5)]:
        y, x = np.mgrid[0:height, 0:width]
        levels = ((37 * x + 59 * y + 11 * x * y) % 256).astype(np.uint8)
        image = Image.fromarray(np.stack([levels] * 3, -1))
        for number, name in enumerate(["Nearest", "Lanczos", "Bilinear", "Bicubic"]):
            found = np.asarray(image.resize((new_width, new_height), number))[:, :, 0].ravel().tolist()
            lines.append(f"    ({width}, {height}, {new_width}, {new_height}, Filter::{name}, &{found}),")
    (OUT.parent / "pillow_resize.txt").write_text("[\n" + "\n".join(lines) + "\n]\n")


def sounds():
    """Writes sound files: short, longer than a window of one second, with two channels, silent, and with one sample."""
    import soundfile

    folder = OUT.parent / "sounds"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    time = np.arange(25_600) / 16_000
    chirp = 0.4 * np.sin(2 * np.pi * (200 + 900 * time) * time) * np.exp(-time) + 0.05 * np.sin(2 * np.pi * 3100 * time)
    files = {
        "short.wav": (chirp[:5_900], "PCM_16"), "long.flac": (chirp, "PCM_16"), "deep.wav": (chirp[:3_200], "PCM_24"),
        "float.wav": (chirp[:3_201], "FLOAT"), "stereo.flac": (np.stack([chirp[:4_000], chirp[2_000:6_000]], -1), "PCM_16"),
        "silent.wav": (np.zeros(2_000), "PCM_16"), "one.wav": (chirp[100:101], "PCM_16"),
    }
    for name, (samples, kind) in files.items():
        soundfile.write(folder / name, samples, 16_000, subtype=kind)
    return folder, list(files)


def whisper():
    import soundfile

    config = hf.WhisperConfig(
        vocab_size=20, num_mel_bins=20, d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=48, decoder_layers=1,
        decoder_attention_heads=4, decoder_ffn_dim=8, max_source_positions=50, max_target_positions=4, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )
    model = rounded(hf.WhisperModel(config), 300)
    extractor = hf.WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    folder = folder_of("whisper")
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    sounds_folder, names = sounds()
    vectors = []
    for name in names:
        samples, rate = soundfile.read(sounds_folder / name, dtype="float32", always_2d=True)
        samples = samples.mean(1)
        frames = []
        for first in range(0, len(samples), 16_000):
            window = samples[first : first + 16_000]
            features = extractor(window, sampling_rate=rate, return_tensors="pt")["input_features"]
            with torch.no_grad():
                frames.append(model.encoder(features).last_hidden_state[0, : math.ceil(len(window) / 320)])
        vectors.append(torch.cat(frames).mean(0).numpy())
    save_file({"sounds": np.stack(vectors)}, folder / "expected.safetensors")
    (OUT.parent / "sounds.json").write_text(json.dumps(names) + "\n")
    clean(folder)
    print("whisper", np.stack(vectors).shape, f"{np.abs(vectors).max():.2f} {np.std(vectors, 0).mean():.2f}")


ALL = {
    f.__name__: f
    for f in [modernbert, nomic_bert, debertav2, t5, qwen3, heads, jina_bert, siglip, vit, dinov2, convnext, efficientnet, eva02, whisper, resizes]
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ALL:
        ALL[name]()
