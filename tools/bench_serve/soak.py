#!/usr/bin/env python3
"""Runs a soak test of `mp4sr serve` with the failures that occur in production, and checks every response.

Well-behaved clients compare each list with the one that the current weights give. Meanwhile, other clients are killed in the middle of a
request, send malformed bodies, or read and write one byte at a time, and other weights are loaded every minute. In a second service, whose
run can rank new items, items are added and removed all the time; its lists of other items must not change. The test counts lost and wrong
responses (including lists of another generation than the response names) and server errors, and records the memory of the service
over time. The exit code is 1 if any check fails. With --python, schemathesis first sends requests that it generates from the OpenAPI
description of the service.

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
# The share by which memory at rest may grow over the whole test.
GROWTH = 0.05
# Seconds without requests before memory at rest is measured.
REST = 4


class Soak:
    def __init__(self, a, folder):
        self.a, self.folder, self.stop = a, folder, threading.Event()
        self.counts, self.lock, self.problems = collections.Counter(), threading.Lock(), []
        self.memory, self.at_rest, self.of_files = [], [], []
        self.may_ask = threading.Event()
        self.may_ask.set()
        self.services = []
        self.weights = [self.world(seed) for seed in (1, 2)]
        self.run = os.path.join(folder, "1", "bench", "runs", "sasrec")
        chance = random.Random(1)
        self.histories = [[f"i{chance.randrange(ITEMS)}" for _ in range(chance.randrange(1, 50))] for _ in range(HISTORIES)]

    def world(self, seed):
        """Writes a run whose weights depend on the seed, and returns the path of a copy of the weights."""
        folder = os.path.join(self.folder, str(seed))
        subprocess.run([self.a.bench, "serve-world", "--folder", folder, "--items", str(ITEMS), "--seed", str(seed)], check=True, capture_output=True)
        kept = os.path.join(self.folder, f"weights.{seed}")
        shutil.copy(os.path.join(folder, "bench", "runs", "sasrec", "finetune.safetensors"), kept)
        return kept

    def put_weights(self, number):
        """Installs the weights of a generation; generations 1, 3, 5, ... have the first weights."""
        path = os.path.join(self.run, "finetune.safetensors")
        shutil.copy(self.weights[(number + 1) % 2], path + ".new")
        os.replace(path + ".new", path)

    def serve(self, run, name):
        """Starts a service for a run, and returns its process and its address."""
        words = [self.a.program, "serve", "--run", run, "--port", "0", "--time-limit", "10000"]
        log = open(os.path.join(self.folder, f"log.{name}"), "w", encoding="utf-8")
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True)
        self.services.append(process)
        return process, process.stdout.readline().strip().removeprefix("http://")

    def start_edited(self):
        """Trains a run that can rank new items on the sample world for one epoch, and serves it."""
        artifacts = os.path.join(self.folder, "edited")
        pipeline = os.path.join(os.path.dirname(__file__), "..", "..", "pipelines", "sample.toml")
        short = ["pretrain.enabled=false", "finetune.epochs=1", f"dataset.data={artifacts}/raw"]
        sets = [word for key in short for word in ("--set", key)]
        subprocess.run([self.a.program, "sample", "--out", f"{artifacts}/raw"], check=True, capture_output=True)
        words = [self.a.program, "run", "--until", "finetune", "--pipeline", pipeline, "--artifacts", artifacts, "--run", "edited"]
        subprocess.run(words + sets, check=True, capture_output=True)
        _, self.edited = self.serve(os.path.join(artifacts, "sample", "runs", "edited"), "edited")
        status, found = self.send("GET", "/v1/items?limit=500")
        if status != 200:
            raise RuntimeError(f"failed to list the items: status {status}: {found}")
        self.known = [item["item_id"] for item in found["items"]]
        _, self.kept = self.send("POST", "/v1/recommend", self.of_known())

    def of_known(self):
        return {"history": self.known[:3], "only": self.known, "k": 50}

    def send(self, method, path, body=None):
        """Sends a request to the service whose items are edited."""
        connection = http.client.HTTPConnection(self.edited, timeout=600)
        connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def start(self):
        self.put_weights(1)
        self.start_edited()
        self.process, self.address = self.serve(self.run, "swapped")
        self.host, port = self.address.rsplit(":", 1)
        self.port = int(port)
        self.expected = {1: [self.list_of(history) for history in self.histories]}
        self.swap(2)
        self.expected[0] = [self.list_of(history) for history in self.histories]
        if self.expected[0] == self.expected[1]:
            raise RuntimeError("both sets of weights give the same lists")

    def ask(self, connection, history):
        connection.request("POST", "/v1/recommend", json.dumps({"history": history, "k": 10}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def list_of(self, history):
        status, body = self.ask(http.client.HTTPConnection(self.host, self.port, timeout=60), history)
        if status != 200:
            raise RuntimeError(f"failed to request a list: status {status}: {body}")
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
        self.problem("the new weights were not loaded in time")

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
                self.problem(f"unexpected status {status}: {body}")
            elif [item["item_id"] for item in body["items"]] != self.expected[body["generation"] % 2][at]:
                self.count("wrong")
                self.problem(f"wrong list for history {at} of generation {body['generation']}: {body}")
            else:
                self.count("right")
            if chance.random() < 0.01:
                connection.close()
                connection = None

    def request(self, chance, body=None):
        body = body if body is not None else json.dumps({"history": chance.choice(self.histories), "k": 10}).encode()
        return b"POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    def killed(self, seed):
        """Runs clients that are killed in the middle of a request, or before they have read the response."""
        chance = random.Random(seed)
        while self.goes_on():
            with self.connect() as stream:
                text = self.request(chance)
                stream.sendall(text[: chance.randrange(len(text) + 1)])
                if chance.random() < 0.5:
                    time.sleep(chance.random() * 0.01)
                # The connection is reset instead of closed, as if the process had been killed.
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
                self.problem(f"no response to {bytes(body)!r}: {error!r}")
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

    def editing(self, seed):
        """Adds an item, requests it and removes it; the lists of other items must not change meanwhile."""
        number = 0
        while self.goes_on():
            number += 1
            item = f"new-{seed}-{number}"
            new = {"item_id": item, "title": f"A cup, number {number}", "texts": ["It is new."]}
            steps = [
                ("PUT", "/v1/items", {"items": [new]}, 200, lambda body: body["added"] == [item]),
                ("GET", f"/v1/items/{item}", None, 200, lambda body: body["is_new"]),
                ("POST", "/v1/recommend", {"history": self.known[:3], "only": [item]}, 200, lambda body: body["items"][0]["item_id"] == item),
                ("POST", "/v1/recommend", self.of_known(), 200, lambda body: body["items"] == self.kept["items"]),
                ("DELETE", "/v1/items", {"item_ids": [item]}, 200, lambda body: body["removed"] == 1),
                ("GET", f"/v1/items/{item}", None, 404, lambda body: True),
            ]
            try:
                for method, path, body, expected, is_right in steps:
                    status, answer = self.send(method, path, body)
                    while status in (429, 503):
                        self.count("asked to retry")
                        time.sleep(0.1)
                        status, answer = self.send(method, path, body)
                    if status != expected or not is_right(answer):
                        self.problem(f"{method} {path} of {item}: {status}: {answer}")
                self.count("items added and removed")
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.count("lost")
                self.problem(f"an edit was lost: {error!r}")

    def connect(self):
        return socket.create_connection((self.host, self.port), timeout=60)

    def goes_on(self):
        """Returns whether a client makes another request; waits while the service is at rest."""
        self.may_ask.wait()
        return not self.stop.is_set()

    def resident(self, part="VmRSS"):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith(part))

    def look(self):
        while not self.stop.wait(5):
            self.memory.append(self.resident())

    def rest(self):
        """Measures the memory at rest: the memory that the service retains. Under load, it fluctuates with connections and swaps."""
        self.may_ask.clear()
        time.sleep(REST)
        self.at_rest.append(self.resident())
        self.of_files.append(self.resident("RssFile"))
        self.may_ask.set()

    def go(self):
        self.start()
        if self.a.python:
            self.fuzz()
        kinds = [self.well_behaved] * 6 + [self.killed] * 2 + [self.malformed] * 2 + [self.slow] * 4 + [self.editing] * 2 + [lambda _: self.look()]
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
        for process in self.services:
            process.send_signal(signal.SIGTERM)
            if process.wait(timeout=60) != 0:
                self.problem(f"a service exited with code {process.returncode}")
        self.report()

    def fuzz(self):
        """Sends requests that schemathesis generates from the OpenAPI description; a run with item ids rejects those that change items."""
        words = [self.a.python, "-m", "schemathesis.cli", "run", f"http://{self.address}/openapi.json", "--max-examples", str(self.a.examples),
                 "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True)
        print(done.stdout[-3000:])
        if done.returncode:
            self.problem(f"schemathesis exited with code {done.returncode}: {done.stderr[-300:]}")

    def report(self):
        """Prints the results. The memory at rest must not grow: a line fitted to it may rise by at most `GROWTH` times its mean."""
        growth = 0.0
        if len(self.at_rest) > 2:
            slope, _ = statistics.linear_regression(range(len(self.at_rest)), self.at_rest)
            growth = slope * (len(self.at_rest) - 1) / statistics.mean(self.at_rest)
            if growth > GROWTH:
                self.problem(f"memory at rest grew by {100 * growth:.1f} %")
        series = [round(value) for value in self.memory[:: max(1, len(self.memory) // 30)]]
        result = {"minutes": self.a.minutes, **dict(sorted(self.counts.items())), "growth_at_rest": round(growth, 4), "at_rest_mib": [round(value, 1) for value in self.at_rest], "of_files_at_rest_mib": [round(value, 1) for value in self.of_files], "memory_series_mib": series}
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
    parser.add_argument("--python", help="a Python interpreter with schemathesis")
    parser.add_argument("--examples", type=int, default=200, help="the number of requests that schemathesis generates per operation")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(a, folder)
        try:
            soak.go()
        finally:
            for process in soak.services:
                if process.poll() is None:
                    process.kill()


if __name__ == "__main__":
    main()
