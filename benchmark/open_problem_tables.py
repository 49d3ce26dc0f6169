"""Where the gain of the joint white-box attacks comes from: small zoos, one thing changed at a time.

    python -m benchmark.open_problem_tables

Fashion-MNIST is read from GLASSLAB_DATA. In every table `decode` and `dual` work without a shadow, LiRA with
those of the zoo; numbers are means over SEEDS, of the targets of a zoo together. A table that is finished
lies in `folder` and is not made again; `--only coverage decay` makes these two. Writes
results/open_problem_tables.json of all that are there.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
import tyro
from jaxtyping import Float64
from torch import Tensor

from benchmark import record
from benchmark.open_problem_cases import (
    LAW,
    SEEDS,
    Released,
    Row,
    alone,
    averaged,
    by_coverage,
    by_kind,
    by_layer,
    by_setting,
    calm,
    expected,
    mean,
    numbers,
    read,
    say,
)
from benchmark.zoos import OPEN, Fixed
from blackbox import bavaria, rmia
from glasslab import signals
from glasslab.data import Data
from glasslab.datasets import load
from glasslab.design import Kind
from glasslab.likelihood import Rule, fit, ratio
from glasslab.results import strict
from glasslab.split import stream
from glasslab.store import write
from glasslab.zoo import Zoo
from whitebox.decode import bits
from whitebox.dual import by_shadows, shaped, solve
from whitebox.gram import pooled
from workbench.open_problem.frozen import W

KINDS: Final[tuple[Kind, ...]] = ("shadow", "target")
SHADOWS: Final = (2, 4, 16, 64)
RECORDS: Final = (1000, 2000, 4000)
MOST: Final = 10_000
_LENET = "norm=none,precision=float32,epochs=40,batch=64,lr=0.05,weight_decay=0.002"


def small(changes: str = "") -> Fixed:
    """Digits on a net of 64 hidden units."""
    whole = ",".join(filter(None, ("hidden=64,weight_decay=0.002", changes)))
    return replace(OPEN["digits"], shadows=16, targets=16, changes=whole)


def images(changes: str = "") -> Fixed:
    """1,000 images of Fashion-MNIST on a convolutional net."""
    whole = ",".join(filter(None, (_LENET, changes)))
    return replace(OPEN["fashion_cnn"], records=1000, shadows=8, targets=8, changes=whole)


def coverage() -> list[Row]:
    """How many of the true candidates the attacker knows; in the end one record, and aux beside it."""
    rows = averaged(small(), {}, by_coverage)
    each = [alone(Released(small().zoo(seed))) for seed in SEEDS]
    return rows + mean(each, {"coverage": "one"})


def decay() -> list[Row]:
    """How near to a stationary point training ends, and whether there is one."""
    rows = []
    for weight_decay in (0.0, 1e-4, 5e-4, 2e-3):
        for epochs in (25, 100, 400):
            about = {"weight_decay": weight_decay, "epochs": epochs}
            rows += averaged(small(f"weight_decay={weight_decay},epochs={epochs}"), about)
    return rows


def labels() -> list[Row]:
    """Labels that are drawn anew for a share of all records, those of the test set too."""
    rows = []
    for share in (0.0, 0.05, 0.2):
        rows += averaged(replace(small(), data=partial(mislabelled, share)), {"share": share})
    return rows


def mislabelled(share: float) -> Data:
    """Digits, some of them with a class at random."""
    data = load("digits")
    wrong = torch.rand(len(data), generator=stream(0, "which labels")) < share
    other = torch.randint(data.classes, (len(data),), generator=stream(0, "labels"))
    return replace(data, y=torch.where(wrong, other, data.y))


def augmentation() -> list[Row]:
    """Whether the gradients of the records as they are make up the weights."""
    digits = Fixed(lambda: load("digits"), "lenet", shadows=8, targets=8, changes=_LENET)
    rows = []
    for name in ("", "crop"):
        for data, fixed in (("fashion_mnist", images()), ("digits", digits)):
            changed = replace(fixed, changes=f"{fixed.changes},augment={name}")
            rows += averaged(changed, {"data": data, "augment": name or "none"}, by_kind)
    return rows


def norm() -> list[Row]:
    """Layers before a norm have no scale, and are not read."""
    kinds = ("batch", "group", "none")
    return [row for kind in kinds for row in averaged(images(f"norm={kind}"), {"norm": kind}, by_kind)]


def layers() -> list[Row]:
    return averaged(small(), {}, by_layer)


def settings() -> list[Row]:
    """The two numbers that an attacker would have to choose."""
    return averaged(small(), {}, by_setting)


def shadows() -> list[Row]:
    """What a ratio over shadows adds, at each number of them."""
    return with_shadows(OPEN["digits"].zoo(SEEDS[0]), SHADOWS)


def width() -> list[Row]:
    """More weights than candidates, or fewer."""
    rows = []
    for hidden in (16, 64, 256, 1024):
        about = {"hidden": hidden, "weights": (64 + 1) * hidden + (hidden + 1) * 10}
        rows += averaged(small(f"hidden={hidden}"), about)
    return rows


def size(records: Sequence[int] = RECORDS) -> list[Row]:
    """More candidates on a net of one size."""
    whole = replace(OPEN["fashion_mlp"], shadows=4, targets=2)
    return [row for n in records for row in averaged(replace(whole, records=n), {"records": n})]


def size_most() -> list[Row]:
    """As many as one machine solves for in minutes."""
    return size((MOST,))


def defence() -> list[Row]:
    """What an owner of the model may do, with its price in accuracy."""
    rows = []
    for noise in (0.0, 0.01, 0.03, 0.1, 0.3):
        rows += averaged(small(), {"defence": "noise", "strength": noise}, noise=noise)
    for epochs in (5, 10, 25, 100):
        rows += averaged(small(f"epochs={epochs}"), {"defence": "epochs", "strength": epochs})
    for name, strength in (("dropout", 0.5), ("label_smoothing", 0.1)):
        rows += averaged(small(f"{name}={strength}"), {"defence": name, "strength": strength})
    return rows


TABLES: Mapping[str, Callable[[], list[Row]]] = {
    "coverage": coverage,
    "decay": decay,
    "labels": labels,
    "augmentation": augmentation,
    "norm": norm,
    "layers": layers,
    "settings": settings,
    "shadows": shadows,
    "width": width,
    "size": size,
    "defence": defence,
    "size_most": size_most,
}


def with_shadows(zoo: Zoo, counts: Sequence[int]) -> list[Row]:
    """Attacks with the first q shadows, for each number q; 0: those that need none."""
    with calm():
        S, s = _solved(zoo, "shadow"), _solved(zoo, "target")
        rows = [_row(zoo, 0, name, score) for name, score in s.items()]
        for q in counts:
            member = zoo.shadow_member[:q]
            rule: Rule = "shrunk" if q > 2 else "grand"  # of one model a side no record has a spread
            ratios = {f"{k}-ratio": by_shadows(s[k], S[k][:q], member, variance=rule) for k in S}
            scores = ratios | _black(zoo, q, rule)
            rows += [_row(zoo, q, name, score) | {"rule": rule} for name, score in scores.items()]
    return rows


def _row(zoo: Zoo, q: int, name: str, score: Float64[Tensor, "t n"] | None) -> Row:
    row = {"shadows": q, "attack": name} | Released(zoo).accuracy() | numbers(score, zoo.target_member)
    say(row)
    return row


def _solved(zoo: Zoo, kind: Kind) -> dict[str, Float64[Tensor, "m n"]]:
    """`dual` and its shaped form of all shadows or of all targets; `decode` of targets."""
    names = ["dual", "dual-shaped", *(["decode"] if kind == "target" else [])]
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for i, z in enumerate(zoo.answers(kind)[:, :, 0]):
        of = pooled([one for _, one in read(Released(zoo).model(kind, i), zoo.pool, zoo.device)])
        g = expected(zoo, z, zoo.pool.y)
        assert g is not None, "the shape needs weight decay"
        found["dual"].append(solve(of, W.ridge))
        found["dual-shaped"].append(shaped(of, g, W.shape_ridge))
        if kind == "target":
            found["decode"].append(bits(of, g, LAW))
    return {name: torch.stack(values) for name, values in found.items()}


def _black(zoo: Zoo, q: int, rule: Rule) -> dict[str, Float64[Tensor, "t n"] | None]:
    """LiRA, RMIA and BaVarIA, the last of which needs two models a side."""
    member = zoo.shadow_member[:q]
    z, z_aux = ([zoo.answers(k, on=on)[:, :, 0] for k in KINDS] for on in ("pool", "aux"))
    S, s = (signals.phi(one.double(), zoo.pool.y) for one in (z[0][:q], z[1]))
    P, p = (rmia.log_confidence(one, zoo.pool.y, T=2.0) for one in (z[0][:q], z[1]))
    P_aux, p_aux = (rmia.log_confidence(one, zoo.aux.y, T=2.0) for one in (z_aux[0][:q], z_aux[1]))
    return {
        "lira": ratio(s, fit(S, member, variance=rule)),
        "rmia": rmia.rmia(p, p_aux, P, P_aux, member),
        "bavaria": bavaria.bavaria(s, S, member) if q > 2 else None,
    }


def main(only: tuple[str, ...] = (), folder: Path = Path("runs/open_problem_tables")) -> None:
    """Makes the tables (or `only` those named, also with commas between) that are not in `folder` yet.

    Raises ValueError for a table that there is not.
    """
    names = [name for part in only for name in part.split(",")] or list(TABLES)
    if unknown := [name for name in names if name not in TABLES]:
        raise ValueError(f"only must name some of {', '.join(TABLES)}, got {', '.join(unknown)}")
    for name in names:
        kept = folder / f"{name}.json"
        if not kept.exists():
            write(kept, [json.dumps(strict(TABLES[name]()), indent=1, allow_nan=False).encode()])
        merge(folder)


def merge(folder: Path) -> None:
    """results/open_problem_tables.json of the tables that are there."""
    there = [name for name in TABLES if (folder / f"{name}.json").exists()]
    held = {name: json.loads((folder / f"{name}.json").read_text()) for name in there}
    rows = [{"table": name} | row for name, some in held.items() for row in some]
    command = "python -m benchmark.open_problem_tables"
    record.write("open_problem_tables", command, SEEDS[0], figures(held), rows)


def figures(held: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """TPR at 0.1 % FPR at each coverage, and how many tables there are."""
    rows = [row for row in held.get("coverage", ()) if "noise" not in row]
    tpr = {f"{row['attack']}_{row.get('coverage', 'any')}": row["tpr_at_0.1pct"] for row in rows}
    return {"tables": float(len(held))} | tpr


if __name__ == "__main__":
    tyro.cli(main)
