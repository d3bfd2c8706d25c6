"""Generates EVENTS events as FOLDER/events.tsv and FOLDER/reviews.json.gz (Amazon 2018 format), and their items as FOLDER/meta.json.gz.

usage: python3 generate.py FOLDER [EVENTS]
"""

import gzip
import json
import random
import sys
from pathlib import Path

WORDS = "soft warm small large red blue cotton wool gift great quality colour nice works well really very would buy again".split()


def main():
    folder = Path(sys.argv[1])
    events = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000_000
    users, items = events // 10, events // 50
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1).random
    texts = [" ".join(WORDS[int(draw() * len(WORDS))] for _ in range(25)) for _ in range(1000)]
    with open(folder / "events.tsv", "w") as tsv, gzip.open(folder / "reviews.json.gz", "wt", compresslevel=1) as reviews:
        tsv.write("user_id\titem_id\ttimestamp\n")
        for event in range(events):
            # Some users and items have many events, and many have few; about one event in fifty repeats a user-item pair.
            user, item = f"A{int(users * draw() ** 2):013d}", f"B{int(items * draw() ** 3):09d}"
            time = 1_300_000_000 + int(draw() * 2500) * 86_400
            tsv.write(f"{user}\t{item}\t{time}\n")
            text = texts[event % 1000]
            reviews.write(
                f'{{"overall": 5.0, "verified": true, "reviewTime": "06 17, 2018", "reviewerID": "{user}", "asin": "{item}", '
                f'"reviewerName": "Customer", "reviewText": "{text}", "summary": "Five Stars", "unixReviewTime": {time}}}\n'
            )
    with gzip.open(folder / "meta.json.gz", "wt", compresslevel=1) as meta:
        for item in range(items):
            title, text = texts[item % 1000][:40], texts[item % 999]
            record = {"asin": f"B{item:09d}", "title": title, "description": [f"<p>{text}. {text} &amp; more.</p>"]}
            record |= {"feature": [title], "brand": "Acme", "also_buy": ["B000000001"] * 20, "imageURLHighRes": []}
            meta.write(json.dumps(record) + "\n")


main()
