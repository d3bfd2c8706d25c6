"""Serves the SASRec model of a run with FastAPI and PyTorch, with the interface of `POST /v1/recommend` of `mp4sr serve`.

    RUN=artifacts/bench/runs/sasrec uvicorn peer:app --workers 2 --loop uvloop --http httptools --no-access-log

A request contains item ids; its response contains ids, titles and scores. The program requires fastapi, uvicorn, httptools, uvloop,
torch, safetensors and pyarrow. Each worker uses one PyTorch thread.
"""
import os

import pyarrow.parquet
import torch
import torch.nn.functional as F
from fastapi import FastAPI
from pydantic import BaseModel
from safetensors.torch import load_file

torch.set_num_threads(1)
RUN = os.environ["RUN"]
ROOT = os.path.dirname(os.path.dirname(RUN))
HEADS, LAYERS, LENGTH = 2, 2, 50

table = pyarrow.parquet.read_table(os.path.join(ROOT, "dataset", "items.parquet"), columns=["item_id", "title"])
IDS, TITLES = table["item_id"].to_pylist(), table["title"].to_pylist()
ROWS = {id_: row for row, id_ in enumerate(IDS)}
P = load_file(os.path.join(RUN, "finetune.safetensors"))
ITEMS = P["item_embedding"]
COLUMNS = ITEMS.T.contiguous()
app = FastAPI()


class Asked(BaseModel):
    history: list[str]
    k: int = 10


def norm(x, name):
    return F.layer_norm(x, x.shape[-1:], P[f"{name}.weight"], P[f"{name}.bias"], eps=1e-12)


def linear(x, name):
    return x @ P[f"{name}.weight"] + P[f"{name}.bias"]


def query(rows):
    """Returns the output of the transformer at the last item of a history, `[d]`."""
    x = norm(ITEMS[rows] + P["position"][: len(rows)], "input_norm")
    for layer in (f"layer.{number}" for number in range(LAYERS)):
        q, k, v = (linear(x, f"{layer}.attention.{part}").view(len(rows), HEADS, -1).transpose(0, 1) for part in ("query", "key", "value"))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(len(rows), -1)
        x = norm(x + linear(h, f"{layer}.attention.output"), f"{layer}.attention.norm")
        h = linear(F.gelu(linear(x, f"{layer}.feed_forward.up")), f"{layer}.feed_forward.down")
        x = norm(x + h, f"{layer}.feed_forward.norm")
    return x[-1]


@app.post("/v1/recommend")
async def recommend(asked: Asked):
    rows = [ROWS[id_] for id_ in asked.history if id_ in ROWS][-LENGTH:]
    with torch.inference_mode():
        scores, best = torch.topk(query(rows) @ COLUMNS, asked.k)
    return {
        "items": [
            {"item_id": IDS[row], "title": TITLES[row], "score": score} for row, score in zip(best.tolist(), scores.tolist())
        ]
    }


@app.get("/readyz")
async def readyz():
    return {"status": "ok"}
