#!/usr/bin/env python3
"""Keeps `mp4sr serve` busy with everything that goes wrong in the field, and checks every answer.

Well-behaved clients compare each list with what the weights in service give; meanwhile others are killed in the middle of requests, send
bodies that are not requests, read and write one byte at a time, and every minute other weights are loaded. Counts lost, wrong and
mixed-up answers (a list of other weights than the answer names), server errors, and the memory of the service over time. Exit code 1 if
any of these is not as it should be. With --python, schemathesis first makes requests from the service's own description.

    python3 tools/bench_serve/soak.py --program target/release/mp4sr --bench target/release/mp4sr-bench --minutes 30
"""
import argparse
import collections
import http.client
import json
import os
import random
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

ITEMS = 8000
HISTORIES = 64
# The share by which memory at rest may grow over the whole time.
GROWTH = 0.05
# Seconds without requests before memory at rest is measured.
REST = 4


class Soak:
    def __init__(self, a, folder):
        self.a, self.folder, self.stop = a, folder, threading.Event()
        self.counts, self.lock, self.problems = collections.Counter(), threading.Lock(), []
        self.memory, self.at_rest = [], []
        self.may_ask = threading.Event()
        self.may_ask.set()
        self.weights = [self.world(seed) for seed in (1, 2)]
        self.run = os.path.join(folder, "1", "bench", "runs", "sasrec")
        chance = random.Random(1)
        self.histories = [[f"i{chance.randrange(ITEMS)}" for _ in range(chance.randrange(1, 50))] for _ in range(HISTORIES)]

    def world(self, seed):
        """Writes the run with other weights, and keeps those."""
        folder = os.path.join(self.folder, str(seed))
        subprocess.run([self.a.bench, "serve-world", "--folder", folder, "--items", str(ITEMS), "--seed", str(seed)], check=True, capture_output=True)
        kept = os.path.join(self.folder, f"weights.{seed}")
        shutil.copy(os.path.join(folder, "bench", "runs", "sasrec", "finetune.safetensors"), kept)
        return kept

    def put_weights(self, number):
        """Generation 1, 3, 5, ... have the first weights."""
        path = os.path.join(self.run, "finetune.safetensors")
        shutil.copy(self.weights[(number + 1) % 2], path + ".new")
        os.replace(path + ".new", path)

    def start(self):
        self.put_weights(1)
        words = [self.a.program, "serve", "--run", self.run, "--port", "0", "--time-limit", "10000"]
        self.log = open(os.path.join(self.folder, "log"), "w", encoding="utf-8")
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.address = self.process.stdout.readline().strip().removeprefix("http://")
        self.host, port = self.address.rsplit(":", 1)
        self.port = int(port)
        self.expected = {1: [self.list_of(history) for history in self.histories]}
        self.swap(2)
        self.expected[0] = [self.list_of(history) for history in self.histories]
        if self.expected[0] == self.expected[1]:
            raise RuntimeError("both weights give the same lists")

    def ask(self, connection, history):
        connection.request("POST", "/v1/recommend", json.dumps({"history": history, "k": 10}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def list_of(self, history):
        status, body = self.ask(http.client.HTTPConnection(self.host, self.port, timeout=60), history)
        if status != 200:
            raise RuntimeError(f"{status}: {body}")
        return [item["item_id"] for item in body["items"]]

    def swap(self, number):
        self.put_weights(number)
        self.process.send_signal(signal.SIGHUP)
        for _ in range(600):
            connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
            connection.request("GET", "/readyz")
            if json.loads(connection.getresponse().read())["generation"] == number:
                self.generation = number
                self.count("swaps")
                return
            time.sleep(0.1)
        self.problem("a swap did not happen")

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def problem(self, what):
        with self.lock:
            self.counts["problems"] += 1
            if len(self.problems) < 20:
                self.problems.append(what)

    def well_behaved(self, seed):
        chance, connection = random.Random(seed), None
        while self.goes_on():
            at = chance.randrange(HISTORIES)
            try:
                connection = connection or http.client.HTTPConnection(self.host, self.port, timeout=60)
                status, body = self.ask(connection, self.histories[at])
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.count("lost")
                self.problem(f"a request was lost: {error!r}")
                connection = None
                continue
            if status in (429, 503):
                self.count("asked to retry")
                time.sleep(0.1)
            elif status != 200:
                self.problem(f"{status}: {body}")
            elif [item["item_id"] for item in body["items"]] != self.expected[body["generation"] % 2][at]:
                self.count("wrong")
                self.problem(f"history {at} of generation {body['generation']}: {body}")
            else:
                self.count("right")
            if chance.random() < 0.01:
                connection.close()
                connection = None

    def request(self, chance, body=None):
        body = body if body is not None else json.dumps({"history": chance.choice(self.histories), "k": 10}).encode()
        return b"POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    def killed(self, seed):
        """Runs clients that end in the middle of a request, or before they have read the answer."""
        chance = random.Random(seed)
        while self.goes_on():
            with self.connect() as stream:
                text = self.request(chance)
                stream.sendall(text[: chance.randrange(len(text) + 1)])
                if chance.random() < 0.5:
                    time.sleep(chance.random() * 0.01)
                # Reset, not closed: as if the process was killed.
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.count("killed clients")

    def malformed(self, seed):
        chance = random.Random(seed)
        while self.goes_on():
            body = bytearray(json.dumps({"history": chance.choice(self.histories), "k": 10}).encode())
            for _ in range(chance.randrange(1, 8)):
                body[chance.randrange(len(body))] = chance.randrange(256)
            if chance.random() < 0.3:
                body = bytearray(chance.randbytes(chance.randrange(300)))
            path = chance.choice(["/v1/recommend", "/v1/similar", "/v1/recommend?x=1", "/v1/nothing"])
            try:
                connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
                connection.request("POST", path, bytes(body))
                answer = connection.getresponse()
                if answer.status >= 500 and answer.status != 503:
                    self.problem(f"{answer.status} for {bytes(body)!r}: {answer.read()!r}")
                self.count("malformed bodies")
            except (OSError, http.client.HTTPException) as error:
                self.problem(f"no answer to {bytes(body)!r}: {error!r}")
            with self.connect() as stream:
                stream.sendall(chance.randbytes(chance.randrange(1, 200)) + b"\r\n\r\n")
                self.count("bytes that are not HTTP")

    def slow(self, seed):
        """Runs clients that write, then read, one byte at a time."""
        chance = random.Random(seed)
        while self.goes_on():
            try:
                with self.connect() as stream:
                    for byte in self.request(chance, b'{"history": ["i1"]}'):
                        stream.sendall(bytes([byte]))
                        time.sleep(0.005)
                    got = b""
                    while not got.endswith(b"}") and not self.stop.is_set():
                        byte = stream.recv(1)
                        if not byte:
                            break
                        got += byte
                        time.sleep(0.002)
                self.count("slow clients")
            except OSError:
                self.count("slow clients that were left")

    def connect(self):
        return socket.create_connection((self.host, self.port), timeout=60)

    def goes_on(self):
        """Whether a client makes another request; waits while the service rests."""
        self.may_ask.wait()
        return not self.stop.is_set()

    def resident(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))

    def look(self):
        while not self.stop.wait(5):
            self.memory.append(self.resident())

    def rest(self):
        """Under load, memory goes up and down with connections and swaps; at rest it is what the service keeps."""
        self.may_ask.clear()
        time.sleep(REST)
        self.at_rest.append(self.resident())
        self.may_ask.set()

    def go(self):
        self.start()
        if self.a.python:
            self.fuzz()
        kinds = [self.well_behaved] * 6 + [self.killed] * 2 + [self.malformed] * 2 + [self.slow] * 4 + [lambda _: self.look()]
        threads = [threading.Thread(target=kind, args=(seed,), daemon=True) for seed, kind in enumerate(kinds)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60 * self.a.minutes
        while time.monotonic() < end and self.process.poll() is None:
            time.sleep(min(self.a.swap_seconds, max(0.0, end - time.monotonic())))
            self.rest()
            if time.monotonic() < end:
                self.swap(self.generation + 1)
        self.stop.set()
        for thread in threads:
            thread.join(timeout=70)
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(timeout=60) != 0:
            self.problem(f"the service ended with {self.process.returncode}")
        self.report()

    def fuzz(self):
        """Runs requests that schemathesis makes from the description, without those that change items, which a run of ids refuses."""
        words = [self.a.python, "-m", "schemathesis.cli", "run", f"http://{self.address}/openapi.json", "--max-examples", str(self.a.examples),
                 "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True)
        print(done.stdout[-3000:])
        if done.returncode:
            self.problem(f"schemathesis ended with {done.returncode}: {done.stderr[-300:]}")

    def report(self):
        """Memory is flat if the line through what it was at rest rises by no more than a twentieth of its mean."""
        growth = 0.0
        if len(self.at_rest) > 2:
            slope, _ = statistics.linear_regression(range(len(self.at_rest)), self.at_rest)
            growth = slope * (len(self.at_rest) - 1) / statistics.mean(self.at_rest)
            if growth > GROWTH:
                self.problem(f"memory at rest grew by {100 * growth:.1f} %")
        series = [round(value) for value in self.memory[:: max(1, len(self.memory) // 30)]]
        result = {"minutes": self.a.minutes, **dict(sorted(self.counts.items())), "growth_at_rest": round(growth, 4), "at_rest_mib": [round(value, 1) for value in self.at_rest], "memory_series_mib": series}
        print(json.dumps(result))
        for problem in self.problems:
            print(problem, file=sys.stderr)
        sys.exit(1 if self.problems else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--bench", required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--swap-seconds", type=float, default=60)
    parser.add_argument("--python", help="a Python with schemathesis")
    parser.add_argument("--examples", type=int, default=200, help="requests that schemathesis makes of each kind")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(a, folder)
        try:
            soak.go()
        finally:
            if getattr(soak, "process", None) and soak.process.poll() is None:
                soak.process.kill()


if __name__ == "__main__":
    main()
