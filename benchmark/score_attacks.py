"""The cases of benchmark/score_cases.py, timed: each attack at four sizes, and against a twin or packages.

Every measurement has a process of its own, one thread, and inputs in memory; a run on a few records goes
before, so that what is loaded late is loaded. benchmark/score.py tells what the rows hold.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmark import peer
from benchmark.measure import measured
from benchmark.score_cases import CASES, FACTORS, Case, Peer, Run
from benchmark.score_inputs import Arrays
from glasslab.checks import Floored
from glasslab.metrics import auc

Row = dict[str, Any]


def rows(name: str, scale: float, seed: int, folder: Path) -> Iterator[Row]:
    """First the sizes, from the smallest to the largest; then what the largest is measured against."""
    case, cost = CASES[name], dict[str, Any]()
    for factor in FACTORS:
        records = max(case.few, round(case.records * factor * scale))
        _draw(case, records, seed, folder)
        cost = fresh(_ours, name, None, seed, folder)
        about = {"attack": name, "records": records, "models": case.models} | _population(folder)
        yield {"axis": "attack", **about, **cost}
    if case.twin is not None:
        found = _compared(cost, fresh(_twin, name, folder))
        yield {"axis": "against", **about, **found, "differs": case.differs}
    if case.plain is not None:
        found = _compared(cost, fresh(_plain, name, folder))
        yield {"axis": "against", **about, **found, "differs": case.differs}
    for place in range(len(case.peers)):
        yield {"axis": "against", **about, **_against(name, place, cost, seed, folder)}


def fresh(work: Callable[..., Row], *arguments: Any) -> Row:
    """What `work` returns, from a process of its own that has not measured anything yet."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmark.score_attacks"])
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(work, *arguments).result()


def _draw(case: Case, records: int, seed: int, folder: Path) -> None:
    for old in folder.glob("*.npy"):
        old.unlink()
    for name, array in case.draw(records, case.models, seed).items():
        np.save(folder / f"{name}.npy", array)


def _population(folder: Path) -> Row:
    path = folder / "log_p_aux.npy"
    return {"population": np.load(path, mmap_mode="r").shape[-1]} if path.exists() else {}


def _arrays(folder: Path) -> Arrays:
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


def _ours(name: str, way: tuple[int, str] | None, seed: int, folder: Path) -> Row:
    """The attack, or the way (`ours` or `like`) in which a peer has it run; its scores go to ours.npy."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", Floored)
    case = CASES[name]
    run: Run = case.run if way is None else getattr(case.peers[way[0]], way[1])
    run({k: torch.from_numpy(v) for k, v in case.draw(case.few, case.models, seed).items()})
    given = {k: torch.from_numpy(v) for k, v in _arrays(folder).items()}
    scores, cost = measured(partial(run, given))
    np.save(folder / "ours.npy", scores.numpy())
    return dict(cost)


def _twin(name: str, folder: Path) -> Row:
    """Seconds of the loop for all records, from the first few; raises if it disagrees with ours."""
    case, given = CASES[name], _arrays(folder)
    ours, twin = given["ours"], case.twin
    assert twin is not None
    size = min(case.sample, ours.shape[-1])
    torch.set_num_threads(1)
    start = time.perf_counter()
    slow = np.stack([np.asarray(twin(given, i)) for i in range(size)], -1)
    seconds = (time.perf_counter() - start) * ours.shape[-1] / size
    found = {"against": "textbook loop", "seconds": seconds, "sampled_records": size}
    return found | _agreement(slow, ours[..., :size], case.exact)


def _plain(name: str, folder: Path) -> Row:
    """A plain version of an attack that learns, from the arrays to the scores."""
    case, given = CASES[name], _arrays(folder)
    assert case.plain is not None
    what, work = case.plain
    torch.set_num_threads(1)
    work(case.draw(case.few, case.models, 0))
    scores, cost = measured(partial(work, given))
    return {"against": what, **cost, **_quality(scores, given["ours"], folder)}


def _against(name: str, place: int, cost: Row, seed: int, folder: Path) -> Row:
    """A package on the same arrays; ours anew where it is to run in the package's way."""
    package: Peer = CASES[name].peers[place]
    if package.ours is not None:
        cost = fresh(_ours, name, (place, "ours"), seed, folder)
    ours = np.load(folder / "ours.npy")
    records = min(package.records or ours.shape[-1], ours.shape[-1])
    found = peer.ask(package.script, folder, {**package.settings, "records": records})
    theirs = np.load(folder / "against.npy")
    exact = package.exact
    found |= _agreement(theirs, ours[..., :records], True) if exact else _quality(theirs, ours, folder)
    if records < ours.shape[-1]:
        found |= {"seconds": found["seconds"] * ours.shape[-1] / records, "sampled_records": records}
    if package.like is not None:
        like = fresh(_ours, name, (place, "like"), seed, folder)["seconds"]
        found |= {"ours_like": like, "ratio_like": found["seconds"] / like}
    return _compared(cost, found) | {"differs": package.differs, "script": package.script}


def _compared(cost: Row, found: Row) -> Row:
    return found | {"ours": cost["seconds"], "ratio": found["seconds"] / cost["seconds"]}


def _quality(theirs: np.ndarray, ours: np.ndarray, folder: Path) -> Row:
    """Rank correlation and means of the scores, and their AUC where there is a truth."""
    theirs, ours = theirs.ravel(), ours.ravel()[: theirs.size]
    found = _agreement(theirs, ours, False) | {"mean": float(theirs.mean()), "ours_mean": float(ours.mean())}
    if (path := folder / "target_member.npy").exists():
        truth = torch.from_numpy(np.load(path)[0, : theirs.size])
        for key, scores in (("auc", theirs), ("ours_auc", ours)):
            found[key] = auc(torch.from_numpy(scores.astype(float)), truth)
    return found


def _agreement(theirs: np.ndarray, ours: np.ndarray, exact: bool) -> Row:
    if exact:
        np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-6)
        return {"agreement": "equal"}
    return {"rank_correlation": float(spearmanr(theirs.ravel(), ours.ravel()).statistic)}
