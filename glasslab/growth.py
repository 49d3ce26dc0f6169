"""Trains what a zoo still lacks, chunk by chunk; an interruption costs one chunk at most."""

import os
import platform
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from filelock import Timeout
from jaxtyping import Bool
from torch import Tensor

from glasslab.design import KINDS, Asked, Chunk, Design, Kind, rows_digest
from glasslab.store import Plain, Store
from glasslab.train import train

WAIT = 0.2  # seconds between two looks at a chunk that another process trains

Tick = Callable[[float], None]


def missing(design: Design, store: Store, asked: Asked) -> list[Chunk]:
    """Chunks that are asked for and not on disk."""
    finished = store.finished() if (store.folder / "manifest.json").exists() else {}
    chunks = [chunk for kind in KINDS for chunk in design.chunks(kind, asked[kind])]
    return [chunk for chunk in chunks if chunk.name not in finished]


def check_rows(design: Design, store: Store, asked: Asked) -> None:
    """Raises ValueError where a chunk was trained on other rows than are drawn here and now."""
    chunks = [chunk for kind in KINDS for chunk in design.chunks(kind, asked[kind])]
    entries, rows = store.manifest()["chunks"], _rows(design, chunks)
    for chunk in chunks:
        if entries[chunk.name]["rows"] != rows_digest(rows[chunk.kind][chunk.rows.start : chunk.rows.stop]):
            made = entries[chunk.name]["torch"]
            raise ValueError(
                f"{chunk.name} must have the rows that this torch draws, torch {made} drew others"
            )


def grow(design: Design, store: Store, asked: Asked, device: str, progress: bool) -> None:
    """Trains the missing chunks. Those that another process holds are left to it, and waited for.

    Warns where finished ones were made by another machine, torch or number of threads.
    """
    todo = missing(design, store, asked)
    if not todo:
        return
    _warn_elsewhere(store, device)
    with _bar(sum(len(chunk.rows) for chunk in todo), progress) as tick:
        growth = Growth(design, store, device, _rows(design, todo), _whereabouts(), tick)
        while todo:
            left = [chunk for chunk in todo if not growth.take(chunk)]
            if len(left) == len(todo):
                time.sleep(WAIT)
            todo = left


@dataclass(frozen=True, eq=False)
class Growth:
    """A design on its way to the disk.

    `member` are all rows of a kind, `where` goes into each line of the log, `tick` hears how many models were
    gained, in fractions.
    """

    design: Design
    store: Store
    device: str
    member: Mapping[Kind, Bool[Tensor, "_ n"]]
    where: Plain
    tick: Tick

    def take(self, chunk: Chunk) -> bool:
        """Trains a chunk unless it is finished. False: another process holds it."""
        try:
            with self.store.lock(chunk.name).acquire(blocking=False):
                if chunk.name in self.store.finished():
                    self.tick(len(chunk.rows))
                else:
                    self._train(chunk)
                return True
        except Timeout:
            return False

    def _train(self, chunk: Chunk) -> None:
        design, start, heard = self.design, time.perf_counter(), [0.0]
        member = self.member[chunk.kind][chunk.rows.start : chunk.rows.stop]

        def tick(models: int) -> None:
            heard.append(models / design.recipe.epochs)
            self.tick(heard[-1])

        self._log(chunk, {"event": "start"})
        state = train(
            design.net,
            design.recipe,
            design.pool.x,
            design.pool.y,
            member,
            design.seeds(chunk),
            val=design.val,
            device=self.device,
            tick=tick,
        )
        self.store.put(
            chunk.name, state, here(self.device) | {"models": len(member), "rows": rows_digest(member)}
        )
        self._log(chunk, {"event": "end", "seconds": round(time.perf_counter() - start, 3)})
        self.tick(len(member) - sum(heard))  # those that stopped early

    def _log(self, chunk: Chunk, event: Plain) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.store.log(self.where | event | {"chunk": chunk.name, "time": now})


def here(device: str) -> Plain:
    """What the bits of a model depend on besides its design: processor or graphics card, torch, threads."""
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "device": device.split(":")[0],
        "machine": card or f"{_processor()}, {platform.system()} {platform.machine()}",
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }


def _warn_elsewhere(store: Store, device: str) -> None:
    now = here(device)
    for name, entry in sorted(store.finished().items()):
        then = {key: entry[key] for key in now}
        if then != now:
            other = ", ".join(f"{key} {then[key]} (now {now[key]})" for key in now if then[key] != now[key])
            warnings.warn(f"{store.folder}: {name} was made with {other}; bits may differ", stacklevel=5)
            return


def _rows(design: Design, chunks: Sequence[Chunk]) -> dict[Kind, Tensor]:
    """Membership rows of each kind, as far as the chunks reach."""
    ends = {kind: max((c.rows.stop for c in chunks if c.kind == kind), default=0) for kind in KINDS}
    return {kind: design.member(kind, end) for kind, end in ends.items()}


def _whereabouts() -> Plain:
    from glasslab.results import commit  # that imports pandas: only for who trains

    return {"host": socket.gethostname(), "process": os.getpid(), "commit": commit()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor()


@contextmanager
def _bar(models: int, show: bool) -> Iterator[Tick]:
    """A bar on stderr with the models done and the time left; `tick` may be called from several threads."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    count = "{task.completed:.1f} of {task.total} models"
    columns = ("training", BarColumn(), count, TimeElapsedColumn(), "left", TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show) as progress:
        task = progress.add_task("", total=models)
        yield lambda gained: progress.advance(task, gained)
