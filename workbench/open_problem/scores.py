"""Scores of every attack on one zoo: B and W, their rivals, and the controls of W."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor

from blackbox import bavaria, rmia
from glasslab import signals
from glasslab.likelihood import Rule, fit, ratio
from glasslab.metrics import tpr_at_fpr
from glasslab.split import stream
from glasslab.zoo import Zoo
from whitebox.stacked import fit_stack
from whitebox.summed import weigh
from workbench.evidence import one_thread
from workbench.open_problem.frozen import Config
from workbench.open_problem.parts import Part, players

Scores = dict[str, Float64[Tensor, "t n"]]
RULES: Final[tuple[Rule, ...]] = ("record", "pooled", "shrunk")
FEW: Final = (4, 16)  # shadows of the low rows
SOLVED: Final = ("dual", "shape", "shadow_dual", "shadow_shape")


@dataclass(frozen=True, eq=False)
class Scored:
    """Every attack's scores, seconds of signals and number of shadows; and the spread rule of LiRA."""

    scores: Scores
    seconds: Mapping[str, float]
    shadows: Mapping[str, int]
    rule: Rule


def black(z: Float[Tensor, "*m n c"], y: Int[Tensor, "n"]) -> dict[str, Float64[Tensor, "*m n"]]:
    """B's five signals of logits: phi, log sigma(-phi), log|p - e_y|, entropy of the wrong classes, z_y."""
    z = z.double()
    own = torch.nn.functional.one_hot(y.long(), z.shape[-1]).bool()
    phi = signals.phi(z, y)
    rest = torch.nn.functional.logsigmoid(-phi)
    wrong = z.masked_fill(own, -torch.inf).log_softmax(-1)
    q = wrong.exp()
    return {
        "phi": phi,
        "log_rest": rest,
        # |p - e_y|^2 = (1 - p_y)^2 (1 + sum q^2), q the law of the wrong classes
        "log_error": rest + q.square().sum(-1).log1p() / 2,
        "wrong_entropy": -(q * wrong.masked_fill(own, 0.0)).sum(-1),
        "z_y": z.gather(-1, y.long().expand(z.shape[:-1])[..., None]).squeeze(-1),
    }


def scored(zoo: Zoo, config: Config, of_shadows: Sequence[Part], of_targets: Sequence[Part]) -> Scored:
    """All attacks on all targets. Needs what `parts` made."""
    start = perf_counter()
    y, member = zoo.pool.y, zoo.shadow_member
    S, s = (black(zoo.answers(kind)[:, :, 0], y) for kind in ("shadow", "target"))
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rule = _rule(S["phi"], member)
        found: Scores = {"loss": s["phi"]}
        found |= {f"lira-{r}": ratio(s["phi"], fit(S["phi"], member, variance=r)) for r in RULES}
        found["lira"] = found[f"lira-{rule}"]
        found |= _few(s["phi"], S["phi"], member)
        found |= _others(zoo, s["phi"], S["phi"])
        seconds = perf_counter() - start
        play = players(len(member), config.players)
        shadows = {name: torch.stack([p[name] for p in of_shadows]) for name in SOLVED}
        targets = {name: torch.stack([p[name] for p in of_targets]) for name in SOLVED}
        bits_s, bits_t = (
            {
                name: torch.stack([p[name] for p in held])
                for name in of_targets[0]
                if name.rpartition("_")[0].endswith("decode")
            }
            for held in ([of_shadows[i] for i in play], of_targets)
        )
        made = Made(S | shadows, s | targets, bits_s, bits_t, member, tuple(play))
        found |= {"dual": targets["dual"], "dual-shaped": targets["shape"]}
        for name, column in (("dual", "dual"), ("dual-shaped", "shape"), ("dual-shadow", "shadow_dual")):
            law = fit(shadows[column], member, variance="shrunk", location="mean")
            found[f"{name}-ratio"] = ratio(targets[column], law)
        found["decode"], found["decode-shadow"] = bits_t["decode_0"], bits_t["shadow_decode_0"]
        black_names, white_names = [*S, "shadow_dual", "shadow_shape"], ["dual", "shape"]
        black_bits = [name for name in bits_t if name.startswith("shadow")]
        white_bits = [name for name in bits_t if name.startswith("decode")]
        found["black-five"] = together(made, [*S], [], config, zoo.seed)
        found["B"] = together(made, black_names, black_bits, config, zoo.seed)
        whole = [*black_names, *white_names], [*black_bits, *white_bits]
        found["W"] = together(made, *whole, config, zoo.seed)
        for name, world in controls(made, white_names, white_bits, y, zoo.seed).items():
            found[name] = together(world, *whole, config, zoo.seed)
    cost = {
        kind: float(torch.cat([p[f"{kind}seconds"] for p in [*of_targets, *of_shadows]]).sum())
        for kind in ("", "shadow_")
    }
    alone = float(torch.cat([p["seconds"] for p in of_targets]).mean())
    took = {
        "lira": seconds,
        "B": seconds + cost["shadow_"],
        "W": seconds + sum(cost.values()),
        "decode": alone,
        "dual": alone,
    }
    return Scored(found, took, _shadows(found, len(member)), rule)


def _shadows(names: Iterable[str], m: int) -> dict[str, int]:
    """How many each attack needs: all, but for some."""
    few = {f"lira-{q}": q for q in FEW} | dict.fromkeys(("loss", "dual", "dual-shaped", "decode"), 0)
    return {name: few.get(name, 1 if name == "decode-shadow" else m) for name in names}


@dataclass(frozen=True, eq=False)
class Made:
    """Signals of shadows and targets, and log-odds of `play`ing shadows and targets, by name."""

    S: Mapping[str, Float64[Tensor, "m n"]]
    s: Mapping[str, Float64[Tensor, "t n"]]
    bits_S: Mapping[str, Float64[Tensor, "k n"]]
    bits_s: Mapping[str, Float64[Tensor, "t n"]]
    member: Bool[Tensor, "m n"]
    play: tuple[int, ...]


def together(
    made: Made, signals_: Sequence[str], bits: Sequence[str], config: Config, seed: int
) -> Float64[Tensor, "t n"]:
    """`stacked` over the signals, then `summed` with the log-odds."""
    m = len(made.member)
    stack = fit_stack({k: made.S[k] for k in signals_}, made.member, stream(seed, "stack"), C=config.C)
    score = stack({k: made.s[k] for k in signals_})
    if not bits:
        return score
    base = torch.stack(
        [stack.played({k: made.S[k][i] for k in signals_}, int(i >= m // 2)) for i in made.play]
    )
    log_odds = {"stack": base} | {k: made.bits_S[k] for k in bits}
    weighed = weigh(
        log_odds, made.member[list(made.play)], stream(seed, "weigh"), C=config.C, stacker=config.stacker
    )
    return weighed({"stack": score} | {k: made.bits_s[k] for k in bits})


def controls(
    made: Made, names: Sequence[str], bits: Sequence[str], y: Int[Tensor, "n"], seed: int
) -> dict[str, Made]:
    """White-box signals that cannot know: noise, those of another model, of another record of the class."""
    generator = stream(seed, "controls")
    moved = _within(y, generator)

    def noise(v: Tensor) -> Tensor:
        return torch.randn(v.shape, generator=generator, dtype=v.dtype)

    def turned(v: Tensor) -> Tensor:
        return v.roll(2, 0)  # by a whole pair: a shadow's complement would tell of it

    def exchanged(v: Tensor) -> Tensor:
        return v[:, moved]

    def world(change: Callable[[Tensor], Tensor]) -> Made:
        def of(held: Mapping[str, Tensor], chosen: Sequence[str]) -> dict[str, Tensor]:
            return {k: change(v) if k in chosen else v for k, v in held.items()}

        S, s = of(made.S, names), of(made.s, names)
        return Made(S, s, of(made.bits_S, bits), of(made.bits_s, bits), made.member, made.play)

    return {
        "control-noise": world(noise),
        "control-target": world(turned),
        "control-record": world(exchanged),
    }


def _within(y: Int[Tensor, "n"], generator: Generator) -> Int[Tensor, "n"]:
    """Another record of the same class for each, where there is one."""
    moved = torch.arange(len(y))
    for c in y.unique():
        mine = (y == c).nonzero()[:, 0]
        mine = mine[torch.randperm(len(mine), generator=generator)]
        moved[mine] = mine.roll(1)
    return moved


def _rule(S: Float64[Tensor, "m n"], member: Bool[Tensor, "m n"]) -> Rule:
    """The spread rule of most TPR at 0.1 % FPR on shadows, each half against the other."""
    m, best, most = len(S), RULES[0], -1.0
    for rule in RULES:
        halves = [(slice(0, m // 2), slice(m // 2, m)), (slice(m // 2, m), slice(0, m // 2))]
        scores = torch.cat([ratio(S[a], fit(S[b], member[b], variance=rule)) for a, b in halves])
        tpr = tpr_at_fpr(scores, member, 1e-3).tpr
        best, most = (rule, tpr) if tpr > most else (best, most)
    return best


def _few(s: Float64[Tensor, "t n"], S: Float64[Tensor, "m n"], member: Bool[Tensor, "m n"]) -> Scores:
    """LiRA with the first shadows alone."""
    return {f"lira-{q}": ratio(s, fit(S[:q], member[:q], variance="pooled")) for q in FEW if q < len(S)}


def _others(zoo: Zoo, s: Float64[Tensor, "t n"], S: Float64[Tensor, "m n"]) -> Scores:
    """RMIA and BaVarIA, online, with their usual settings."""
    member, y, y_aux = zoo.shadow_member, zoo.pool.y, zoo.aux.y
    log_p = {kind: rmia.log_confidence(zoo.answers(kind)[:, :, 0], y, T=2.0) for kind in ("shadow", "target")}
    aux = {
        kind: rmia.log_confidence(zoo.answers(kind, on="aux")[:, :, 0], y_aux, T=2.0)
        for kind in ("shadow", "target")
    }
    return {
        "rmia": rmia.rmia(log_p["target"], aux["target"], log_p["shadow"], aux["shadow"], member),
        "bavaria": bavaria.bavaria(s, S, member),
    }
