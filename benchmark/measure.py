"""Seconds and memory of a call, ours and of other packages alike; imports nothing of ours. Linux only."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def held(what: str) -> int:
    """VmRSS (now) or VmHWM (at most) of this process, in bytes."""
    return 1024 * int(re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def measured(work: Callable[[], T], runs: int = 5, budget: float = 3.0) -> tuple[T, dict[str, float]]:
    """The result of the first run, and `first` and `seconds` (the fastest of `runs`), `cores` and `peak_mb`.

    From the third run on, none is begun once `budget` seconds have passed. `peak_mb` (1e6 bytes) is the most
    that the first run held above what the process held before: inputs in memory and libraries do not count.
    `cores` are seconds of processor time over seconds of the first run: above 1, it did not keep to a core.
    """
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, seconds = held("VmRSS"), [0.0]
    begun, busy = time.perf_counter(), time.process_time()
    result = work()
    seconds = [time.perf_counter() - begun]
    cores, peak = (time.process_time() - busy) / seconds[0], (held("VmHWM") - before) / 1e6
    while len(seconds) < runs and (len(seconds) < 3 or time.perf_counter() - begun < budget):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    fastest = {"first": seconds[0], "seconds": min(seconds), "runs": len(seconds)}
    return result, fastest | {"peak_mb": max(0.0, peak), "cores": cores}
