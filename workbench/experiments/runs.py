"""What experiments share: attacks on a zoo's targets as plain scores, and the numbers read off them.

`compare` makes one table of one zoo. Experiments put several zoos side by side, and need the scores
themselves; the numbers here are those of `compare`, to the last bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from glasslab import columns, metrics
from glasslab.bootstrap import paired
from glasslab.split import stream
from glasslab.zoo import Zoo
from workbench import steps
from workbench.arena import Arena, able, arena
from workbench.attack import Attack
from workbench.attacks import chosen
from workbench.evidence import one_thread
from workbench.options import ZooOptions
from workbench.play import Played, drawn, play
from workbench.steps import Order

Row = dict[str, Any]
RATES = ("1pct", "0.1pct")
KEPT = (
    *(f"{name}{end}" for name in ("auc", "balanced_accuracy") for end in ("", "_low", "_high")),
    "ba_null",
    *(f"tpr_at_{rate}{end}" for rate in RATES for end in ("", "_low", "_high", "_flag")),
    *(f"tpr_null_{rate}" for rate in RATES),
    *("n_pos", "n_neg", "targets"),
)

HEADS = {
    "auc": "AUC",
    "balanced_accuracy": "bal. acc.",
    "tpr_at_1pct": "TPR 1 %",
    "tpr_at_0.1pct": "TPR 0.1 %",
}  # in print


@dataclass(frozen=True, eq=False)
class Seen:
    """Scores of each attack on every target; and on mock targets, where asked for and where it runs."""

    scores: Mapping[str, Float64[Tensor, "t n"]]
    notes: Mapping[str, str | None]
    truth: Bool[Tensor, "t n"]
    known: Sequence[Mapping[str, Any]]  # of each target: the two gaps
    shadows: int
    mocked: Mapping[str, Float64[Tensor, "s n"]]
    mock_truth: Bool[Tensor, "s n"]
    least_in: int  # shadows in a record, at least
    least_out: int


def seen(
    zoo: Zoo, names: Sequence[str], *, shadows: Zoo | None = None, mocks: bool = False, seed: int = 0
) -> Seen:
    """Runs the attacks named. Raises ValueError for one that is unknown or lacks something.

    `shadows`: those of another zoo attack this zoo's targets. An attack that raises ends it: RuntimeError.
    """
    table = chosen(names)
    ring = arena(zoo, shadows=shadows, queries=1, mask=(), evaluate="targets")
    able(table, ring.held, strict=table)
    played = {name: _played(name, attack, ring, seed) for name, attack in table.items()}
    mocked = _mocked(table, ring, seed) if mocks else {}
    return Seen(
        {name: _scores(name, held) for name, held in played.items()},
        {name: next((p.notes for p in held if p.notes), None) for name, held in played.items()},
        ring.truth,
        ring.known,
        ring.shadows,
        {name: _scores(name, held) for name, held in mocked.items() if all(p.error is None for p in held)},
        ring.mock_truth,
        ring.held.n_in,
        ring.held.n_out,
    )


def numbers(score: Float64[Tensor, "t n"], truth: Bool[Tensor, "t n"], seed: int) -> Row:
    """All targets pooled, with 95 % intervals: the columns of `compare`'s summary that tables show."""
    with one_thread():
        held = columns.summary(score, truth, stream(seed, "summary"))
    return {name: held[name] for name in KEPT}


def minus(
    score: Float64[Tensor, "t n"],
    other: Float64[Tensor, "t n"],
    truth: Bool[Tensor, "t n"],
    name: str,
    seed: int,
) -> Row:
    """Differences in AUC and TPR at 1 % FPR, `*_minus_NAME`, with interval and p: a paired bootstrap over the
    same targets and records.
    """
    with one_thread():
        drawn = paired(score, other, truth, stream(seed, name), rates={"1pct": metrics.RATES["1pct"]})
    row: Row = {}
    for number in ("auc", "tpr_at_1pct"):
        column, value = f"{number}_minus_{name}", drawn[number]
        row |= {column: value.value, f"{column}_low": value.low, f"{column}_high": value.high}
        row[f"{column}_p"] = value.p
    return row


def about(zoos: Mapping[str, Zoo]) -> dict[str, Row]:
    """Which models on which records, for a manifest."""
    return {
        name: {
            "zoo": zoo.key,
            "data": zoo.data.name,
            "digest": zoo.data.digest,
            "pool": len(zoo.pool),
            "recipe": zoo.recipe.key(),
            "seed": zoo.seed,
            "shadows": len(zoo.shadow_member),
            "targets": len(zoo.target_member),
        }
        for name, zoo in zoos.items()
    }


def net(zoo: Zoo) -> str:
    """The net's name, without the module of a user's own."""
    return str(zoo.recipe.key()["net"]).rsplit(".", 1)[-1]


def sized(options: ZooOptions, shadows: int, targets: int) -> Order:
    """What the flags say; an experiment's own numbers of models where neither a flag nor a size is given."""
    if options.size == "quick":
        options = replace(
            options,
            shadows=shadows if options.shadows is None else options.shadows,
            targets=targets if options.targets is None else options.targets,
        )
    return steps.ordered(options)


def _played(name: str, attack: Attack, ring: Arena, seed: int) -> list[Played]:
    return [play(attack, ring.game(a), drawn(attack, name, seed, a)) for a in range(len(ring.truth))]


def _mocked(table: Mapping[str, Attack], ring: Arena, seed: int) -> dict[str, list[Played]]:
    """Shadows play the target, under the settings that the real game has."""
    held: dict[str, list[Played]] = {name: [] for name, attack in table.items() if not attack.costly}
    for j, game in ring.mocks():
        for name in held:
            attack = table[name]
            settings = attack.settle(ring.game(0).shadows)
            held[name].append(play(attack, game, drawn(attack, name, seed, -1 - j), settings))
    return {name: played for name, played in held.items() if played}


def _scores(name: str, played: Sequence[Played]) -> Float64[Tensor, "t n"]:
    failed = next((p.error for p in played if p.score is None), None)
    if failed:
        raise RuntimeError(f"{name}: {failed}")
    return torch.stack([p.score for p in played if p.score is not None])
