#!/usr/bin/env python3
"""Measures throughput and latency of `mp4sr serve`, with exact search and with an index, and of the same model behind FastAPI and PyTorch.

For every number of items, the benchmark creates an untrained SASRec run and starts the services one after the other. For every number
of connections, clients request ten items for histories of twenty items in a closed loop: each client sends its next request as soon as
the previous one is answered. Before the measurements, the lists that the two programs return are compared. The benchmark prints one JSON
object per measurement, then a table. Run it on an idle machine, because clients and services share its processors.

    python3 tools/bench_serve/compare.py --program target/release/mp4sr --bench target/release/mp4sr-bench [--peer PYTHON]
"""
import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
# The largest difference between the scores of the two programs (relative for scores above 1). The recall of the index is only printed.
TOLERANCE = 1e-4


def log(text):
    print(text, file=sys.stderr, flush=True)


def get(address, path):
    with urllib.request.urlopen(f"http://{address}{path}", timeout=60) as answer:
        return json.load(answer)


def ask(address, history):
    body = json.dumps({"history": history, "k": 10}).encode()
    request = urllib.request.Request(f"http://{address}/v1/recommend", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [(item["item_id"], item["score"]) for item in json.load(answer)["items"]]


class Service:
    """A service process that runs until the `with` block ends."""

    def __init__(self, command, environment, address=None):
        self.process = subprocess.Popen(
            command, env=dict(os.environ, **environment), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True, cwd=HERE
        )
        self.address = address or self.process.stdout.readline().strip().removeprefix("http://")
        if not self.address:
            raise RuntimeError(f"failed to start `{' '.join(command)}`: it printed no address")

    def __enter__(self):
        for _ in range(1200):
            try:
                self.ready = get(self.address, "/readyz")
                return self
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("failed to start a service: it did not become ready in time")

    def __exit__(self, *_):
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()

    def peak_mib(self):
        """Returns the peak memory of the service's main process in MiB, which does not include the workers of the peer."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def services(a, run):
    yield "exact", lambda: Service([a.program, "serve", "--run", run, "--port", "0"], {})
    yield "hnsw", lambda: Service([a.program, "serve", "--run", run, "--port", "0", "--index", "hnsw"], {})
    if a.peer:
        port = free_port()
        words = [a.peer, "-m", "uvicorn", "peer:app", "--workers", "2", "--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error"]
        yield "fastapi", lambda: Service(words, {"RUN": run}, f"127.0.0.1:{port}")


def same(ours, peer):
    """Returns whether two lists agree, except for the order of items whose scores are equal within rounding."""
    close = all(abs(a[1] - b[1]) <= TOLERANCE * max(1.0, abs(a[1])) for a, b in zip(ours, peer))
    return close and len({a[0] for a in ours} & {b[0] for b in peer}) >= 9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--bench", required=True)
    parser.add_argument("--peer", help="a Python interpreter with fastapi, uvicorn, httptools, uvloop, torch, safetensors and pyarrow")
    parser.add_argument("--items", type=int, nargs="+", default=[8000, 60000, 1000000])
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--services", nargs="+", default=["exact", "hnsw", "fastapi"], choices=["exact", "hnsw", "fastapi"])
    a = parser.parse_args()
    a.program, a.bench = os.path.abspath(a.program), os.path.abspath(a.bench)
    if not a.peer:
        log("the peer is skipped: set PYTHON=... to a Python interpreter with the packages that tools/bench_serve/peer.py requires")
    rows = []
    for items in a.items:
        with tempfile.TemporaryDirectory(prefix="bench-serve-") as folder:
            made = subprocess.run([a.bench, "serve-world", "--folder", folder, "--items", str(items)], check=True, capture_output=True, text=True)
            run = json.loads(made.stdout)["run"]
            histories = [[f"i{(7919 * at + 31 * user) % items}" for at in range(20)] for user in range(8)]
            expected = None
            for name, start in services(a, run):
                if name not in a.services:
                    continue
                log(f"{items} items: {name}")
                with start() as service:
                    lists = [ask(service.address, history) for history in histories]
                    expected = expected or lists
                    if name == "fastapi" and not all(same(x, y) for x, y in zip(expected, lists)):
                        raise RuntimeError(f"the lists differ: expected {expected[0]}, actual {lists[0]}")
                    for connections in a.connections:
                        words = ["--address", service.address, "--connections", str(connections), "--seconds", str(a.seconds), "--items", str(items)]
                        done = subprocess.run([a.bench, "serve-load", *words], capture_output=True, text=True)
                        if done.returncode:
                            raise RuntimeError(done.stderr)
                        row = {"items": items, "service": name, "search": service.ready.get("search", "exact"), **json.loads(done.stdout)}
                        row["peak_mib"] = service.peak_mib()
                        rows.append(row)
                        print(json.dumps(row), flush=True)
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} processors, {a.seconds} s each\n")
    print("| items | service | connections | answers/s | p50 ms | p99 ms | p99.9 ms | others | search |\n|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        print(f"| {r['items']:,} | {r['service']} | {r['connections']} | {r['per_s']:,.0f} | {r['p50_ms']:.2f} | {r['p99_ms']:.2f} | {r['p999_ms']:.2f} | {r['other']} | {r['search']} |")


if __name__ == "__main__":
    main()
