"""What `decode`, `dual` and LiRA find in one small zoo, and the ways in which a table asks them.

Neither white-box attack is given a shadow. LiRA has the zoo's, which were made as the targets were.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor, nn

from benchmark.zoos import Fixed
from glasslab import signals
from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.design import Kind
from glasslab.likelihood import fit, ratio
from glasslab.metrics import auc, tpr_at_fpr
from glasslab.oracle import forward
from glasslab.split import stream
from glasslab.zoo import Zoo
from whitebox.decode import bits, shares
from whitebox.dual import solve
from whitebox.gram import Gram, grams, pooled, weights
from workbench.evidence import one_thread
from workbench.open_problem.frozen import W

Row = dict[str, Any]
Found = Sequence[tuple[str, Gram]]  # of a model, layer by layer
Told = list[tuple[Row, Float64[Tensor, "*t n"] | None]]  # attacks, and what they say of the candidates
Solver = Callable[[nn.Module, Found, Float64[Tensor, "n"] | None], Told]

SEEDS: Final = (200, 201)
LAW: Final = W.laws[0]
MEASURES: Final = ("tpr_at_0.1pct", "tpr_at_1pct", "auc")
COVERED: Final = (1.0, 0.5, 0.2, 0.05)
RIDGES: Final = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
NOISES: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
ALONE: Final = (130, 16)  # records and targets that are attacked one by one


@dataclass(frozen=True, eq=False)
class Released:
    """A zoo whose weights are handed out with white noise: `noise` of each layer's root mean square."""

    zoo: Zoo
    noise: float = 0.0

    def model(self, kind: Kind, i: int) -> nn.Module:
        model = self.zoo.shadow(i) if kind == "shadow" else self.zoo.target(i)
        if self.noise:
            blur(model, self.noise, stream(self.zoo.seed, "noise", kind, i))
        return model

    def answers(self, kind: Kind, on: str = "pool") -> Float[Tensor, "_ n c"]:
        if not self.noise:
            return self.zoo.answers(kind, on=on)[:, :, 0]
        x = self.zoo.design.part(on).x.to(self.zoo.device)
        return torch.stack([forward(self.model(kind, i), x).cpu() for i in range(len(self.zoo.member(kind)))])

    def accuracy(self) -> Row:
        """Of the targets, on their members and on the test set."""
        member, found = self.zoo.target_member, {}
        for name, on, data in (("train", "pool", self.zoo.pool), ("test", "test", self.zoo.test)):
            right = (self.answers("target", on).argmax(-1) == data.y).double()
            side = member if name == "train" else torch.ones_like(right)
            found[name] = float((right * side).sum(1).div(side.sum(1)).mean())
        return found


@torch.no_grad()
def blur(model: nn.Module, share: float, generator: Generator) -> None:
    """Adds noise to weight and bias of every dense layer and convolution, in place."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            scale = share * weights(model, name).square().mean().sqrt()
            for p in layer.parameters(recurse=False):
                p.add_(scale * torch.randn(p.shape, generator=generator).to(p))


@contextmanager
def calm() -> Iterator[None]:
    """One thread, and no word of layers that are left out or of spreads that are floored."""
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", Floored)
        yield


def usual(model: nn.Module, found: Found, g: Float64[Tensor, "n"] | None) -> Told:
    """All layers together."""
    return both(pooled([of for _, of in found]), g)


def both(of: Gram, g: Float64[Tensor, "n"] | None, case: Row | None = None) -> Told:
    """`decode`, which needs g, and `dual`."""
    case = case or {}
    decoded = None if g is None else bits(of, g, LAW)
    return [({"attack": "decode"} | case, decoded), ({"attack": "dual"} | case, solve(of, W.ridge))]


def by_layer(model: nn.Module, found: Found, g: Float64[Tensor, "n"] | None) -> Told:
    """The first, the last, all."""
    each = {"first": found[:1], "last": found[-1:], "all": found}
    return [
        told
        for name, some in each.items()
        for told in both(pooled([of for _, of in some]), g, {"layers": name})
    ]


def by_kind(model: nn.Module, found: Found, g: Float64[Tensor, "n"] | None) -> Told:
    """Dense layers, and all that say something."""
    dense = [of for name, of in found if isinstance(model.get_submodule(name), nn.Linear)]
    return both(pooled(dense), g, {"layers": "dense"}) + both(
        pooled([of for _, of in found]), g, {"layers": "all"}
    )


def by_setting(model: nn.Module, found: Found, g: Float64[Tensor, "n"] | None) -> Told:
    """`dual` at each ridge, `decode` at each noise."""
    of = pooled([one for _, one in found])
    told: Told = [({"attack": "dual", "ridge": ridge}, solve(of, ridge)) for ridge in RIDGES]
    if g is None:
        return told
    laws = [replace(LAW, noise=noise) for noise in NOISES]
    return told + [({"attack": "decode", "noise": law.noise}, bits(of, g, law)) for law in laws]


def by_coverage(model: nn.Module, found: Found, g: Float64[Tensor, "n"] | None) -> Told:
    """Candidates cut into equal blocks at random, and each block solved as if there were no other."""
    assert g is not None, "decode needs weight decay"
    of, told = pooled([one for _, one in found]), Told()
    order = torch.randperm(len(g), generator=stream(0, "blocks"))
    for share in COVERED:
        blocks = order.tensor_split(round(1 / share))
        parts = [_doubtful(part(of, rows), g[rows], share) for rows in blocks]
        for pieces in zip(*parts, strict=True):
            whole = torch.empty_like(g)
            whole[order] = torch.cat([value for _, value in pieces if value is not None])
            told.append((pieces[0][0], whole))
    return told


def _doubtful(of: Gram, g: Float64[Tensor, "n"], share: float) -> Told:
    """As `both`, and `decode` that leaves more to those who are not among the candidates."""
    law = replace(LAW, noise=NOISES[-1])
    case = {"attack": "decode", "coverage": share, "noise": law.noise}
    return [*both(of, g, {"coverage": share}), (case, bits(of, g, law))]


def part(of: Gram, rows: Int[Tensor, "r"]) -> Gram:
    """Of these candidates alone."""
    return of._replace(G=of.G[rows][:, rows], b=of.b[rows])


def measured(held: Released, solver: Solver = usual) -> list[Row]:
    """One row an attack: LiRA, then all that the solver tells, on all targets."""
    zoo = held.zoo
    with calm():
        z = held.answers("target")
        S, s = (signals.phi(held.answers(kind).double(), zoo.pool.y) for kind in ("shadow", "target"))
        scores: Told = [({"attack": "lira"}, ratio(s, fit(S, zoo.shadow_member, variance="shrunk")))]
        told = []
        for a in range(len(z)):
            model = held.model("target", a)
            told.append(solver(model, read(model, zoo.pool, zoo.device), expected(zoo, z[a], zoo.pool.y)))
        for same in zip(*told, strict=True):
            values = [value for _, value in same if value is not None]
            scores.append((same[0][0], torch.stack(values) if values else None))
    about = held.accuracy() | {"candidates": len(zoo.pool)}
    return [about | row | numbers(score, zoo.target_member) for row, score in scores]


def read(model: nn.Module, data: Data, device: str) -> Found:
    found = grams(model, data.x.to(device), data.y.to(device))
    return [(name, of._replace(G=of.G.cpu(), b=of.b.cpu())) for name, of in found]


def expected(zoo: Zoo, z: Float[Tensor, "n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "n"] | None:
    """g of every record, or None where no weight decay says how large it is."""
    decay = zoo.recipe.weight_decay
    return shares(z, y, decay, round(len(zoo.pool) / 2)) if decay > 0 else None


def numbers(score: Float64[Tensor, "t n"] | None, member: Bool[Tensor, "t n"]) -> Row:
    """What is measured, null where there is no score."""
    about: Row = {"non_members": int((~member).sum())}
    if score is None:
        return about | dict.fromkeys(MEASURES)
    rates = {"tpr_at_0.1pct": 0.001, "tpr_at_1pct": 0.01}
    tpr = {name: tpr_at_fpr(score, member, fpr).tpr for name, fpr in rates.items()}
    return about | tpr | {"auc": auc(score, member)}


def averaged(
    fixed: Fixed, about: Row, solver: Solver = usual, *, noise: float = 0.0, seeds: Sequence[int] = SEEDS
) -> list[Row]:
    """`measured` on a zoo of each seed, each row the mean over them."""
    return mean([measured(Released(fixed.zoo(seed), noise), solver) for seed in seeds], about)


def mean(each: Sequence[list[Row]], about: Row) -> list[Row]:
    """Rows of several seeds, one below the other, as one; `each` keeps the TPR that they had alone."""
    rows = [about | _mean(same) for same in zip(*each, strict=True)]
    for row in rows:
        say(row)
    return rows


def _mean(same: Sequence[Row]) -> Row:
    row = dict(same[0])
    for name in (*MEASURES, "train", "test"):
        values = [one[name] for one in same]
        row[name] = None if None in values else fmean(values)
    row["non_members"] = sum(one["non_members"] for one in same)
    return row | {"each": [one["tpr_at_0.1pct"] for one in same]}


def alone(held: Released) -> list[Row]:
    """Attacks on one record at a time: candidates are that record and aux."""
    zoo, (records, targets) = held.zoo, ALONE
    rows = torch.randperm(len(zoo.pool), generator=stream(zoo.seed, "alone"))[:records]
    y = torch.cat([zoo.pool.y[rows], zoo.aux.y])
    data = Data(torch.cat([zoo.pool.x[rows], zoo.aux.x]), y, zoo.pool.classes, "alone")
    aux = torch.arange(records, len(y))
    with calm():
        z = torch.cat([held.answers("target")[:, rows], held.answers("target", "aux")], 1)
        S, s = (signals.phi(held.answers(kind).double(), zoo.pool.y) for kind in ("shadow", "target"))
        lira = ratio(s, fit(S, zoo.shadow_member, variance="shrunk"))[:targets, rows]
        told: dict[str, list[Tensor]] = {"decode": [], "dual": []}
        for a in range(targets):
            model = held.model("target", a)
            of = pooled([one for _, one in read(model, data, zoo.device)])
            g = expected(zoo, z[a], y)
            assert g is not None, "decode needs weight decay"
            for j in range(records):
                few = torch.cat([torch.tensor([j]), aux])
                told["decode"].append(bits(part(of, few), g[few], LAW)[0])
                told["dual"].append(solve(part(of, few), W.ridge)[0])
    found = {name: torch.stack(values).view(targets, records) for name, values in told.items()}
    about = held.accuracy() | {"candidates": 1 + len(aux)}
    member = zoo.target_member[:targets, rows]
    return [about | {"attack": k} | numbers(v, member) for k, v in ({"lira": lira} | found).items()]


def say(row: Row) -> None:
    print(
        ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True
    )
