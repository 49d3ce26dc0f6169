"""Scores of every attack on one zoo: B and W, their rivals, and the controls of W."""

import warnings
from collections.abc import Mapping, Sequence
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
from whitebox.stacked import Stack, fit_stack
from whitebox.summed import Weighed, weigh
from workbench.evidence import one_thread
from workbench.open_problem.frozen import Config
from workbench.open_problem.parts import Part, players

Scores = dict[str, Float64[Tensor, "t n"]]
RULES: Final[tuple[Rule, ...]] = ("record", "pooled", "shrunk")
FEW: Final = (2, 4, 16)  # shadows of the low rows


@dataclass(frozen=True, eq=False)
class Scored:
    """Every attack's scores, the seconds that its signals took, and what was chosen on shadows."""

    scores: Scores
    seconds: Mapping[str, float]
    rule: Rule
    weights: Mapping[str, Mapping[str, float]]  # of B and W


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


def scored(zoo: Zoo, config: Config, of_players: Sequence[Part], of_targets: Sequence[Part]) -> Scored:
    """All attacks on all targets. Needs what `parts` made."""
    start = perf_counter()
    m, y, member = len(zoo.shadow_member), zoo.pool.y, zoo.shadow_member
    S, s = (black(zoo.answers(kind)[:, :, 0], y) for kind in ("shadow", "target"))
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack = fit_stack(S, member, stream(zoo.seed, "stack"), C=config.C)
        play = players(m, config.players)
        base = torch.stack([stack.played({k: v[i] for k, v in S.items()}, int(i >= m // 2)) for i in play])
        stacked = stack(s)
        rule = _rule(S["phi"], member)
        found: Scores = {"loss": s["phi"]}
        found |= {f"lira-{r}": ratio(s["phi"], fit(S["phi"], member, variance=r)) for r in RULES}
        found["lira"] = found[f"lira-{rule}"]
        found |= _few(s["phi"], S["phi"], member)
        found |= _others(zoo, s["phi"], S["phi"])
    seconds = perf_counter() - start
    joint = {name: torch.stack([p[name] for p in of_players]) for name in of_players[0]}
    target = {name: torch.stack([p[name] for p in of_targets]) for name in of_targets[0]}
    found["stack-blackbox"] = stacked
    found["dual"] = target["dual"]
    found["decode"] = target["decode_0"]
    found["decode-shadow"] = target["shadow_0"]
    shadow = {k: v for k, v in joint.items() if k.startswith("shadow_")}
    shadow_t = {k: v for k, v in target.items() if k.startswith("shadow_")}
    white = {k: v for k, v in joint.items() if k.startswith("decode_")}
    white_t = {k: v for k, v in target.items() if k.startswith("decode_")}
    told = member[play]
    B = weigh({"stack": base} | shadow, told, C=config.C)
    W = weigh({"stack": base} | shadow | white, told, C=config.C)
    found["B"] = B({"stack": stacked} | shadow_t)
    found["W"] = W({"stack": stacked} | shadow_t | white_t)
    found |= controls(base, shadow, white, stacked, shadow_t, white_t, told, y, config, zoo.seed)
    took = {
        "B": seconds + float(target["black_seconds"].mean()),
        "W": seconds + float((target["black_seconds"] + target["white_seconds"]).mean()),
        "decode": float(target["white_seconds"].mean()) / len(config.laws),
    }
    weights = {
        name: dict(zip(w.names, w.linear.weight.tolist(), strict=True)) for name, w in (("B", B), ("W", W))
    }
    return Scored(found, took, rule, weights)


def controls(
    base: Float64[Tensor, "k n"],
    shadow: Mapping[str, Float64[Tensor, "k n"]],
    white: Mapping[str, Float64[Tensor, "k n"]],
    stacked: Float64[Tensor, "t n"],
    shadow_t: Mapping[str, Float64[Tensor, "t n"]],
    white_t: Mapping[str, Float64[Tensor, "t n"]],
    told: Bool[Tensor, "k n"],
    y: Int[Tensor, "n"],
    config: Config,
    seed: int,
) -> Scores:
    """W with white-box signals that cannot know: noise, another target's, another record's of its class."""
    generator = stream(seed, "controls")

    def run(fit_on: Mapping[str, Tensor], use: Mapping[str, Tensor]) -> Float64[Tensor, "t n"]:
        fitted = weigh({"stack": base} | shadow | fit_on, told, C=config.C)
        return fitted({"stack": stacked} | shadow_t | use)

    def noise(like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in like.items()}

    moved = _within(y, generator)
    turn = {k: v.roll(1, 0) for k, v in white.items()}, {k: v.roll(1, 0) for k, v in white_t.items()}
    other = {k: v[:, moved] for k, v in white.items()}, {k: v[:, moved] for k, v in white_t.items()}
    return {
        "control-noise": run(noise(white), noise(white_t)),
        "control-target": run(*turn),
        "control-record": run(*other),
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
    return {f"lira-{q}": ratio(s, fit(S[:q], member[:q], variance="pooled")) for q in FEW if 4 <= q < len(S)}


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
