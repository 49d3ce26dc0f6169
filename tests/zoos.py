"""Tiny zoos, and processes that train them and are killed at a given moment.

Run as a script it serves jobs: torch is imported once, and each job is a fork of its own.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from glasslab import growth, results, store
from glasslab.data import Data
from glasslab.recipe import Recipe
from glasslab.train import train
from glasslab.zoo import Zoo

RECIPE = Recipe(net="mlp", hidden=(8,), epochs=4, batch=16, scale="none")
RESOLVED = replace(RECIPE, engine="stacked", precision="float32")


def made(seed=0, n=200, shape=(6,), classes=3):
    """Clusters of noise, one a class, that a net can half learn."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    centre = torch.rand(classes, *shape, generator=g)
    return Data((centre[y] + 0.4 * torch.randn(n, *shape, generator=g)).clamp(0, 1), y, classes, "made")


def tiny(root, recipe=RECIPE, *, data=None, shadows=4, targets=2, seed=0, records=None):
    data = made() if data is None else data
    return Zoo.train(
        data, recipe, shadows=shadows, targets=targets, seed=seed, records=records, root=root, progress=False
    )


def files(folder):
    """Bytes of the manifest and of everything among the chunks."""
    paths = [folder / "manifest.json", *sorted((folder / "chunks").iterdir())]
    return {path.name: path.read_bytes() for path in paths}


def starts(folder):
    """Names of the chunks that were begun, in order."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line["chunk"] for line in lines if line["event"] == "start"]


def interrupted(chunk):
    """An engine that is interrupted as by Ctrl-C in chunk number `chunk`, counted from its first call."""
    calls = []

    def broken(*arguments, tick, **keywords):
        calls.append(chunk)

        def once(models):
            if len(calls) == chunk + 1:
                calls.append(chunk)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
            tick(models)

        return train(*arguments, tick=once, **keywords)

    return broken


class Server:
    """A process that forks one trainer a job; `run` waits until all of them have ended."""

    def __init__(self):
        root = Path(__file__).parents[1]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, *jobs):
        """Exit codes, minus the signal's number for the killed; a job is a dict of `work`'s arguments."""
        self.process.stdin.write(json.dumps(jobs) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)


class Moments:
    """Counts what happens on the way to a zoo, and kills this process at number `last`."""

    def __init__(self, last, notes):
        self.last, self.notes, self.seen = last, notes, []

    def __call__(self, what):
        self.seen.append(what)
        if len(self.seen) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch_files(self, event, arguments):
        """Each file that is opened, renamed or deleted under the root, before it happens."""
        if event in ("open", "os.rename", "os.remove") and self.notes in str(arguments[0]):
            self(f"{event} {kind(arguments[0])}")

    def open(self, path, mode, **keywords):
        file = open(path, mode, **keywords)  # noqa: SIM115
        return Torn(file, lambda: self(f"half {kind(path)}")) if Path(path).suffix == ".tmp" else file


class Torn:
    """A file whose writes come in two halves, with a moment in between."""

    def __init__(self, file, between):
        self.file, self.between = file, between

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, part):
        self.file.write(part[: len(part) // 2])
        self.file.flush()
        self.between()
        self.file.write(part[len(part) // 2 :])


def kind(path):
    """manifest, chunk, log or lock."""
    name = Path(str(path)).name
    found = re.search(r"lock$|manifest|safetensors|log.jsonl", name)
    return {"safetensors": "chunk", "log.jsonl": "log"}.get(found[0], found[0]) if found else "other"


def work(root, last=None, shadows=32, targets=4, meet=0, notes=None, hold=None, mark=None):
    """Trains a zoo, and is killed at moment `last`.

    Chunks are held until `meet` processes have begun one, and until the file `hold` is there. `mark` is made
    when this process waits for a chunk of another's, which it lets go first. `notes` get the moments.
    """
    torch.set_num_threads(1)
    root, sleep = Path(root), time.sleep
    moments = Moments(last, str(root))

    def watched(*arguments, tick, **keywords):
        until(lambda: len(processes(root)) >= meet and (not hold or Path(hold).exists()))

        def both(models):
            moments("tick")
            tick(models)

        return train(*arguments, tick=both, **keywords)

    def waits(seconds):
        Path(mark).touch() if mark else None
        sleep(seconds)

    if mark:
        until(lambda: processes(root))
    growth.train, growth.WAIT, growth.time.sleep, store.open = watched, 0.02, waits, moments.open
    sys.addaudithook(moments.watch_files)
    tiny(root, shadows=shadows, targets=targets)
    if notes:
        Path(notes).write_text(json.dumps(moments.seen))


def processes(root):
    """Those that have begun a chunk."""
    lines = [line for path in root.glob("*/log.jsonl") for line in path.read_text().splitlines()]
    return {json.loads(line)["process"] for line in lines}


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)


def serve():
    results.commit()  # imports what a trainer would import
    for line in sys.stdin:
        children = []
        for job in json.loads(line):
            child = os.fork()
            if not child:
                os.dup2(2, 1)
                code = 1
                try:
                    work(**job)
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(json.dumps(ends) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
