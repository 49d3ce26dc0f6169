"""Rows of the open problem's further tables: attacks by their tails, and how many times a rival's."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from blackbox import rmia
from glasslab import metrics
from glasslab.ratios import Tails, tails
from glasslab.ratios import ratio as over
from glasslab.split import stream
from glasslab.store import write
from glasslab.zoo import Zoo
from workbench.evidence import one_thread

Row = dict[str, Any]
Scores = dict[str, Tensor]  # [t n] by attack
LEAST: Final = 1e-3  # of a ratio: a draw without any find stands for 0


def table(scores: Sequence[Scores], truth: Sequence[Tensor], seeds: Sequence[int], rival: str) -> list[Row]:
    """A row an attack, of all seeds ("all"), best tail first, and of each seed where there are several."""
    names = list(scores[0])
    with one_thread():
        found = tails([[s[n] for s in scores] for n in names], truth, stream(seeds[0], "tails"))
        auc = [[metrics.auc(s[n], m) for n in names] for s, m in zip(scores, truth, strict=True)]
        tpr = [
            [metrics.tpr_at_fpr(s[n], m, 1e-2).tpr for n in names] for s, m in zip(scores, truth, strict=True)
        ]
    rows: list[Row] = []
    parts = [("all", slice(None)), *((seed, slice(i, i + 1)) for i, seed in enumerate(seeds))]
    for seed, which in parts if len(seeds) > 1 else parts[:1]:
        here, some = Tails(found.tpr[which], found.drawn[which]), list[Row]()
        for i, name in enumerate(names):
            r = over(here, i, names.index(rival))
            some.append(
                {"seed": seed, "attack": name}
                | {"auc": float(torch.tensor(auc, dtype=torch.float64)[which, i].mean())}
                | {"tpr_at_1pct": float(torch.tensor(tpr, dtype=torch.float64)[which, i].mean())}
                | {"tpr_at_0.1pct": float(here.tpr[:, i].mean()), f"ratio_to_{rival}": r.value}
                | {
                    "low": r.low and max(r.low, LEAST),
                    "high": r.high,
                    f"ratio_to_{rival}_seeds": list(r.seeds),
                }
                | ({"empty_draws": r.empty} if r.empty else {})
            )
        rows += sorted(some, key=lambda row: -float(row["tpr_at_0.1pct"]))
    return rows


def rmia_online(zoo: Zoo) -> Tensor:
    """With its usual settings."""
    log_p, aux = confidence(zoo, "pool"), confidence(zoo, "aux")
    return rmia.rmia(log_p["target"], aux["target"], log_p["shadow"], aux["shadow"], zoo.shadow_member)


def confidence(zoo: Zoo, on: str) -> Scores:
    y = zoo.design.part(on).y
    return {
        kind: rmia.log_confidence(zoo.answers(kind, on=on)[:, :, 0], y, T=2.0)
        for kind in ("shadow", "target")
    }


def kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What lies there, or what is made now."""
    if not path.exists():
        write(path, [save(make())])
    return load_file(path)
