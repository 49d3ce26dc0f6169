"""Rows of black-box attacks that set a record's answer against what reference models answer about it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Generator, Tensor

from blackbox import base, bavaria, difficulty, reference, rmia, similarity
from glasslab.game import Game, Shadows
from glasslab.likelihood import ENOUGH, Sides, Variance, ratio, tail
from workbench import learned
from workbench.attack import Attack, Needs, Settings, nothing
from workbench.blackbox_outputs import ALPHA, YE
from workbench.evidence import (
    fitted,
    log_p,
    log_p_aux,
    phi,
    shadow_confidence,
    shadow_confidence_aux,
    shadow_loss,
    shadow_phi,
    target_loss,
)

T = 2.0  # temperature of RMIA and BASE


def _similarity(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return similarity.similarity(log_p(game)[0], game.shadows.z[:, :, 0], game.shadows.inside)


def _gmia(game: Game, generator: Generator, *, select: bool = False) -> Float64[Tensor, "n"]:
    score = similarity.gmia(target_loss(game)[0], shadow_loss(game)[:, 0], game.shadows.inside)
    # p-values lie in [0, 1]: -2 is below them all
    return torch.where(learned.selected(game), score, -2.0) if select else score


def _sablayrolles(
    game: Game, generator: Generator, *, signal: Literal["loss", "phi"] = "loss"
) -> Float64[Tensor, "n"]:
    s, S = _signal(game, signal)
    return difficulty.sablayrolles(s, S, game.shadows.inside)


def _watson(
    game: Game, generator: Generator, *, signal: Literal["loss", "phi"] = "loss"
) -> Float64[Tensor, "n"]:
    s, S = _signal(game, signal)
    return difficulty.watson(s, S, game.shadows.inside)


def _ye_r(
    game: Game, generator: Generator, *, smooth: Literal["linear", "gaussian"] = "linear"
) -> Float64[Tensor, "n"]:
    l, L = target_loss(game)[0], shadow_loss(game)[:, 0]
    return reference.ye_r(l, L, game.shadows.inside, smooth=smooth)


def _lira(game: Game, generator: Generator, *, variance: Variance = "auto") -> Float64[Tensor, "n"]:
    return ratio(phi(game, _k(game)), fitted(game, variance, "both"))


def _lira_offline(
    game: Game, generator: Generator, *, variance: Variance = "auto", two_sided: bool = False
) -> Float64[Tensor, "n"]:
    return tail(phi(game, _k(game)), fitted(game, variance, "out"), two_sided=two_sided)


def _rmia(game: Game, generator: Generator, *, offline: bool = False) -> Float64[Tensor, "n"]:
    own = rmia.log_confidence(log_p(game, _k(game)), game.y, T=T)
    about_aux = rmia.log_confidence(log_p_aux(game), game.aux.y, T=T)
    held = shadow_confidence(game, T), shadow_confidence_aux(game, T), game.shadows.inside
    if offline:
        return rmia.rmia_offline(own, about_aux, *held, a=learned.offline_scale(game, T))
    return rmia.rmia(own, about_aux, *held)


def _base(game: Game, generator: Generator, *, offline: bool = False) -> Float64[Tensor, "n"]:
    own = rmia.log_confidence(log_p(game, _k(game)), game.y, T=T)
    score = base.base_offline if offline else base.base
    return score(own, shadow_confidence(game, T), game.shadows.inside)


def _bavaria(game: Game, generator: Generator, *, form: Literal["t", "n"] = "t") -> Float64[Tensor, "n"]:
    return bavaria.bavaria(phi(game, _k(game)), shadow_phi(game), game.shadows.inside, form=form)


def _bavaria_offline(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return bavaria.bavaria_offline(phi(game, _k(game)), shadow_phi(game), game.shadows.inside)


def _k(game: Game) -> int:
    """Queries a record."""
    return game.shadows.z.shape[2]


def _signal(
    game: Game, signal: Literal["loss", "phi"]
) -> tuple[Float64[Tensor, "k n"], Float64[Tensor, "m k n"]]:
    """Of the target and of the shadows; it grows with membership."""
    if signal == "phi":
        return phi(game, _k(game)), shadow_phi(game)
    return -target_loss(game, _k(game)), -shadow_loss(game)


def _spread(shadows: Shadows, *, sides: Sides) -> Settings:
    """The spread that "auto" means for so many shadows."""
    out = (~shadows.inside).sum(0)
    least = min(int(out.min()), int(shadows.inside.sum(0).min()) if sides == "both" else len(out))
    return {"variance": "record" if least >= ENOUGH else "pooled"}


CARLINI, ZARIFZADEH, LASSILA, BRANNVALL = (
    "arXiv:2112.03570",
    "arXiv:2312.03262",
    "arXiv:2505.24089",
    "arXiv:2603.11799",
)
DIRECT, GENERALISED = "arXiv:1712.09136", "arXiv:1802.04889"
SABLAYROLLES, WATSON = "arXiv:1908.11229", "arXiv:2111.08440"
IN_AND_OUT, OUT = Needs(n_in=1, n_out=1), Needs(n_out=1)  # a location needs one model a side,
ONLINE, OFFLINE = Needs(n_in=2, n_out=2), Needs(n_out=2)  # a spread two

_one = partial(Attack, family="blackbox", access="probabilities", holds="probabilities+shadows")
_row = partial(_one, repeats=True)
_online = partial(_row, paper=CARLINI, needs=ONLINE, settle=partial(_spread, sides="both"))
_offline = partial(_row, paper=CARLINI, needs=OFFLINE, settle=partial(_spread, sides="out"))
_zarifzadeh = partial(_row, paper=ZARIFZADEH, asks_aux=1)
_brannvall = partial(_row, paper=BRANNVALL)

REFERENCE: Mapping[str, Attack] = {
    "similarity": _one(_similarity, paper=DIRECT, needs=IN_AND_OUT, decision=0.0),
    "gmia": _one(_gmia, paper=GENERALISED, needs=OUT, decision=-ALPHA),
    "gmia-selected": _one(
        partial(_gmia, select=True),
        paper=GENERALISED,
        needs=replace(OUT, aux=1),
        decision=-ALPHA,
        costly=True,
    ),
    "sablayrolles": _row(_sablayrolles, paper=SABLAYROLLES, needs=IN_AND_OUT),
    "sablayrolles-phi": _row(partial(_sablayrolles, signal="phi"), paper=SABLAYROLLES, needs=IN_AND_OUT),
    "watson": _row(_watson, paper=WATSON, needs=OUT),
    "watson-phi": _row(partial(_watson, signal="phi"), paper=WATSON, needs=OUT),
    "ye-r": _one(_ye_r, paper=YE, needs=OUT, decision=-ALPHA),
    "ye-r-gaussian": _one(partial(_ye_r, smooth="gaussian"), paper=YE, needs=OFFLINE),
    "lira": _online(_lira, default=True),
    "lira-record": _online(partial(_lira, variance="record"), settle=nothing),
    "lira-pooled": _online(partial(_lira, variance="pooled"), settle=nothing),
    "lira-offline": _offline(_lira_offline),
    "lira-offline-two-sided": _offline(partial(_lira_offline, two_sided=True)),
    "rmia": _zarifzadeh(_rmia, needs=Needs(n_in=1, n_out=1, aux=1), default=True),
    "rmia-offline": _zarifzadeh(partial(_rmia, offline=True), needs=Needs(n_out=1, aux=1), random=True),
    "base": _row(_base, paper=LASSILA, needs=IN_AND_OUT),
    "base-offline": _row(partial(_base, offline=True), paper=LASSILA, needs=OUT),
    "bavaria": _brannvall(_bavaria, needs=ONLINE),
    "bavaria-n": _brannvall(partial(_bavaria, form="n"), needs=ONLINE),
    "bavaria-offline": _brannvall(_bavaria_offline, needs=OFFLINE),
}
