"""Several signals at once: a likelihood ratio of each for each record, then one fitted sum for all records.

The attacker has: signals of the target (numbers about each record, read off answers or weights), the same of
m shadow models, and which shadow learned which record. Ours; the ratio is that of LiRA (Carlini et al. 2022,
arXiv:2112.03570), its spreads are BaVarIA's (Brännvall 2026, arXiv:2603.11799). For a signal s of a record,
normal over the shadows in and over those out:
  ratio = log N(s | in) - log N(s | out),  z = (s - mu_out) / sig_out,  z d' with
  d' = (mu_in - mu_out) / sqrt((sig_in^2 + sig_out^2) / 2),
each squashed to b tanh(v / b), b = 20, 10, and 5 for d'. What they are worth together is learned on shadows
that play the target. Each record's shadows are cut in two halves, of as many models in as out; those of one
half are measured against the other. The target is measured against both, and its features are averaged.
Score: the log-odds of membership that the stacker gives. Higher = member.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, get_args

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Generator, Tensor

from glasslab.checks import Floored
from glasslab.likelihood import Fit, Location, Variance, fit, ratio
from whitebox.stackers import Linear, Stacker, boosted, logistic, nets

Kind = Literal["logistic", "boosting", "sum", "mlp"]
Feature = Literal["ratio", "z", "product"]
Split = tuple[
    list[int], list[int]
]  # places of those that play the target, of those they are measured against

ALL: Final[tuple[Feature, ...]] = get_args(Feature)
BOUND: Final[Mapping[str, float]] = MappingProxyType({"ratio": 20.0, "z": 10.0, "d": 5.0})
LEAST: Final = 3  # models a side: two to measure against when one plays the target


@dataclass(frozen=True, eq=False)
class Stack:
    """What the shadows have taught: each signal's laws, one a set of references, and the stacker."""

    fits: Mapping[str, tuple[Fit, ...]]
    stacker: Stacker
    features: tuple[Feature, ...]
    squash: bool

    def __call__(self, target_signals: Mapping[str, Float[Tensor, "*t n"]]) -> Float64[Tensor, "*t n"]:
        """Log-odds of membership in nats; a target's do not depend on the others beside it.

        Raises ValueError where signals are not those of the shadows, or are NaN or infinite.
        """
        if target_signals.keys() != self.fits.keys():
            raise ValueError(f"target_signals must be {[*self.fits]}, got {[*target_signals]}")
        shape = next(iter(target_signals.values())).shape
        for name, s in target_signals.items():
            n = len(self.fits[name][0].n_out)
            if s.shape != shape or s.shape[-1:] != (n,):
                need = [*shape[:-1], n]
                raise ValueError(f"target_signals[{name!r}] must be {need} as the others, got {[*s.shape]}")
            _finite(f"target_signals[{name!r}]", s)
        rows = {name: target_signals[name].reshape(-1, shape[-1]) for name in self.fits}
        targets = range(len(next(iter(rows.values()))))
        # one by one, as a product of another shape may end in another last digit
        scores = [self.stacker(self._measured({name: s[a] for name, s in rows.items()})) for a in targets]
        return torch.stack(scores).reshape(shape) if scores else torch.zeros(shape).double()

    def played(self, shadow_signals: Mapping[str, Float[Tensor, "n"]], half: int) -> Float64[Tensor, "n"]:
        """Log-odds of a shadow of half 0 or 1, which is measured against the other half alone.

        Halves are those of the rows, where rows 2b and 2b + 1 are complements and m is a multiple of 4.
        """
        return self.stacker(self._measured(shadow_signals, half))

    def _measured(
        self, s: Mapping[str, Float[Tensor, "n"]], one: int | None = None
    ) -> Float64[Tensor, "n f"]:
        """Features of one target, averaged over the sets of references, or against one of them."""
        own = [
            torch.stack([_features(s[name], law, self.features, self.squash) for law in laws]).mean(0)
            for name, laws in ((k, v if one is None else v[one : one + 1]) for k, v in self.fits.items())
        ]
        return torch.cat(own, -1)


def stacked(
    signals: Mapping[str, tuple[Float[Tensor, "n"], Float[Tensor, "m n"]]],
    member: Bool[Tensor, "m n"],
    generator: Generator,
    *,
    stacker: Kind = "logistic",
    C: float = 0.1,
    features: Sequence[Feature] = ALL,
    squash: bool = True,
    variance: Variance = "shrunk",
    location: Location = "mean",
) -> Float64[Tensor, "n"]:
    """Log-odds of membership in nats; signals are (of the target, of the shadows), by name.

    Settings, warnings and errors as in `fit_stack`, which serves many targets at once. Spreads and stacker
    are fitted on all records: a score depends on the other candidates.
    """
    stack = fit_stack(
        {name: S for name, (_, S) in signals.items()},
        member,
        generator,
        stacker=stacker,
        C=C,
        features=features,
        squash=squash,
        variance=variance,
        location=location,
    )
    return stack({name: s for name, (s, _) in signals.items()})


def fit_stack(
    shadow_signals: Mapping[str, Float[Tensor, "m n"]],
    member: Bool[Tensor, "m n"],
    generator: Generator,
    *,
    stacker: Kind = "logistic",
    C: float = 0.1,
    features: Sequence[Feature] = ALL,
    squash: bool = True,
    variance: Variance = "shrunk",
    location: Location = "mean",
) -> Stack:
    """A stack for any target of these candidates; member[i, j]: record j is in shadow i.

    `stacker`: logistic regression with strength C, gradient boosting, three small nets, or the `sum` of the
    ratios, as if signals were independent. `features`: which of each signal (`sum` takes the ratio alone).
    `squash=False` leaves them unbounded. `variance`, `location` as in `glasslab.likelihood.fit`.
    A record keeps as many models in as out, as many as every other, so that no count tells anything; with
    fewer than four a side they play the target one by one. Floored warns where models are left out.
    Raises ValueError for fewer than three a side, for no signal, NaN or infinity, and for a C not above 0.
    """
    _check(shadow_signals, member, stacker, features, C)
    used: tuple[Feature, ...] = ("ratio",) if stacker == "sum" else tuple(features)
    rows = _kept(member)
    if left := len(member) - len(rows):
        each = len(rows) // 2
        text = f"{left} of {len(member)} models left out: each record keeps {each} in and {each} out"
        warnings.warn(text, Floored, stacklevel=2)
    inside = (torch.arange(len(rows)) < len(rows) // 2).to(member.device)
    splits = _splits(len(rows) // 2)
    width, n = len(used), member.shape[1]
    played = [inside[play] for play, _ in splits]
    size = sum(map(len, played)) if stacker != "sum" else 0
    X = torch.empty(size, n, width * len(shadow_signals), device=member.device)
    fits: dict[str, tuple[Fit, ...]] = {}
    for k, (name, S) in enumerate(shadow_signals.items()):
        kept, laws, start = S.gather(0, rows), [], 0
        for play, against in splits:
            told = inside[against][:, None].expand(-1, n)
            laws.append(fit(kept[against], told, variance=variance, location=location))
            if size:
                block = X[start : start + len(play), :, k * width : (k + 1) * width]
                block.copy_(_features(kept[play], laws[-1], used, squash))
                start += len(play)
        fits[name] = tuple(laws)
    truth = torch.cat(played)[:size, None].expand(-1, n).flatten()
    return Stack(fits, _learned(X.flatten(0, 1), truth, generator, stacker, C), used, squash)


def _learned(
    X: Float32[Tensor, "r f"], member: Bool[Tensor, "r"], generator: Generator, stacker: Kind, C: float
) -> Stacker:
    if stacker == "sum":
        return Linear(torch.ones(X.shape[1], dtype=torch.float64, device=X.device), 0.0)
    if stacker == "logistic":
        return logistic(X, member, C=C)
    return (boosted if stacker == "boosting" else nets)(X, member, generator)


def _features(
    s: Float[Tensor, "*t n"], law: Fit, features: Sequence[Feature], squash: bool
) -> Float64[Tensor, "*t n f"]:
    """The asked features of a signal, side by side. float64: its ends would be ties in float32."""
    assert law.mu_in is not None
    assert law.sig_in is not None
    z = (s.double() - law.mu_out) / law.sig_out
    d = (law.mu_in - law.mu_out) / ((law.sig_in.square() + law.sig_out.square()) / 2).sqrt()
    raw = {"ratio": ratio(s, law), "z": z, "d": d}
    v = {name: BOUND[name] * (t / BOUND[name]).tanh() for name, t in raw.items()} if squash else raw
    v["product"] = v["z"] * v["d"]
    return torch.stack([v[name] for name in features], -1)


def _kept(member: Bool[Tensor, "m n"]) -> Int[Tensor, "_ n"]:
    """Of each record, the first models in and then the first out: as many of both as every record has.

    Of complements side by side (rows 2b and 2b + 1) these are whole pairs.
    """
    n_in = member.sum(0)
    fewest = torch.minimum(n_in, len(member) - n_in)
    least, record = fewest.min(0)
    if least < LEAST:
        raise ValueError(
            f"member must hold {LEAST}+ models in and out of each record to stack, "
            f"got {int(least)} of a side for record {int(record)}"
        )
    each = LEAST if least == LEAST else int(least) // 2 * 2
    return torch.cat(
        [side.int().argsort(dim=0, descending=True, stable=True)[:each] for side in (member, ~member)]
    )


def _splits(each: int) -> list[Split]:
    """Places among `each` models in and `each` out, in this order: two halves, or one model at a time."""
    inside, outside = list(range(each)), list(range(each, 2 * each))
    if each == LEAST:
        sides = (inside, outside)
        return [
            ([a], sum([[i for i in side if i != a][: each - 1] for side in sides], []))
            for a in range(2 * each)
        ]
    half = each // 2
    a, b = inside[:half] + outside[:half], inside[half:] + outside[half:]
    return [(a, b), (b, a)]


def _check(
    signals: Mapping[str, Tensor], member: Tensor, stacker: Kind, features: Sequence[Feature], C: float
) -> None:
    if not signals:
        raise ValueError("shadow_signals must hold 1 or more signals, got none")
    for name, S in signals.items():
        if S.shape != member.shape:
            raise ValueError(f"shadow_signals[{name!r}] must be {[*member.shape]}, got {[*S.shape]}")
        _finite(f"shadow_signals[{name!r}]", S)
    if stacker not in get_args(Kind):
        raise ValueError(f"stacker must be one of {[*get_args(Kind)]}, got {stacker!r}")
    if not features or not set(features) <= set(ALL):
        raise ValueError(f"features must be some of {[*ALL]}, got {[*features]}")
    if not 0 < C < float("inf"):
        raise ValueError(f"C must be above 0 and finite, got {C}")


def _finite(name: str, s: Tensor) -> None:
    if not s.isfinite().all():
        raise ValueError(f"{name} must be finite, got {int((~s.isfinite()).sum())} NaN or infinite values")
