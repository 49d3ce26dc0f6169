"""What seconds buy: attacks that train no shadow against few shadows, and W against many.

LiRA and RMIA get the shadows that the time of frozen_trunk pays for (q), 4, and 16. `bought`: what LiRA reads
with as many further shadows as the seconds of W's signals would have trained. Seconds of the low budget are
those of one processor core: on an idle machine, of the clock.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Final

import torch
from torch import Tensor, nn

from benchmark.invert import say
from benchmark.open_problem_rows import Row, Scores, confidence, kept, table
from benchmark.record import RESULTS
from benchmark.zoos import OPEN, Fixed
from blackbox import rmia
from glasslab.likelihood import Rule, Variance, fit, ratio
from glasslab.signals import phi
from glasslab.split import stream, subseed
from glasslab.train import resolve, train
from glasslab.zoo import Zoo
from whitebox.decode import decode
from whitebox.dual import dual
from whitebox.frozen_trunk import frozen_trunk
from whitebox.influence import Leverage
from whitebox.kronecker import logits
from whitebox.score_test import by_aux, score_test
from workbench.evidence import one_thread
from workbench.open_problem.bought import affordable, lira
from workbench.open_problem.frozen import W

PLAYED: Final[Mapping[str, int]] = {"digits": 40, "fashion_mlp": 4}  # targets of each zoo
TIMED: Final = (4, 16)  # shadows whose training is timed; a line through both stands for other numbers
HEADS: Final = 96
BUYERS: Final = ("digits",)  # zoos in which LiRA gets what the seconds of W buy


def free(zoo: Zoo, a: int) -> Mapping[str, Callable[[nn.Module], Tensor]]:
    """Attacks on target `a` that train no shadow, as functions of its model."""
    x, y, decay, n = zoo.pool.x, zoo.pool.y, zoo.recipe.weight_decay, round(len(zoo.pool) / 2)
    places = torch.arange(len(zoo.aux))
    rest, spare = zoo.aux[places % 2 == 0], zoo.aux[places % 2 == 1]

    def heads(model: nn.Module, exact: bool) -> Tensor:
        generator = stream(zoo.seed, "frozen trunk", a)
        return frozen_trunk(model, x, y, generator, weight_decay=decay, heads=HEADS, exact=exact)

    def by_own_aux(model: nn.Module) -> Tensor:
        s, t = (score_test(model, each.x, each.y, rest, lambda_s=decay) for each in (zoo.pool, spare))
        u, v = (Leverage(rest)(model, each.x, each.y) for each in (zoo.pool, spare))
        return by_aux(s, y, u, t, spare.y, v)

    return {
        "loss": lambda model: phi(logits(model, x, y), y),
        "frozen-trunk": lambda model: heads(model, False),
        "frozen-trunk-exact": lambda model: heads(model, True),
        "decode": lambda model: decode(model, x, y, weight_decay=decay, n_train=n, law=W.laws[0]),
        "dual": lambda model: dual(model, x, y, ridge=W.ridge),
        "score-test-aux": by_own_aux,
    }


def played(zoo: Zoo, a: int) -> dict[str, Tensor]:
    """Scores of the attacks without shadows on one target, and `NAME seconds` of each."""
    model, made = zoo.target(a), dict[str, Tensor]()
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, attack in free(zoo, a).items():
            begun = process_time()
            made[name] = attack(model).double().contiguous()
            made[f"{name} seconds"] = torch.tensor([process_time() - begun], dtype=torch.float64)
    return made


def training(zoo: Zoo) -> dict[str, Tensor]:
    """Seconds to train the first 4 and the first 16 shadows anew."""
    design, recipe = zoo.design, resolve(zoo.recipe, zoo.data, "cpu")

    def seconds(q: int, epochs: int) -> float:
        seeds = [subseed(zoo.seed, "shadow", "weights", row) for row in range(q)]
        begun = process_time()
        train(
            design.net,
            replace(recipe, epochs=epochs),
            zoo.pool.x,
            zoo.pool.y,
            zoo.shadow_member[:q],
            seeds,
        )
        return process_time() - begun

    with one_thread():
        seconds(1, 1)  # warms up
        return {str(q): torch.tensor([seconds(q, recipe.epochs)], dtype=torch.float64) for q in TIMED}


def budget(folder: Path) -> list[Row]:
    """A table a zoo, with the seconds for one target and for each further one, and the shadows trained."""
    return [row for name in PLAYED for row in of_zoo(name, folder)]


def of_zoo(name: str, folder: Path) -> list[Row]:
    zoo = OPEN[name].zoo(0)
    parts = [
        kept(folder / name / f"target-{a}.safetensors", partial(played, zoo, a)) for a in range(PLAYED[name])
    ]
    timed = kept(folder / name / "training.safetensors", lambda: training(zoo))
    few, many = (float(timed[str(q)]) for q in TIMED)
    a_shadow = (many - few) / (TIMED[1] - TIMED[0])

    def cost(q: int) -> float:
        return few + (q - TIMED[0]) * a_shadow

    alone = [attack for attack in parts[0] if not attack.endswith(" seconds")]
    took = {k: float(torch.cat([p[f"{k} seconds"] for p in parts]).mean()) for k in alone}
    paid = [q for q in range(TIMED[0], len(zoo.shadow_member) + 1, 2) if cost(q) <= took["frozen-trunk"]]
    q = max([TIMED[0], *paid])
    scores: Scores = {k: torch.stack([p[k] for p in parts]) for k in alone}
    bill = {k: {"shadows": 0, "seconds": took[k], "seconds_further": took[k]} for k in alone}
    for label, count in ("lira-q", q), ("lira-4", 4), ("lira-16", 16), ("rmia-offline-1", 2):
        begun = process_time()
        found = with_shadows(zoo, label, count)
        ask = process_time() - begun
        for more, score in found.items():
            scores[more] = score[: PLAYED[name]]
            bill[more] = {"shadows": count, "seconds": cost(count) + ask, "seconds_further": 0.0}
    rows = table([scores], [zoo.target_member[: PLAYED[name]]], (0,), "lira-q")
    n_neg = int((~zoo.target_member[: PLAYED[name]]).sum())
    return [{"zoo": name, "n_neg": n_neg} | row | {"seed": 0} | bill[row["attack"]] for row in rows]


def with_shadows(zoo: Zoo, label: str, q: int) -> Scores:
    """LiRA by two spread rules, or RMIA where each record has one model out: of a half and its complement."""
    y, member = zoo.pool.y, zoo.shadow_member[:q]
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if label.startswith("rmia"):
            log_p, aux = confidence(zoo, "pool"), confidence(zoo, "aux")
            reference = log_p["shadow"][:q], aux["shadow"][:q], member
            return {label: rmia.rmia_offline(log_p["target"], aux["target"], *reference)}
        S, s = phi(zoo.answers("shadow")[:q, :, 0], y), phi(zoo.answers("target")[:, :, 0], y)
        rules: dict[str, Variance] = {label: "pooled", f"{label}-shrunk": "shrunk"}
        return {name: ratio(s, fit(S, member, variance=rule)) for name, rule in rules.items()}


def bought(folder: Path) -> list[Row]:
    """LiRA with 64 shadows and with those that W's seconds add, on seed 0 of BUYERS. Needs their answers."""
    rows = []
    for name in BUYERS:
        fixed = OPEN[name]
        held = json.loads((RESULTS / f"open_problem_{name}.json").read_text())["rows"]
        w = next(row for row in held if row.get("attack") == "W" and row["seed"] == 0)
        zoo = fixed.zoo(0)
        each = seconds_a_shadow(zoo)
        q = fixed.shadows + affordable(w["seconds"], each)
        scores = kept(folder / f"{name}-{q}.safetensors", partial(more, fixed, q))
        about = {"zoo": name, "seconds_of_W": w["seconds"], "seconds_a_shadow": each, "bought": q}
        found = table([scores], [zoo.target_member], (0,), f"lira-{fixed.shadows}")
        rows += [about | row | {"seed": 0, "W": w["tpr_at_0.1pct"]} for row in found]
        for row in rows[-len(found) :]:
            say(row)
    return rows


def seconds_a_shadow(zoo: Zoo) -> float:
    """What training took, by the zoo's log."""
    events = [json.loads(line) for line in (zoo.folder / "log.jsonl").read_text().splitlines()]
    took = {e["chunk"]: e["seconds"] for e in events if e["event"] == "end" and "shadow" in e["chunk"]}
    chunks = json.loads((zoo.folder / "manifest.json").read_text())["chunks"]
    return sum(took.values()) / sum(chunks[name]["models"] for name in took)


def more(fixed: Fixed, q: int) -> Scores:
    """LiRA with the shadows that the zoo has and with all q, by two spread rules."""
    zoo, rules = fixed.zoo(0, shadows=q), dict[str, Rule]({"": "shrunk", "-record": "record"})
    return {f"lira-{m}{end}": lira(zoo, m, rule) for m in (fixed.shadows, q) for end, rule in rules.items()}
