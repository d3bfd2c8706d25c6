#!/usr/bin/env python3
"""Trains the two tiny encoders that are part of the project, on the sample world.

    for seed in 1 101 102 103; do mp4sr sample --seed $seed --out /tmp/worlds/$seed; done
    python3 -m venv /tmp/venv
    /tmp/venv/bin/pip install torch==2.6.0 transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6 pillow==13.0.0
    /tmp/venv/bin/python tools/train_tiny_encoders.py --raw /tmp/worlds/1 /tmp/worlds/101 /tmp/worlds/102 /tmp/worlds/103

Python 3.11 was used. Training the weights in the repository took 957 s on one core of a busy two-core machine (CLIP 795 s, sentences
150 s). The results on the 170 held-out images, with a dictionary of 565 words (a random word is among the 15 with probability 0.027):

                                          colour  pattern  shape  kind
    own word among the 15 words            1.000    0.959  0.988  0.982
    a word of another value among them     0.000    0.011  0.019  0.006
    linear probe on the 15 words' vector   1.000    0.959  0.976  0.982

The test in crates/extract/tests/extract.rs requires 0.97, 0.90, 0.93 and 0.93 for the first row.

data/encoders/tiny-clip      CLIPModel: images (64 px, patches of 8 px), captions and single words.
data/encoders/tiny-sentence  BertModel with mean pooling: sentences and word lists that share attributes get similar vectors.

The first world of --raw is that of the demo. Its items that are marked `held_out` in truth.json are used only for the numbers above, never
for training. The other worlds are the same shop generated with other seeds; they add images and sentences, but no new attributes.
"""

import argparse
import gzip
import json
import math
import random
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
SIDE = 64

# Words for the attributes that an image shows. The first word of each group is that of truth.json.
WORDS = {
    "colour": [
        "red crimson scarlet ruby", "orange tangerine amber apricot", "yellow golden lemon mustard",
        "green emerald olive lime", "teal turquoise aqua cyan", "blue navy azure cobalt", "purple violet lilac plum",
        "pink rose magenta fuchsia", "brown chestnut chocolate bronze", "black ebony charcoal dark",
        "white ivory pale cream", "grey gray silver metallic",
    ],
    "pattern": [
        "plain solid uniform smooth", "striped stripes lines pinstripe", "dotted dots spotted polka",
        "checked chequered plaid gingham", "floral flowers blossom leafy", "zigzag chevron wavy herringbone",
        "starry stars star", "triangular triangles geometric angular",
    ],
    "shape": ["round circular circle", "square boxy cube", "tall long narrow", "wide broad low", "tapered conical cone"],
    "kind": [
        "mug cup handle", "lamp light lampshade pedestal", "shirt tee sleeves collar", "cushion pillow padded tassel",
        "bag tote handbag strap", "rug mat carpet fringe", "vase vessel flowerpot", "notebook journal spiral cover",
        "clock timepiece dial", "candle taper flame", "bottle flask cap lid", "tray platter serving",
    ],
}
WORDS = {key: [group.split() for group in groups] for key, groups in WORDS.items()}
VISIBLE = ["colour", "pattern", "shape", "kind"]


def read_world(folder):
    truth = json.loads((folder / "truth.json").read_text())
    texts = {}
    with gzip.open(folder / "meta.json.gz", "rt") as lines:
        for line in lines:
            meta = json.loads(line)
            sentences = [meta["title"], *meta["feature"]]
            for paragraph in meta["description"]:
                sentences += re.split(r"(?<=[.!?]) ", paragraph)
            texts[meta["asin"]] = [s for s in sentences if s and not re.search(r"[<>&]", s)]
    return truth, texts


def pixels(path):
    image = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image)


class Labels:
    """Maps attribute values to columns, and words to the attribute values that they mention."""

    def __init__(self, vocabulary):
        self.column = {}
        self.phrases = []
        for attribute in ["kind", "colour", "pattern", "shape", "brand", "material", "usage", "style"]:
            for index, value in enumerate(vocabulary[attribute]):
                names = value if attribute == "kind" else [value]
                if attribute in WORDS:
                    names = list(dict.fromkeys([*names, *WORDS[attribute][index]]))
                self.column[attribute, names[0]] = len(self.column)
                for name in names:
                    self.phrases.append((name.lower(), self.column[attribute, names[0]], attribute in ("colour", "pattern", "shape")))
        self.width = len(self.column)

    def of_sentence(self, text):
        """Returns the labels of a sentence. Only written attributes are searched, because the texts never mention what an image shows."""
        row = np.zeros(self.width, np.float32)
        words = " " + " ".join(re.findall(r"[a-z]+", text.lower())) + " "
        for phrase, column, visible in self.phrases:
            if not visible and f" {phrase} " in words:
                row[column] = 1
        return row

    def of_picture(self, item):
        row = np.zeros(self.width, np.float32)
        for attribute in VISIBLE:
            row[self.column[attribute, item[attribute]]] = 1
        return row


def groups_of(item):
    """Returns the words of each visible attribute of an item."""
    return [next(group for group in WORDS[a] if group[0] == item[a]) for a in VISIBLE]


def caption(item, rng):
    colour, pattern, shape, kind = (rng.choice(group) for group in groups_of(item))
    return rng.choice([
        f"a photo of a {colour} {pattern} {kind}", f"a {shape} {colour} {kind}", f"{colour} {kind}",
        f"a {shape} {kind} with {pattern} pattern in {colour}", f"{pattern} {kind}", f"a {shape} {pattern} {colour} {kind}",
        f"a photo of a {shape} {kind}",
    ])


# ---------------------------------------------------------------- CLIP


def clip_tokenizer(corpus):
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=None))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pieces = pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=1498, end_of_word_suffix="</w>", initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(model["vocab"])
    # Every letter must also exist as the end of a word, and the end token must have the highest id, as in CLIP's tokenizer.
    for letter in pre_tokenizers.ByteLevel.alphabet():
        vocab.setdefault(letter + "</w>", len(vocab))
    start, end = len(vocab), len(vocab) + 1
    vocab["<|startoftext|>"], vocab["<|endoftext|>"] = start, end
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer.model = models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.enable_truncation(32)
    return tokenizer, start, end


def clip_ids(tokenizer, texts, end):
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    width = max(map(len, rows))
    return torch.tensor([row + [end] * (width - len(row)) for row in rows])


def text_vectors(model, tokenizer, texts, end):
    pooled = model.text_model(input_ids=clip_ids(tokenizer, texts, end)).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def image_vectors(model, batch):
    x = (batch.permute(0, 3, 1, 2).float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return F.normalize(model.visual_projection(model.vision_model(pixel_values=x).pooler_output), dim=-1)


def shaken(batch, generator):
    """Shifts images by up to three pixels and changes their brightness."""
    padded = F.pad(batch.permute(0, 3, 1, 2).float(), (3, 3, 3, 3), mode="replicate")
    dx, dy = torch.randint(0, 7, (2,), generator=generator).tolist()
    light = 0.92 + 0.16 * torch.rand(len(batch), 1, 1, 1, generator=generator)
    return (padded[:, :, dy : dy + SIDE, dx : dx + SIDE] * light).clamp(0, 255).permute(0, 2, 3, 1)


def train_clip(items, images, dictionary, corpus, epochs, seed):
    tokenizer, start, end = clip_tokenizer(corpus)
    config = CLIPConfig(
        text_config=dict(
            vocab_size=end + 1, hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=32, projection_dim=64, bos_token_id=start, eos_token_id=end, pad_token_id=end,
        ),
        vision_config=dict(
            hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, image_size=SIDE,
            patch_size=8, projection_dim=64,
        ),
        projection_dim=64,
    )
    model = CLIPModel(config)
    # The library initialises positions fourteen times smaller than patch embeddings; shapes would then be learned very late.
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=0.3)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    position = {word: i for i, word in enumerate(dictionary)}
    shown = len({word for groups in WORDS.values() for group in groups for word in group})
    truth = torch.zeros(len(items), len(dictionary))
    for row, item in enumerate(items):
        for group in groups_of(item):
            for word in group:
                truth[row, position[word]] = 1
    attributes = torch.tensor([[WORDS[a].index(g) for a, g in zip(VISIBLE, groups_of(item))] for item in items])
    batch_size, steps = 64, epochs * (len(items) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.1)
    started, step = time.time(), 0
    for epoch in range(epochs):
        order = torch.randperm(len(items), generator=generator)
        total = 0.0
        for at in range(0, len(items) - batch_size + 1, batch_size):
            chosen = order[at : at + batch_size]
            of_images = image_vectors(model, shaken(images[chosen], generator))
            scale = model.logit_scale.exp().clamp(max=60)
            # All words for attributes, and a sample of the many words that no image shows.
            asked = list(range(shown)) + rng.sample(range(shown, len(dictionary)), 48)
            words = text_vectors(model, tokenizer, [dictionary[i] for i in asked], end)
            logits = scale * of_images @ words.T
            positives = truth[chosen][:, asked]
            # All true words share the probability, so that all of them are ranked first.
            to_words = -(positives * F.log_softmax(logits, 1)).sum(1).div(positives.sum(1)).mean()
            beyond = F.binary_cross_entropy_with_logits(0.5 * logits - 4, positives)
            captions = text_vectors(model, tokenizer, [caption(items[i], rng) for i in chosen.tolist()], end)
            pairs = scale * of_images @ captions.T
            # Another image that shares three of four attributes may also match the caption, so it is not a negative.
            alike = (attributes[chosen][:, None] == attributes[chosen][None]).sum(2) >= 3
            pairs = pairs.masked_fill(alike & ~torch.eye(len(chosen), dtype=bool), -1e4)
            target = torch.arange(len(chosen))
            contrast = 0.5 * (F.cross_entropy(pairs, target) + F.cross_entropy(pairs.T, target))
            loss = to_words + 3 * beyond + 0.3 * contrast
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total, step = total + loss.item(), step + 1
        print(f"clip epoch {epoch + 1}/{epochs}: loss {total / (len(items) // batch_size):.4f}, {time.time() - started:.0f} s", flush=True)
    return model.eval(), tokenizer, end


@torch.no_grad()
def best_words(model, tokenizer, end, images, dictionary, count=15):
    words = text_vectors(model, tokenizer, dictionary, end)
    lists = []
    for at in range(0, len(images), 256):
        scores = image_vectors(model, images[at : at + 256]) @ words.T
        lists += [[dictionary[i] for i in row] for row in scores.topk(count, 1).indices.tolist()]
    return lists


# ---------------------------------------------------------------- sentences


def sentence_tokenizer(corpus):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = [chr(c) for c in range(33, 127)]
    trainer = trainers.WordPieceTrainer(vocab_size=2600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.enable_truncation(64)
    return tokenizer


def sentence_vectors(model, tokenizer, texts):
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = (ids != 0).long()
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weight = mask[..., None].float()
    return (hidden * weight).sum(1) / weight.sum(1)


def word_list(item, dictionary, rng):
    """Draws fifteen words as CLIP might choose them, with mistakes."""
    words = [word for group in groups_of(item) for word in rng.sample(group, rng.randint(max(1, len(group) - 2), len(group)))]
    rng.shuffle(words)
    return words + rng.sample(dictionary, max(0, 15 - len(words)))


def train_sentences(items, texts, chosen_words, labels, dictionary, corpus, steps, seed):
    tokenizer = sentence_tokenizer(corpus)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=192, max_position_embeddings=128, hidden_dropout_prob=0.05, attention_probs_dropout_prob=0.05,
    )
    model = BertModel(config, add_pooling_layer=False)
    probe = torch.nn.Linear(96, labels.width)
    sentences = sorted({s for item in items for s in texts.get(item["asin"], [])})
    known = {s: labels.of_sentence(s) for s in sentences}
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW([*model.parameters(), *probe.parameters()], lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    names = list(labels.column)
    started, total = time.time(), 0.0
    for step in range(steps):
        batch, rows = [], []
        for _ in range(48):
            sentence = rng.choice(sentences)
            batch.append(sentence)
            rows.append(known[sentence])
        for _ in range(40):
            i = rng.randrange(len(items))
            row = labels.of_picture(items[i])
            # Two descriptions of the same image should get similar vectors.
            for _ in range(2):
                way = rng.random()
                if way < 0.5:
                    words = list(chosen_words[i])
                    if rng.random() < 0.5:
                        words[rng.randrange(len(words))] = rng.choice(dictionary)
                    batch.append(" ".join(words))
                else:
                    batch.append(" ".join(word_list(items[i], dictionary, rng)))
                rows.append(row)
        for _ in range(16):
            attribute = rng.choice(VISIBLE)
            group = rng.choice(WORDS[attribute])
            row = np.zeros(labels.width, np.float32)
            row[labels.column[attribute, group[0]]] = 1
            batch.append(rng.choice(group))
            rows.append(row)
        target = torch.tensor(np.stack(rows))
        vectors = sentence_vectors(model, tokenizer, batch)
        guessed = F.binary_cross_entropy_with_logits(probe(vectors), target, reduction="none").sum(1).mean()
        # Soft contrastive loss: the similarity of two texts follows the attributes that they share.
        shared = F.normalize(target, dim=1) @ F.normalize(target, dim=1).T
        unit = F.normalize(vectors, dim=1)
        self_pairs = torch.eye(len(batch), dtype=bool)
        logits = (unit @ unit.T / 0.07).masked_fill(self_pairs, -1e4)
        wanted = (shared / 0.1).masked_fill(self_pairs, -1e4).softmax(1)
        informative = target.sum(1) > 0
        contrast = -(wanted * F.log_softmax(logits, 1)).sum(1)[informative].mean()
        loss = guessed + 0.5 * contrast
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if (step + 1) % 200 == 0:
            print(f"sentences step {step + 1}/{steps}: loss {total / 200:.4f}, {time.time() - started:.0f} s", flush=True)
            total = 0.0
    return model.eval(), probe, tokenizer, names


# ---------------------------------------------------------------- files


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def save(folder, model, tokenizer, config):
    folder.mkdir(parents=True, exist_ok=True)
    # Half precision takes half the space in the repository; both Python and Rust compute in f32.
    weights = {k: v.detach().half().contiguous() for k, v in model.state_dict().items() if "position_ids" not in k}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.no_truncation()
    tokenizer.save(str(folder / "tokenizer.json"))
    for path in folder.iterdir():
        path.chmod(0o644)
    config = {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version", "dtype")}
    write_json(folder / "config.json", config)


def accuracy(lists, items):
    """Returns, per attribute, how often the item's own word is among the chosen words, and how often the word of another value is."""
    figures = {}
    for index, attribute in enumerate(VISIBLE):
        own = np.mean([item[attribute] in words for words, item in zip(lists, items)])
        wrong = np.mean([sum(g[0] in words for g in WORDS[attribute] if g[0] != item[attribute]) / (len(WORDS[attribute]) - 1)
                         for words, item in zip(lists, items)])
        figures[attribute] = (own, wrong)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", nargs="+", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("data/encoders"))
    parser.add_argument("--visual", type=Path, default=Path("data/words/visual.txt"))
    parser.add_argument("--clip-epochs", type=int, default=24)
    parser.add_argument("--sentence-steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    started = time.time()

    items, held_out, texts, paths, held_paths = [], [], {}, [], []
    for number, folder in enumerate(arguments.raw):
        truth, world_texts = read_world(folder)
        if number == 0:
            vocabulary = truth["vocabulary"]
        for item in truth["items"]:
            if not item["image_decodes"]:
                continue
            if item["held_out"] and number == 0:
                held_out.append(item)
                held_paths.append(folder / item["image"])
            else:
                items.append(item)
                paths.append(folder / item["image"])
                texts[item["asin"]] = texts.get(item["asin"], []) + world_texts.get(item["asin"], [])
    images = torch.tensor(np.stack([pixels(path) for path in paths]))
    held_pictures = torch.tensor(np.stack([pixels(path) for path in held_paths]))
    print(f"{len(items)} training images, {len(held_out)} held-out images, {time.time() - started:.0f} s", flush=True)

    visual = [w for w in arguments.visual.read_text().split("\n") if w and not w.startswith("#")]
    written = sorted({w for ss in texts.values() for s in ss for w in re.findall(r"[a-z]{3,}", s.lower())})
    dictionary = list(dict.fromkeys([*[w for gs in WORDS.values() for g in gs for w in g], *visual, *written]))
    from pydoc_data import topics  # English text that is part of every Python installation, for letters and common subwords.

    english = [line for text in topics.topics.values() for line in text.split("\n")]
    sentences = [s for ss in texts.values() for s in ss]
    corpus = [*english, *sentences, *dictionary * 20]

    # The dictionary in Rust also contains the words of the texts, so CLIP must learn that images do not show them.
    clip, clip_tok, end = train_clip(items, images, dictionary, corpus, arguments.clip_epochs, arguments.seed)
    clip.half().float()
    for attribute, (own, wrong) in accuracy(best_words(clip, clip_tok, end, held_pictures, dictionary), held_out).items():
        print(f"held-out {attribute}: own word among 15 of {len(dictionary)} words: {own:.3f}; a word of another value: {wrong:.3f}")
    out = arguments.out / "tiny-clip"
    save(out, clip, clip_tok, {**clip.config.to_dict(), "architectures": ["CLIPModel"]})
    write_json(out / "preprocessor_config.json", {
        "crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": MEAN, "image_std": STD,
        "image_processor_type": "CLIPImageProcessor", "resample": 3, "rescale_factor": 1 / 255,
        "size": {"shortest_edge": SIDE},
    })

    labels = Labels(vocabulary)
    chosen_words = best_words(clip, clip_tok, end, images, dictionary)
    bert, probe, bert_tok, names = train_sentences(
        items, texts, chosen_words, labels, dictionary, corpus, arguments.sentence_steps, arguments.seed
    )
    bert.half().float()
    with torch.no_grad():
        lists = best_words(clip, clip_tok, end, held_pictures, dictionary)
        scores = probe(sentence_vectors(bert, bert_tok, [" ".join(words) for words in lists]))
        for attribute in VISIBLE:
            columns = [c for (a, _), c in labels.column.items() if a == attribute]
            values = [v for (a, v) in names if a == attribute]
            guess = [values[i] for i in scores[:, columns].argmax(1).tolist()]
            print(f"held-out {attribute} from the sentence vector of the 15 words: {np.mean([g == i[attribute] for g, i in zip(guess, held_out)]):.3f}")
    out = arguments.out / "tiny-sentence"
    save(out, bert, bert_tok, {**bert.config.to_dict(), "architectures": ["BertModel"]})
    write_json(out / "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ])
    write_json(out / "1_Pooling" / "config.json", {
        "word_embedding_dimension": 96, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
    })
    write_json(out / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})
    print(f"done in {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
