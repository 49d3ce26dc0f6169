"""BREP, boundary repulsion (Kahla et al. 2022, arXiv:2203.01925): labels alone, in a decoder's latent space.

The attacker has: the target's labels, and a decoder from z to images, made without a private record. From a z
whose image is in class: n points z + R u, |u| = 1, are asked for, and those outside push the centre away,
    z <- clamp(z - min(R / 3, step) mean_i [point i outside] u_i),
unless the new centre leaves the class; then the sphere is drawn again. Where more than `grow_at` of the n
points are in class, R grows by `growth`. The end is `patience` steps without growth. The larger the sphere in
class, the farther its centre is from the boundary, and the more typical its image should be.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glasslab.checks import Floored
from glasslab.oracle import BudgetExceeded, Oracle
from glasslab.split import stream
from inversion.result import Inversion

Decode = Callable[[Tensor], Tensor]  # z [b, latent] -> images [b, *d], no row of which depends on another
Asking = Generator[Tensor, Tensor, None]  # latent points [b, latent] out, which of them are in class in

UNBOUNDED = 1e6  # a radius at which a class that still holds the sphere has no boundary to be repelled by


class _Rule(NamedTuple):
    latent: int
    n: int
    radius: float
    growth: float
    step: float
    clamp: float
    grow_at: float
    patience: int
    redraws: int
    tries: int
    watch: int


def label_only(
    oracle: Oracle,
    y: Int[Tensor, "c"],
    *,
    latent: int,
    decode: Decode,
    n: int = 32,
    radius: float = 2.0,
    growth: float = 1.3,
    step: float = 3.0,
    clamp: float = 1.5,
    grow_at: float = 28 / 32,
    patience: int = 1000,
    redraws: int = 100,
    tries: int = 1000,
    seed: int = 0,
    watch: int = 0,
) -> Inversion:
    """One image a label: the centre of the largest sphere found in class, else the last centre.

    cost is minus that sphere's radius, 0 where there is none, inf without a start; confidence the share of
    its points (else of the last sphere's) that are in class; both are NaN before the first answer. steps are
    the moves, the curve is the share of each sphere.
    stop_reason: stall (`patience` moves without growth), redraws (so many moves in a row that leave the
    class), no_start (none of `tries` draws is in class: the image of z = 0, and a Floored warning with the
    number of such labels), unbounded (spheres of any size are in class), budget (of the oracle: all end).
    What a label gets depends on the seed, the label and on how many equal labels precede it; where a budget
    ends it, on all labels. `grow_at` is exclusive; 1.0 asks for all points.
    Raises ValueError on settings out of their range and on a model or decoder in training mode.
    """
    rule = _Rule(latent, n, radius, growth, step, clamp, grow_at, patience, redraws, tries, watch)
    _check(rule, decode, y)
    walks, before = [], Counter[int]()
    for label in y.tolist():
        walks.append(_Walk(rule, stream(seed, "label_only", label, before[label]), torch.zeros(latent)))
        before[label] += 1
    with torch.no_grad():
        _together(oracle, decode, y, walks)
        x = torch.cat([decode(walk.z[None].to(y.device)) for walk in walks])
    if lost := sum(walk.reason == "no_start" for walk in walks):
        warnings.warn(f"{lost} of {len(y)} labels have no start among {tries} draws", Floored, stacklevel=2)
    return Inversion(
        x=x,
        y=y,
        cost=_row([w.cost for w in walks], y),
        confidence=_row([w.share if w.queries else torch.nan for w in walks], y),
        steps=_row([w.steps for w in walks], y).long(),
        queries=_row([w.queries for w in walks], y).long(),
        stop_reason=tuple(walk.reason for walk in walks),
        curve=_curve(walks, y),
    )


@dataclass(eq=False)
class _Walk:
    """One label's search. It asks for points and is told which are in class; it knows of no other label."""

    rule: _Rule
    generator: torch.Generator
    z: Float[Tensor, "latent"]  # what is returned if the walk ends here
    radius: float = 0.0  # of the largest sphere found in class, whose centre z then is
    share: float = 0.0
    started: bool = False
    steps: int = 0
    queries: int = 0
    reason: str = "budget"
    shares: list[float] = field(default_factory=list)

    @property
    def cost(self) -> float:
        """Minus the radius; inf where draws were answered but none is a start, NaN before the first."""
        return -self.radius if self.started else torch.inf if self.queries else torch.nan

    def start(self) -> Generator[Tensor, Tensor, Tensor | None]:
        """The first normal draw in class, n of them asked for at a time; None after `tries`."""
        for done in range(0, self.rule.tries, self.rule.n):
            z = self.normal(min(self.rule.n, self.rule.tries - done)).clamp(-self.rule.clamp, self.rule.clamp)
            inside = yield z
            if inside.any():
                return z[int(inside.int().argmax())]
        return None

    def search(self) -> Asking:
        r, z = self.rule, (yield from self.start())
        if z is None:
            self.reason = "no_start"
            return
        self.z, self.started = z, True
        radius, since, lost = r.radius, 0, 0
        while since < r.patience:
            u = torch.nn.functional.normalize(self.normal(r.n))
            inside = yield z + radius * u
            share, grown = float(inside.double().mean()), grows(int(inside.sum()), r.n, r.grow_at)
            # DIFFERS: the authors' code divides by the grown radius where the sphere has just grown.
            push = (u * ~inside[:, None]).mean(0)
            moved = (z - min(radius / 3, r.step) * push).clamp(-r.clamp, r.clamp)
            if grown:
                # DIFFERS: the authors keep the centre after the move, around which no sphere was asked for.
                self.z, self.radius, self.share = z, radius, share
                radius, since = radius * r.growth, 0
            elif not self.radius:
                self.share = share
            if radius > UNBOUNDED:
                self.reason = "unbounded"
                return
            if not bool((yield moved[None])[0]):
                lost += 1
                if lost >= r.redraws:  # DIFFERS: the authors' code draws again for ever.
                    self.reason = "redraws"
                    return
                continue
            z, lost, since, self.steps = moved, 0, since + (not grown), self.steps + 1
            if not self.radius:
                self.z = z
            if r.watch and self.steps % r.watch == 0:
                self.shares.append(share)
        self.reason = "stall"

    def normal(self, rows: int) -> Float[Tensor, "{rows} latent"]:
        return torch.randn(rows, self.rule.latent, generator=self.generator)


def grows(inside: int, n: int, grow_at: float) -> bool:
    """Is the sphere large enough in class: more than grow_at of n points, or all of them?

    >>> grows(28, 32, 28 / 32), grows(29, 32, 28 / 32), grows(31, 32, 1.0), grows(32, 32, 1.0)
    (False, True, False, True)
    """
    return inside == n or inside > grow_at * n + 1e-9  # 0.29 of 100 is 28.999... in floating point


def _together(oracle: Oracle, decode: Decode, y: Int[Tensor, "c"], walks: Sequence[_Walk]) -> None:
    """All searches at once, one call of the oracle a round, until each has ended or the budget has."""
    searches = [walk.search() for walk in walks]
    asked = {i: next(search) for i, search in enumerate(searches)}
    while asked:
        # A decoder sees one label's points at a time, so that its rounding does not depend on other labels.
        images = [decode(z.to(y.device)) for z in asked.values()]
        for z, x in zip(asked.values(), images, strict=True):
            if len(x) != len(z):
                raise ValueError(f"decode must give one image a latent point, got {len(x)} for {len(z)}")
        try:
            answer = oracle(torch.cat(images))
        except BudgetExceeded:
            return  # nothing was answered or counted: each walk stands where it was
        told = answer.argmax(-1) if oracle.reveals == "probabilities" else answer
        parts = told.cpu().split([len(z) for z in asked.values()])
        rest = {}
        for i, part in zip(asked, parts, strict=True):
            walks[i].queries += len(part)
            try:
                rest[i] = searches[i].send(part == y[i].cpu())
            except StopIteration:
                continue
        asked = rest


def _curve(walks: Sequence[_Walk], y: Int[Tensor, "c"]) -> Float[Tensor, "k c"] | None:
    """Shares, each label's last one repeated once it has stopped."""
    k = max((len(walk.shares) for walk in walks), default=0)
    rows = [w.shares + [w.shares[-1] if w.shares else w.share] * (k - len(w.shares)) for w in walks]
    return torch.tensor(rows, dtype=torch.float64, device=y.device).T if k else None


def _row(values: Sequence[float | int], y: Int[Tensor, "c"]) -> Tensor:
    return torch.tensor(values, device=y.device, dtype=torch.float64)


def _check(rule: _Rule, decode: Decode, y: Tensor) -> None:
    if not len(y):
        raise ValueError("y must hold 1+ labels, got none")
    if isinstance(decode, nn.Module) and any(layer.training for layer in decode.modules()):
        raise ValueError("decode must be in eval mode, got training mode")
    for name in ("latent", "n", "patience", "redraws", "tries"):
        if (value := getattr(rule, name)) < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    for name in ("radius", "step", "clamp"):
        if not (value := getattr(rule, name)) > 0:
            raise ValueError(f"{name} must be greater than 0, got {value:g}")
    if not rule.growth > 1:
        raise ValueError(f"growth must be greater than 1, got {rule.growth:g}")
    if not 0 < rule.grow_at <= 1:
        raise ValueError(f"grow_at must be greater than 0 and at most 1, got {rule.grow_at:g}")
