"""Who trains on what: the parts of a data set, and membership rows (row = model, column = record)."""

import hashlib
import json
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from glasslab.data import Data

SHARES = {"pool": 0.60, "aux": 0.20, "val": 0.05, "test": 0.15}


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint record ids: pool (the candidates), aux (the attacker's own), val (early stopping), test.

    `records` is the cap that was put on the pool (None: no cap), `duplicates` the number of records
    that equal an earlier one exactly; equal records always lie in one part.
    """

    pool: Int[Tensor, "p"]
    aux: Int[Tensor, "a"]
    val: Int[Tensor, "v"]
    test: Int[Tensor, "q"]
    seed: int
    records: int | None
    duplicates: int


def subseed(*key: str | int) -> int:
    """A 63-bit seed that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:8], "big") >> 1


def stream(*key: str | int) -> Generator:
    """A generator that depends on the key alone: the same key, the same numbers, on every machine."""
    return torch.Generator().manual_seed(subseed(*key))


def split(data: Data, seed: int, *, records: int | None = None) -> Split:
    """Shuffles by seed and cuts 60 / 20 / 5 / 15 %; `records` keeps so many of the pool at most.

    Raises ValueError where a part would be empty.
    """
    group = _equal_records(data.x)
    rank = torch.randperm(len(data), generator=stream(seed, "split"))[group]
    order = rank.argsort(stable=True)
    parts, start, share = {}, 0, 0.0
    for name in SHARES:
        share += SHARES[name]
        stop = _past_equals(rank[order], round(share * len(data)))
        parts[name], start = order[start:stop], max(start, stop)
        if not len(parts[name]):
            raise ValueError(f"data must fill pool, aux, val and test, got {len(data)} records: no {name}")
    if records is not None:
        if records < 2:
            raise ValueError(f"records must be 2 or more, got {records}")
        parts["pool"] = parts["pool"][:records]
    duplicates = len(data) - len(group.unique())
    return Split(**parts, seed=seed, records=records, duplicates=duplicates)


def shadow_rows(m: int, n: int, seed: int) -> Bool[Tensor, "{m} {n}"]:
    """Shadow models, in blocks of a random half and its complement: each record is in exactly m / 2 rows.

    Block b depends on (n, seed, b) alone, so 64 rows extended to 128 equal 128 drawn at once.
    ValueError if m is odd.
    """
    if m % 2 or m < 0:
        raise ValueError(f"m, the number of shadow models, must be even, got {m}")
    blocks = [torch.randperm(n, generator=stream(seed, "shadow", b)) < n // 2 for b in range(m // 2)]
    return torch.stack([row for half in blocks for row in (half, ~half)]) if m else torch.zeros(0, n).bool()


def target_rows(t: int, n: int, seed: int) -> Bool[Tensor, "{t} {n}"]:
    """Targets: a fair coin a record. Never rows of a balanced design, where the count gives members away."""
    coins = [torch.rand(n, generator=stream(seed, "target", a)) < 0.5 for a in range(t)]
    return torch.stack(coins) if t else torch.zeros(0, n).bool()


def leave_one_out(
    a: int, S: Float[Tensor, "m n *k"], member: Bool[Tensor, "m n"]
) -> tuple[Float[Tensor, "m-2 n *k"], Bool[Tensor, "m-2 n"]]:
    """What is left of the shadows' signals, records second, when shadow `a` plays the target: equal counts.

    In a balanced design a record that `a` trained on has one IN model fewer left; its count would give it
    away. So each record keeps the first m / 2 - 1 models of each side in model order; a row of the result
    is no longer one model. Raises ValueError where the counts differ all the same (Cure 2 of the protocol).
    """
    m = len(member)
    if m % 2 or not 0 <= a < m:
        raise ValueError(f"a must be one of an even number of models, got model {a} of {m}")
    others = torch.arange(m) != a
    kept = member[others]
    each = m // 2 - 1
    if each < 1 or (kept.sum(0) < each).any() or ((~kept).sum(0) < each).any():
        least = min(int(kept.sum(0).min()), int((~kept).sum(0).min()))
        raise ValueError(f"member must leave {max(each, 1)} models a side without model {a}, got {least}")
    first = [side.int().argsort(dim=0, descending=True, stable=True)[:each] for side in (kept, ~kept)]
    rows = others.nonzero().squeeze(1)[torch.cat(first)]
    index = rows.reshape(*rows.shape, *[1] * (S.ndim - 2)).expand(-1, -1, *S.shape[2:])
    return S.gather(0, index), member.gather(0, rows)


def _equal_records(x: Tensor) -> Int[Tensor, "n"]:
    """One number a record, the same for records that are equal byte for byte."""
    first: dict[bytes, int] = {}
    rows = x.reshape(len(x), -1).cpu().contiguous().numpy()
    keys = (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows)
    return torch.tensor([first.setdefault(key, i) for i, key in enumerate(keys)])


def _past_equals(group: Tensor, cut: int) -> int:
    """The first place at or after `cut` that does not tear equal records apart."""
    while 0 < cut < len(group) and group[cut] == group[cut - 1]:
        cut += 1
    return cut
