"""One target, its candidate records, and what the attacker holds. Never the truth."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glasslab.data import Data
from glasslab.design import Kind
from glasslab.masks import Mask
from glasslab.oracle import Answered, Oracle
from glasslab.recipe import Recipe
from glasslab.zoo import Zoo

Reveals = Literal["probabilities", "labels"]


@dataclass(frozen=True, eq=False)
class Shadows:
    """The attacker's own models, what they trained on and what they answer (a Zoo knows the truth).

    `records` and `member` say which model trained on what; `inside` says it of the candidates (all False
    for foreign shadows). z are the answers about the candidates, one for each of k queries, z_aux those about
    aux: logits, or log-probabilities where the interface masks them; either may be memory-mapped.
    """

    models: Sequence[nn.Module]
    records: Data
    member: Bool[Tensor, "m r"]
    inside: Bool[Tensor, "m n"]
    z: Float[Tensor, "m n k c"]
    z_aux: Float[Tensor, "m a c"]


@dataclass(frozen=True, eq=False)
class Game:
    """`model` is None unless the attacker holds the weights; the last four unless its access grants them.

    `known` are true members that the attacker was told of: the one place where the truth is handed out.
    `steps()` gives the updates of a training run, as whoever recorded them made them.
    """

    oracle: Oracle
    model: nn.Module | None
    x: Float[Tensor, "n *d"]
    y: Int[Tensor, "n"]
    classes: int
    recipe: Recipe
    shadows: Shadows
    aux: Data
    init: nn.Module | None = None
    checkpoints: Sequence[nn.Module] | None = None
    known: Bool[Tensor, "n"] | None = None
    steps: Callable[[], Sequence[Any]] | None = None


@dataclass(frozen=True, eq=False)
class Models(Sequence[nn.Module]):
    """Models that are read from disk when they are asked for, each time anew."""

    load: Callable[[int], nn.Module]
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> nn.Module: ...
    @overload
    def __getitem__(self, i: slice) -> "Models": ...
    def __getitem__(self, i: int | slice) -> "nn.Module | Models":
        return Models(self.load, self.rows[i]) if isinstance(i, slice) else self.load(self.rows[i])


def game(
    zoo: Zoo,
    a: int,
    *,
    shadows: Zoo | None = None,
    reveals: Reveals = "probabilities",
    mask: Sequence[Mask] = (),
    budget: int | None = None,
    weights: bool = False,
    known: bool = False,
    queries: int = 1,
) -> Game:
    """Target `a` against an attacker that holds the shadows of this zoo, or of another one.

    All targets share one `Shadows` object, so that what is fitted to it is fitted once. `weights` grants the
    model itself, `known` its members. Raises ValueError where there is no such target, and for shadows of
    other records' shape.
    """
    held = _shadows(zoo, zoo if shadows is None else shadows, tuple(mask), queries)
    told = zoo.target_member[a] if known else None
    return _game(zoo, zoo.target(a), answered(zoo, "target", a), held, reveals, mask, budget, weights, told)


def mock_game(
    zoo: Zoo,
    j: int,
    *,
    shadows: Zoo | None = None,
    reveals: Reveals = "probabilities",
    mask: Sequence[Mask] = (),
    budget: int | None = None,
    weights: bool = False,
    known: bool = False,
    queries: int = 1,
) -> Game:
    """Shadow `j` plays the target; its truth is `zoo.shadow_member[j]`. The attacker holds m - 2 others.

    Its complement leaves with it: each record keeps as many models in as out, whatever the truth, and each
    row is still one model (pair exclusion; for designs without pairs there is `split.leave_one_out`). Nothing
    is left out of another zoo's shadows, unless its row `j` is the same.
    """
    target = zoo.shadow(j)
    held = _shadows(zoo, zoo if shadows is None else shadows, tuple(mask), queries)
    if j < len(held.inside) and torch.equal(held.inside[j], zoo.shadow_member[j]):
        held = without(held, (j, j ^ 1))
    told = zoo.shadow_member[j] if known else None
    return _game(zoo, target, answered(zoo, "shadow", j), held, reveals, mask, budget, weights, told)


def answered(zoo: Zoo, kind: Kind, i: int) -> list[Answered]:
    """What model i has said about the candidates and aux, which the zoo keeps."""
    return [Answered(data.x, zoo.answers(kind, on=data)[i, :, 0]) for data in (zoo.pool, zoo.aux)]


def _game(
    zoo: Zoo,
    target: nn.Module,
    answers: Sequence[Answered],
    shadows: Shadows,
    reveals: Reveals,
    mask: Sequence[Mask],
    budget: int | None,
    weights: bool,
    known: Bool[Tensor, "n"] | None,
) -> Game:
    oracle = Oracle(target, reveals=reveals, mask=mask, budget=budget, answered=answers)
    model = target if weights else None
    pool, aux, classes = zoo.pool, zoo.aux, zoo.data.classes
    return Game(oracle, model, pool.x, pool.y, classes, zoo.recipe, shadows, aux, known=known)


def _shadows(zoo: Zoo, source: Zoo, mask: tuple[Mask, ...], queries: int) -> Shadows:
    """The shadows of `source`, asked about the candidates and aux of `zoo`; made once in a process."""
    which = ("shadows", zoo.pool.digest, zoo.aux.digest, mask, queries)
    if which not in source.memo:
        z = source.answers(on=zoo.pool, mask=mask, queries=queries)
        z_aux = source.answers(on=zoo.aux, mask=mask)[:, :, 0]
        models = Models(source.shadow, range(len(z)))
        member = source.shadow_member
        source.memo[which] = Shadows(models, source.pool, member, _inside(zoo.pool, source), z, z_aux)
    return source.memo[which]


def _inside(candidates: Data, source: Zoo) -> Bool[Tensor, "m n"]:
    """Which candidates each shadow trained on; found by content where the shadows have their own pool."""
    if source.pool.digest == candidates.digest:
        return source.shadow_member
    places: dict[bytes, list[int]] = {}
    for i, record in enumerate(_bytes(candidates)):
        places.setdefault(record, []).append(i)
    inside = torch.zeros(len(source.shadow_member), len(candidates)).bool()
    for j, record in enumerate(_bytes(source.pool)):
        for i in places.get(record, ()):
            inside[:, i] |= source.shadow_member[:, j]
    return inside


def _bytes(data: Data) -> list[bytes]:
    """Each record and its label."""
    x, y = data.x.cpu().reshape(len(data), -1).contiguous().numpy(), data.y.tolist()
    return [row.tobytes() + str(label).encode() for row, label in zip(x, y, strict=True)]


def without(shadows: Shadows, left_out: Collection[int] | None = None) -> Shadows:
    """The shadows but for some of the rows (None: all of them).

    Counts stay equal where these are whole blocks of two.
    """
    rest = [i for i in range(len(shadows.z)) if left_out is not None and i not in left_out]
    member = shadows.member[rest]
    inside = member if shadows.member is shadows.inside else shadows.inside[rest]
    models = Models(shadows.models.__getitem__, rest)
    return replace(
        shadows, models=models, member=member, inside=inside, z=shadows.z[rest], z_aux=shadows.z_aux[rest]
    )
