"""What a row of the attack table says: what to run, what it must be given, who invented it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from glasslab.game import Shadows

Family = Literal["blackbox", "whitebox", "inversion", "synthesis"]
Access = Literal["nothing", "labels", "probabilities", "weights"]
Settings = Mapping[str, Any]
HOLDS = (
    *("nothing", "labels", "labels+aux", "labels+shadows"),
    *("probabilities", "probabilities+aux", "probabilities+shadows", "probabilities+shadows+candidates"),
    *("weights", "weights+shadows", "weights+known members", "weights+shadows+init"),
    *("weights+candidates", "weights+shadows+candidates", "informed", "steps"),
)  # what an attacker may hold, in the order of tables; only numbers under one label are ranked
KNOWN = ("weights+known members", "informed")  # are told true members of the target


@dataclass(frozen=True)
class Needs:
    """What a game must hold at least: models in and out of each record, records of aux, queries a record,
    whether the records must be images, or numbers that are not all 0 or 1, and whether training must have
    weight decay.
    """

    n_in: int = 0
    n_out: int = 0
    aux: int = 0
    queries: int = 1
    images: bool = False
    continuous: bool = False
    decay: bool = False


def nothing(shadows: Shadows) -> Settings:
    """No settings."""
    return {}


@dataclass(frozen=True)
class Attack:
    """A row: what to run on a game, where it belongs, what it must be given, who invented it.

    `run(game, generator)` may take settings by keyword. `holds`, of HOLDS, is the label under which its
    numbers may be ranked, and grants what a game has beyond the model. Above `decision` the attack itself
    says member. `control` rows must find nothing; `random` ones depend on a draw, or on which shadow comes
    first. `quick`: settings for small worlds, under 0.2 s. `settle`: settings that follow from how much is
    held; a mock target, which has fewer shadows, takes them from the real game.

    `asks` is how often it asks the target about a candidate, times the game's queries if it `repeats`; None
    for one that searches: its run takes `budget`, the most that it may ask. `asks_aux`: the same of aux;
    `asks_made`: at most, of each record that it makes, as many as candidates.
    `costly`: it asks around each record, trains for each target anew, or asks the shadows for features, so
    "standard" leaves it out, and no mock target plays.
    """

    run: Callable[..., Float[Tensor, "n"]]
    family: Family
    access: Access
    paper: str
    needs: Needs = Needs()
    holds: str = "probabilities"
    asks: int | None = 1
    asks_aux: int = 0
    asks_made: int = 0
    repeats: bool = False
    decision: float | None = None
    control: bool = False
    random: bool = False
    costly: bool = False
    quick: Settings = field(default_factory=dict)
    settle: Callable[[Shadows], Settings] = nothing
    default: bool = False


def asked(attack: Attack, held: Needs, budget: int) -> int:
    """Queries a candidate, at most."""
    return budget if attack.asks is None else attack.asks * (held.queries if attack.repeats else 1)


def unmet(attack: Attack, held: Needs) -> str | None:
    """What the attack lacks, in words; None if it can run."""
    words = {
        "n_in": "shadow models in each record",
        "n_out": "shadow models out of each record",
        "aux": "records of aux",
        "queries": "queries a record",
    }
    kinds = {
        "images": "images, got a table",
        "continuous": "records that are not all 0 or 1, got binary ones",
        "decay": "a recipe with weight decay (weight_decay=0.002, say), got none",
    }
    need, has = asdict(attack.needs), asdict(held)
    lacks = [f"{need[name]}+ {words[name]}, got {has[name]}" for name in words if need[name] > has[name]]
    lacks += [kinds[name] for name in kinds if need[name] > has[name]]
    return f"needs {'; '.join(lacks)}" if lacks else None
