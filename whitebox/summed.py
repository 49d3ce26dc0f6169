"""Log-odds of several attacks, weighted by what they were worth on shadows.

The attacker has: for some shadows of its own, what each attack says of them when they play the target; and
which shadow learned which record. Ours, beside `stacked`, whose features are measured record by record:
`decode` needs no such measure, for its scores are log-odds already, and a few shadows suffice to weigh them.
Score: bias + sum of weights times log-odds, the weights by logistic regression over shadows and records; or
the log-odds that small nets read off them.
Higher = member.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64
from torch import Generator, Tensor

from whitebox.stackers import Stacker, logistic, nets

Kind = Literal["logistic", "mlp"]

BOUND: Final = 30.0  # nats: log-odds are squashed to 30 tanh(v / 30), so that none decides alone


@dataclass(frozen=True, eq=False)
class Weighed:
    """What was learned, and the names of the attacks that it was learned of."""

    names: tuple[str, ...]
    stacker: Stacker

    def __call__(self, log_odds: Mapping[str, Float[Tensor, "*t n"]]) -> Float64[Tensor, "*t n"]:
        """Log-odds of membership in nats; ValueError where an attack is missing, or NaN or infinite."""
        if log_odds.keys() != set(self.names):
            raise ValueError(f"log_odds must be {[*self.names]}, got {[*log_odds]}")
        X = _columns({name: log_odds[name] for name in self.names})
        rows = X.reshape(-1, *X.shape[-2:])
        # one by one, as a product of another shape may end in another last digit
        return torch.stack([self.stacker(row) for row in rows]).reshape(X.shape[:-1])


def summed(
    log_odds: Mapping[str, tuple[Float[Tensor, "n"], Float[Tensor, "m n"]]],
    member: Bool[Tensor, "m n"],
    generator: Generator,
    *,
    stacker: Kind = "logistic",
    C: float = 0.1,
) -> Float64[Tensor, "n"]:
    """Scores of one target; log_odds are (of the target, of the shadows), by name. Errors as in `weigh`."""
    shadows = {name: S for name, (_, S) in log_odds.items()}
    weighed = weigh(shadows, member, generator, stacker=stacker, C=C)
    return weighed({name: s for name, (s, _) in log_odds.items()})


def weigh(
    log_odds: Mapping[str, Float[Tensor, "m n"]],
    member: Bool[Tensor, "m n"],
    generator: Generator,
    *,
    stacker: Kind = "logistic",
    C: float = 0.1,
) -> Weighed:
    """The weights; member[i, j]: record j is in shadow i, which played the target without its own help.

    `stacker`: logistic regression of strength C, which draws nothing, or three small nets.
    Raises ValueError for no attack, shapes that differ, NaN or infinity, members or others alone, and a C
    that is not above 0.
    """
    if not 0 < C < float("inf"):
        raise ValueError(f"C must be above 0 and finite, got {C}")
    if not log_odds:
        raise ValueError("log_odds must hold 1 or more attacks, got none")
    for name, S in log_odds.items():
        if S.shape != member.shape:
            raise ValueError(f"log_odds[{name!r}] must be {[*member.shape]} as member, got {[*S.shape]}")
    if member.all() or not member.any():
        raise ValueError(f"member must hold members and others, got {int(member.sum())} of {member.numel()}")
    if stacker not in get_args(Kind):
        raise ValueError(f"stacker must be one of {[*get_args(Kind)]}, got {stacker!r}")
    X, inside = _columns(log_odds).flatten(0, -2).float(), member.flatten()
    learned = nets(X, inside, generator) if stacker == "mlp" else logistic(X, inside, C=C)
    return Weighed(tuple(log_odds), learned)


def _columns(log_odds: Mapping[str, Float[Tensor, "*t n"]]) -> Float64[Tensor, "*t n f"]:
    for name, s in log_odds.items():
        if not s.isfinite().all():
            bad = int((~s.isfinite()).sum())
            raise ValueError(f"log_odds[{name!r}] must be finite, got {bad} NaN or infinite values")
    return torch.stack([BOUND * (s.double() / BOUND).tanh() for s in log_odds.values()], -1)
