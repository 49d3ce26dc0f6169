"""Algorithm 1 of Shokri et al. 2017 for many chains at once: one query a chain a round.

Which k features a chain changes: one random order of the features a round is shared by all chains, and each
has a random place in it, from where it takes the next k, cyclically. Each set is a uniform k-set. The
sets of two chains in one round depend on each other, which no chain sees.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor

from glasslab.oracle import Oracle
from synthesis.features import Features, joined
from synthesis.synthetic import REASONS

Tick = Callable[[int, int], None]  # records finished so far, queries so far
SAMPLED, EXHAUSTED, BUDGET, INVALID, INTERRUPTED = range(len(REASONS))


@dataclass(frozen=True)
class Rule:
    """The numbers of Algorithm 1."""

    k_max: int
    k_min: int
    rej_max: int
    conf_min: float | int
    iter_max: int


@dataclass(eq=False)
class Draws:
    """All chance in a climb. Chains are named by their place among the wanted records."""

    starts: Features
    fresh: Features
    units: int
    generator: Generator
    records: Float[Tensor, "r d"] | None = None  # to start from, one after another and round again

    def start(self, chains: Int[Tensor, "m"]) -> Float[Tensor, "m d"]:
        if self.records is not None:
            return self.records[chains % len(self.records)]
        return joined(self.starts, len(chains), self.generator)

    def rank(self) -> Int[Tensor, "u"]:
        """The place of each feature in the order that all chains of a round share."""
        return torch.randperm(self.units, generator=self.generator, device=self.generator.device)

    def offset(self, chains: Int[Tensor, "m"]) -> Int[Tensor, "m"]:
        """Where in that order each chain's k features begin."""
        shape, device = chains.shape, self.generator.device
        return torch.randint(self.units, shape, generator=self.generator, device=device)

    def values(self, chains: Int[Tensor, "m"]) -> Float[Tensor, "m d"]:
        return joined(self.fresh, len(chains), self.generator)

    def uniform(self, chains: Int[Tensor, "m"]) -> Float64[Tensor, "m"]:
        shape, device = chains.shape, self.generator.device
        return torch.rand(shape, generator=self.generator, device=device, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Moves:
    """How a record's features are changed: `flip` says of which columns the value is turned, else redrawn."""

    unit: Int[Tensor, "d"]
    flip: Bool[Tensor, "d"]
    bits: bool  # all columns are binary: records are kept as one byte a column

    def propose(self, best: Tensor, k: Int[Tensor, "m"], chains: Int[Tensor, "m"], draws: Draws) -> Tensor:
        """RANDRECORD(x*, k): `best` [m, d] with k features of each record changed."""
        mask = window(draws.rank()[self.unit], draws.offset(chains), k, draws.units)
        if self.flip.all():
            return best ^ mask
        fresh = draws.values(chains).to(best.dtype)
        if self.flip.any():
            fresh = torch.where(self.flip, ~best if self.bits else 1 - best, fresh)
        # the same as `where`, at a thirtieth of its price on bytes
        return best ^ ((best ^ fresh) & mask) if self.bits else torch.where(mask, fresh, best)


def window(
    rank: Int[Tensor, "d"], offset: Int[Tensor, "m"], k: Int[Tensor, "m"], units: int
) -> Bool[Tensor, "m d"]:
    """Of each chain the columns with (rank - offset) mod units < k: one subtraction and one comparison.

    In 16 bits, which wrap: a window that passes the end holds all places above it too, where no rank is.
    """
    narrow, half = (torch.int16, 2**15) if units < 2**15 else (torch.int32, 2**31)
    length = torch.where(offset + k > units, k - units + 2 * half, k)
    first, last = (offset + half).to(narrow), (length - 1 - half).to(narrow)  # `half`: compare without sign
    return rank.to(narrow) - first[:, None] <= last[:, None]


@dataclass(eq=False)
class Chains:
    """The chains under way, one a row, in the order of the wanted records."""

    id: Int[Tensor, "m"]
    c: Int[Tensor, "m"]
    x: Tensor  # [m, d], what is asked next
    best: Tensor  # [m, d], x* of Algorithm 1
    y: Float64[Tensor, "m"]  # y*_c
    j: Int[Tensor, "m"]
    k: Int[Tensor, "m"]

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, rows: slice) -> "Chains":
        return Chains(*(t[rows] for t in self.tensors()))

    def __add__(self, other: "Chains") -> "Chains":
        return Chains(*map(torch.cat, zip(self.tensors(), other.tensors(), strict=True)))

    def tensors(self) -> tuple[Tensor, ...]:
        return self.id, self.c, self.x, self.best, self.y, self.j, self.k


@dataclass(eq=False)
class Climb:
    """w chains, one a wanted record, at most `batch` of them at a time, and what has become of them."""

    oracle: Oracle
    labels: Int[Tensor, "w"]
    shape: tuple[int, ...]
    rule: Rule
    moves: Moves
    draws: Draws
    batch: int
    queries: Int[Tensor, "w"] = field(init=False)
    reason: Int[Tensor, "w"] = field(init=False)  # a place in REASONS, -1 while under way
    made: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # ids, records, y_c

    def __post_init__(self) -> None:
        self.queries = torch.zeros_like(self.labels)
        self.reason = torch.full_like(self.labels, -1)

    def run(self, tick: Tick | None = None) -> None:
        """Until all chains have ended; Ctrl-C ends those under way and keeps those that are finished."""
        try:
            self._rounds(tick)
        except KeyboardInterrupt:
            self.reason[self.reason < 0] = INTERRUPTED
        for ids, _, _ in self.made:
            self.reason[ids] = SAMPLED

    def _rounds(self, tick: Tick | None) -> None:
        chains, begun = self._new(0, self.batch), self.batch
        while len(chains):
            left = self.oracle.left
            last = left is not None and left < len(chains)
            chains = self._round(chains[:left] if last else chains)
            if tick is not None:
                tick(int((self.reason >= 0).sum()), int(self.queries.sum()))
            if last:
                self.reason[self.reason < 0] = BUDGET
                return
            if len(chains):
                chains.x = self.moves.propose(chains.best, chains.k, chains.id, self.draws)
            if len(chains) < self.batch and begun < len(self.labels):
                free = self.batch - len(chains)
                chains, begun = chains + self._new(begun, free), begun + free

    def _new(self, first: int, count: int) -> Chains:
        ids = torch.arange(len(self.labels), device=self.labels.device)[first : first + count]
        x = self.draws.start(ids)
        x = x.bool() if self.moves.bits else x
        y = torch.zeros(len(ids), dtype=torch.float64, device=x.device)
        return Chains(ids, self.labels[ids], x, x, y, ids * 0, torch.full_like(ids, self.rule.k_max))

    def _round(self, chains: Chains) -> Chains:
        """One query of every chain, lines 7 to 23; what is left are the chains that go on."""
        if not len(chains):
            return chains
        c, rule, ids = chains.c, self.rule, chains.id
        told = self.oracle(self._asked(chains.x))
        self.queries[ids] += 1
        y, top, good = self._read(told, c)
        accept = good & (y >= chains.y)
        passes = (accept & (y > rule.conf_min) & (top == c)).nonzero().squeeze(1)
        done = ~good
        returned = passes[self.draws.uniform(ids[passes]) < y[passes]]
        done[returned] = True
        if len(returned):
            self.made.append((ids[returned], chains.x[returned], y[returned]))
        self.reason[ids[~good]] = INVALID
        self.reason[ids[returned]] = SAMPLED
        spent = ~done & (self.queries[ids] >= rule.iter_max)
        self.reason[ids[spent]] = EXHAUSTED
        j = torch.where(accept, 0, chains.j + 1)
        halve = j > rule.rej_max
        k = torch.where(halve, ((chains.k + 1) // 2).clamp(min=rule.k_min), chains.k)
        on = (~done & ~spent).nonzero().squeeze(1)
        best = torch.cat([chains.best, chains.x])[on + len(chains) * accept[on]]
        best_y = torch.where(accept, y, chains.y)
        return Chains(ids[on], c[on], best, best, best_y[on], j.masked_fill(halve, 0)[on], k[on])

    def _asked(self, x: Tensor) -> Float[Tensor, "m *d"]:
        """Records as the oracle takes them, in memory of their own: a model may work in place."""
        x = x.view(torch.uint8) if x.dtype == torch.bool else x  # bytes become floats 8 times as fast as bits
        return x.to(torch.float32, copy=True).reshape(-1, *self.shape)

    def _read(
        self, told: Tensor, c: Int[Tensor, "m"]
    ) -> tuple[Float64[Tensor, "m"], Int[Tensor, "m"], Bool[Tensor, "m"]]:
        """(y_c, the most probable class, whether the answer holds probabilities)."""
        if self.oracle.reveals == "labels":
            return (told == c).double(), told, torch.ones_like(c, dtype=torch.bool)
        if int(c.max()) >= told.shape[1]:
            raise ValueError(f"labels must be in 0 .. {told.shape[1] - 1}, got {int(c.max())}")
        good = (told.amin(1) >= 0) & (told.amax(1) <= 1)  # NaN passes neither
        if not bool(good.all()) and bool((self.reason < 0).all()):
            low, high = float(told.min()), float(told.max())
            raise ValueError(
                f"oracle must answer with probabilities in [0, 1], got {low:g} to {high:g}: are these logits?"
            )
        return told.gather(1, c[:, None]).squeeze(1).double(), told.argmax(1), good
