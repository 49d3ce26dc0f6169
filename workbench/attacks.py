"""The one table of attacks. It hands each function its part of a game; a new attack is a row."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

from jaxtyping import Float, Float64
from torch import Generator, Tensor

from blackbox import baseline
from blackbox.mlps import Training
from glasslab.game import Game, Shadows
from glasslab.likelihood import ENOUGH, Sides, Variance, ratio, tail
from workbench.evidence import attack_model, fitted, labels, log_odds, log_p, loss, phi, scores, tau, told

Family = Literal["blackbox", "whitebox", "inversion", "synthesis"]
Access = Literal["nothing", "labels", "probabilities", "weights"]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Needs:
    """What a game must hold at least: models in and out of each record, records of aux, queries a record."""

    n_in: int = 0
    n_out: int = 0
    aux: int = 0
    queries: int = 1


def _nothing(shadows: Shadows) -> Settings:
    return {}


@dataclass(frozen=True)
class Attack:
    """A row: what to run on a game, where it belongs, what it must be given, who invented it.

    `run(game, generator)` may take settings by keyword. `holds` is the label under which its numbers may be
    ranked. Above `decision` the attack itself says member. `control` rows must find nothing; `random` ones
    draw anew for each target. `quick`: settings for small worlds, under 0.2 s. `settle`: settings that follow
    from how much is held; a mock target, which has fewer shadows, takes them from the real game.
    """

    run: Callable[..., Float[Tensor, "n"]]
    family: Family
    access: Access
    paper: str
    needs: Needs = Needs()
    holds: str = "probabilities"
    decision: float | None = None
    control: bool = False
    random: bool = False
    quick: Settings = field(default_factory=dict)
    settle: Callable[[Shadows], Settings] = _nothing
    default: bool = False


def chosen(names: str | Sequence[str]) -> dict[str, Attack]:
    """Rows by name, or those of "default" or "all". ValueError for unknown or repeated names, or none."""
    if names in ("all", "default"):
        return {name: attack for name, attack in ATTACKS.items() if names == "all" or attack.default}
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in ATTACKS:
            near = difflib.get_close_matches(name, ATTACKS, n=1)
            known = f"{near[0]} (did you mean that?)" if near else ", ".join(ATTACKS)
            raise ValueError(f"attacks must be default, all, or names such as {known}; got {name!r}")
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"attacks must be one or more, each named once, got {', '.join(names) or 'none'}")
    return {name: ATTACKS[name] for name in names}


def unmet(attack: Attack, held: Needs) -> str | None:
    """What the attack lacks, in words; None if it can run."""
    words = {
        "n_in": "shadow models in each record",
        "n_out": "shadow models out of each record",
        "aux": "records of aux",
        "queries": "queries a record",
    }
    need, has = asdict(attack.needs), asdict(held)
    lacks = [f"{need[name]}+ {words[name]}, got {has[name]}" for name in words if need[name] > has[name]]
    return f"needs {'; '.join(lacks)}" if lacks else None


def _random(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return baseline.random(len(game.y), generator)


def _correctness(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return (labels(game) == game.y.cpu()).double()


def _loss(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return baseline.loss(phi(game)[0])


def _yeom(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return baseline.yeom(phi(game)[0], scores(game, log_odds), told(game).member)


def _confidence(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return baseline.confidence(phi(game)[0])


def _entropy(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return baseline.entropy(log_p(game)[0])


def _modified_entropy(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return baseline.modified_entropy(log_p(game)[0], game.y)


def _loss_per_class(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return _loss(game, generator) - tau(game, loss)


def _modified_entropy_per_class(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return _modified_entropy(game, generator) - tau(game, baseline.modified_entropy)


def _shadow(
    game: Game,
    generator: Generator,
    *,
    per_class: bool = True,
    pairs: int = 5000,
    training: Training = Training(),  # noqa: B008 (frozen)
) -> Float64[Tensor, "n"]:
    model = attack_model(game, generator.initial_seed(), per_class, pairs, training)
    return model(log_p(game)[0].exp(), game.y)


def _lira(game: Game, generator: Generator, *, variance: Variance = "auto") -> Float64[Tensor, "n"]:
    return ratio(phi(game, game.shadows.z.shape[2]), fitted(game, variance, "both"))


def _lira_offline(
    game: Game, generator: Generator, *, variance: Variance = "auto", two_sided: bool = False
) -> Float64[Tensor, "n"]:
    held = fitted(game, variance, "out")
    return tail(phi(game, game.shadows.z.shape[2]), held, two_sided=two_sided)


def _spread(shadows: Shadows, *, sides: Sides) -> Settings:
    """The spread that "auto" means for so many shadows."""
    out = (~shadows.inside).sum(0)
    least = min(int(out.min()), int(shadows.inside.sum(0).min()) if sides == "both" else len(out))
    return {"variance": "record" if least >= ENOUGH else "pooled"}


YEOM, SONG = "arXiv:1709.01604", "arXiv:2003.10595"
SHOKRI, CARLINI = "arXiv:1610.05820", "arXiv:2112.03570"
THRESHOLDS = Needs(n_out=1)  # shadows to learn from; whether candidates are among their records or not
ONLINE, OFFLINE = Needs(n_in=2, n_out=2), Needs(n_out=2)
QUICK = {"pairs": 1000, "training": Training(epochs=20)}

_ask = partial(Attack, family="blackbox", access="probabilities")
_learn = partial(_ask, holds="probabilities+shadows")
_online = partial(_learn, paper=CARLINI, needs=ONLINE, settle=partial(_spread, sides="both"))
_offline = partial(_learn, paper=CARLINI, needs=OFFLINE, settle=partial(_spread, sides="out"))

ATTACKS: Mapping[str, Attack] = {
    "random": Attack(
        _random, "blackbox", "nothing", "", Needs(queries=0), "nothing", control=True, random=True
    ),
    "correctness": Attack(_correctness, "blackbox", "labels", YEOM, holds="labels", decision=0.5),
    "loss": _ask(_loss, paper=YEOM, default=True),
    "yeom": _learn(_yeom, paper=YEOM, needs=THRESHOLDS, decision=0.0),
    "confidence": _ask(_confidence, paper=SONG),
    "entropy": _ask(_entropy, paper=SONG),
    "modified-entropy": _ask(_modified_entropy, paper=SONG),
    "loss-per-class": _learn(_loss_per_class, paper=SONG, needs=THRESHOLDS, decision=0.0),
    "modified-entropy-per-class": _learn(
        _modified_entropy_per_class, paper=SONG, needs=THRESHOLDS, decision=0.0, default=True
    ),
    "shadow": _learn(
        _shadow, paper=SHOKRI, needs=THRESHOLDS, decision=0.5, random=True, quick=QUICK, default=True
    ),
    "shadow-sorted": _learn(
        partial(_shadow, per_class=False),
        paper=SHOKRI,
        needs=THRESHOLDS,
        decision=0.5,
        random=True,
        quick=QUICK,
    ),
    "lira": _online(_lira, default=True),
    "lira-record": _online(partial(_lira, variance="record"), settle=_nothing),
    "lira-pooled": _online(partial(_lira, variance="pooled"), settle=_nothing),
    "lira-offline": _offline(_lira_offline),
    "lira-offline-two-sided": _offline(partial(_lira_offline, two_sided=True)),
}
