"""Do weights say more than outputs where all models start from one net, and where few models can be trained?

    python -m benchmark.open_problem_regimes

Fashion-MNIST is read from GLASSLAB_DATA. Fine-tuning: every target and shadow starts from one net, which has
learned 4,000 records that are in no pool, aux or test. Signals read the way from the start to the end:
`displacement` (its likelihood ratio over shadows), `matt`, and `dual` and `decode` on theta - c theta_0, c
what weight decay leaves of the start. Budget: attacks that train no shadow, one target at a time, against
LiRA and RMIA with the few shadows that the same time pays for. Seconds are those of one processor core: on
an idle machine, of the clock. Signals and scores that are finished lie in `folder` and are not made again.
"""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any, Final

import torch
import tyro
from safetensors.torch import load_file, save
from torch import Tensor, nn

from benchmark import record
from benchmark.invert import say
from benchmark.zoos import OPEN, fashion
from blackbox import bavaria, rmia
from glasslab import metrics, nets
from glasslab.data import Data
from glasslab.datasets import load
from glasslab.likelihood import Variance, fit, ratio
from glasslab.ratios import Tails, tails
from glasslab.ratios import ratio as over
from glasslab.recipe import Factory, Recipe
from glasslab.results import strict
from glasslab.schedule import rate
from glasslab.signals import phi
from glasslab.split import stream, subseed
from glasslab.store import checksum, write
from glasslab.train import resolve, train
from glasslab.zoo import Zoo
from whitebox.decode import bits, decode, shares
from whitebox.displacement import displaced, displacement, matt, reference_on
from whitebox.dual import by_shadows, dual, solve
from whitebox.frozen_trunk import frozen_trunk
from whitebox.gradients import contract, owners
from whitebox.gram import Gram, grams, pooled
from whitebox.influence import Leverage
from whitebox.kronecker import logits
from whitebox.score_test import by_aux, score_test
from whitebox.stacked import fit_stack
from workbench.evidence import one_thread
from workbench.open_problem.frozen import W

Row = dict[str, Any]
Scores = dict[str, Tensor]  # [t n] by attack

SEEDS: Final = (0, 1, 2)
PUBLIC: Final = (20_000, 24_000)  # records of Fashion-MNIST, after those of `fashion`
POOL, SHADOWS, TARGETS = 2000, 32, 16
MLP: Final = Recipe(net="mlp", hidden=(256,), batch=32, weight_decay=5e-4, precision="float32")
LEARN: Final = replace(MLP, epochs=40, lr=0.05)  # 20 passes: an epoch has steps for half of the records
TUNE: Final = replace(MLP, epochs=15, lr=0.02)  # 15 passes over the half that a model learns
COLUMNS: Final = ("end_1", "end_2", "mean_1", "mean_2", "matt", "dual")  # of Moved, for two layers

PLAYED: Final[Mapping[str, int]] = {"digits": 8, "fashion_mlp": 4}  # targets of the zoos of the low budget
TIMED: Final = (4, 16)  # shadows whose training is timed; a line through both stands for other numbers
HEADS: Final = 96


def public() -> Data:
    """What the start has learned."""
    return replace(load("fashion_mnist")[torch.arange(*PUBLIC)], name="fashion_mnist")


def pretrained(folder: Path) -> Path:
    """The start's weights, trained once."""
    path = folder / "start.safetensors"
    if not path.exists():
        net = reference_on(public(), LEARN, stream(SEEDS[0], "public"))
        write(path, [save(net.state_dict())])
    return path


def from_(state: Mapping[str, Tensor]) -> Factory:
    """A net factory whose fresh nets all have these weights."""

    def started(shape: tuple[int, ...], classes: int) -> nn.Module:
        net = nets.build(TUNE, shape, classes)
        net.load_state_dict(state)
        return net

    return started


def tuned(start: Path, folder: Path, seed: int, shadows: int = SHADOWS, targets: int = TARGETS) -> Zoo:
    """The zoo of fine-tuned models, in a folder named by the start, of which its key does not tell."""
    recipe = replace(TUNE, net=from_(load_file(start)), hidden=())
    root = folder / "zoos" / checksum(start)[:16]
    return Zoo.train(
        fashion(),
        recipe,
        shadows=shadows,
        targets=targets,
        seed=seed,
        records=POOL,
        root=root,
        device="cpu",
    )


def kept_share(recipe: Recipe, n: int) -> float:
    """What weight decay leaves of the first weights after training on half of n records.

    A step of rate eta moves weights by eta / (1 - momentum) of the gradient in the long run.
    """
    steps = recipe.epochs * math.ceil(n / 2 / recipe.batch)
    pace = recipe.weight_decay / (1 - recipe.momentum)
    return math.prod(1 - rate(recipe, step, steps) * pace for step in range(steps))


@dataclass(frozen=True)
class Moved:
    """Signals of the way from the start, one column for each of COLUMNS, and with `decoded` one more.

    theta - c theta_0, c as of `kept_share`, is the sum over members of g_i J_i with
    g_i = (1 - c) / (n lambda) sigma(-phi_i), J and sigma averaged over training. J is taken at the end, sigma
    as the mean of start and end.
    """

    start: nn.Module
    aux: Data
    c: float
    weight_decay: float
    n_train: int
    decoded: bool = False

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        of = self.gram(model, x, y)
        columns = [displaced(model, self.start, x, y, self.aux, linearise=way) for way in ("end", "mean")]
        one = [matt(self.start, model, x, y, shared=True), solve(of, W.ridge)]
        one += [bits(of, self.weight(model, x, y), W.laws[0])] if self.decoded else []
        return torch.cat([*columns, torch.stack(one, 1)], 1)

    def gram(self, model: nn.Module, x: Tensor, y: Tensor) -> Gram:
        """Of all layers, with theta - c theta_0 in the place of theta."""
        first = dict(self.start.named_parameters())
        moved = {k: p.detach().double() - self.c * first[k].double() for k, p in model.named_parameters()}
        b = dict(zip(owners(model), contract(model, x, y, moved).T, strict=True))

        def square(name: str) -> float:
            return sum(float(v.square().sum()) for k, v in moved.items() if k.rpartition(".")[0] == name)

        return pooled([g._replace(b=b[name], square=square(name)) for name, g in grams(model, x, y)])

    def weight(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        ends = [shares(logits(net, x, y), y, self.weight_decay, self.n_train) for net in (self.start, model)]
        return (1 - self.c) * torch.stack(ends).mean(0)


def tuned_scores(zoo: Zoo, start: Path) -> Scores:
    """Every attack of the fine-tuning table on one zoo."""
    recipe, y, member = zoo.recipe, zoo.pool.y, zoo.shadow_member
    net = from_(load_file(start))(zoo.pool.shape, zoo.pool.classes).eval()
    c = kept_share(recipe, len(y))
    signal = Moved(net, zoo.aux, c, recipe.weight_decay, round(len(y) / 2))
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        S = dict(zip(COLUMNS, zoo.signal(signal, of="shadow").unbind(1), strict=True))
        told = zoo.signal(replace(signal, decoded=True), of="target").unbind(1)
        s = dict(zip((*COLUMNS, "decode"), told, strict=True))
        S["phi"], s["phi"] = (phi(zoo.answers(kind)[:, :, 0], y) for kind in ("shadow", "target"))
        found: Scores = {
            "loss": s["phi"],
            "lira": ratio(s["phi"], fit(S["phi"], member, variance="shrunk")),
            "rmia": rmia_online(zoo),
            "bavaria": bavaria.bavaria(s["phi"], S["phi"], member),
        }
        for name, way in (("displacement", "end"), ("displacement-mean", "mean")):
            pair = [torch.stack([v[f"{way}_1"], v[f"{way}_2"]], -1) for v in (s, S)]
            found[name] = torch.stack(
                [displacement(one, pair[1], member, variance="shrunk") for one in pair[0]]
            )
        for name in ("matt", "dual"):
            found |= {name: s[name], f"{name}-ratio": by_shadows(s[name], S[name], member)}
        found["decode"] = s["decode"]
        for name, used in (("stacked", ("phi", "end_1", "end_2")), ("stacked-phi", ("phi",))):
            stack = fit_stack({k: S[k] for k in used}, member, stream(zoo.seed, "stack"))
            found[name] = stack({k: s[k] for k in used})
        found["control-target"] = found["displacement"].roll(1, 0)
    return {name: v.double().contiguous() for name, v in found.items()}


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


def finetuning(folder: Path) -> list[Row]:
    """Rows of all seeds together, of each seed, and what the zoos are."""
    start, scores, truth, about = pretrained(folder), list[Scores](), list[Tensor](), list[Row]()
    for seed in SEEDS:
        zoo = tuned(start, folder, seed)
        begun = process_time()
        scores.append(tuned_scores(zoo, start))
        truth.append(zoo.target_member)
        about.append({"table": "about", "seed": seed, "zoo": zoo.key, "n_neg": int((~truth[-1]).sum())})
        about[-1] |= zoo.accuracy() | {"start_kept": kept_share(zoo.recipe, POOL)}
        about[-1] |= {"signals_seconds": process_time() - begun}
        say(about[-1])
    return table(scores, truth, SEEDS, "lira") + about


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
                | {"low": r.low, "high": r.high, f"ratio_to_{rival}_seeds": list(r.seeds)}
                | ({"empty_draws": r.empty} if r.empty else {})
            )
        rows += sorted(some, key=lambda row: -float(row["tpr_at_0.1pct"]))
    return rows


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


def kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What lies there, or what is made now."""
    if not path.exists():
        write(path, [save(make())])
    return load_file(path)


PARTS: Mapping[str, Callable[[Path], list[Row]]] = {"finetuning": finetuning, "budget": budget}


def main(only: tuple[str, ...] = (), folder: Path = Path("runs/open_problem_regimes")) -> None:
    """Runs the parts that are not in `folder` yet (or `only` those named, anew); prints a line a row.

    Writes results/open_problem_regimes.json once both are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        path = folder / f"{name}.json"
        if name in only or (not only and not path.exists()):
            rows = strict(part(folder / name))
            path.write_text(json.dumps(rows, indent=1, allow_nan=False))
            for row in rows:
                say(row)
    if all((folder / f"{name}.json").exists() for name in PARTS):
        held = {name: json.loads((folder / f"{name}.json").read_text()) for name in PARTS}
        rows = [{"part": name} | row for name, some in held.items() for row in some]
        record.write(
            "open_problem_regimes", "python -m benchmark.open_problem_regimes", 0, figures(held), rows
        )


def figures(held: Mapping[str, list[Row]]) -> dict[str, float]:
    """The few numbers that are named elsewhere."""
    tuned_ = {row["attack"]: row for row in held["finetuning"] if row["seed"] == "all"}
    found = {
        "finetuning_displacement_over_lira": tuned_["displacement"]["ratio_to_lira"],
        "finetuning_displacement_over_lira_low": tuned_["displacement"]["low"],
        "finetuning_stacked_over_lira": tuned_["stacked"]["ratio_to_lira"],
        "finetuning_decode_over_lira": tuned_["decode"]["ratio_to_lira"],
    }
    for name in PLAYED:
        rows = {row["attack"]: row for row in held["budget"] if row["zoo"] == name}
        found |= {f"{name}_shadows_for_a_frozen_trunk": float(rows["lira-q"]["shadows"])}
        for attack in ("frozen-trunk", "decode"):
            key = f"{name}_{attack.replace('-', '_')}_over_lira_q"
            found |= {key: rows[attack]["ratio_to_lira-q"], f"{key}_low": rows[attack]["low"]}
    return {key: float(value) for key, value in found.items() if value is not None}


if __name__ == "__main__":
    tyro.cli(main)
