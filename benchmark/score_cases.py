"""What benchmark/score.py times: each attack on made-up inputs, and whom it is measured against.

A case draws arrays (benchmark/score_inputs.py) for any number of records, runs the attack on them, and names
its textbook twin (benchmark/score_twins.py), or published packages (benchmark/peers).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from benchmark import score_inputs as inputs
from benchmark import score_twins as twins
from benchmark.score_inputs import Arrays, Given, asked, net
from blackbox import baseline
from blackbox.augmentation import agreement, augmentation
from blackbox.base import base
from blackbox.bavaria import bavaria
from blackbox.boundary import boundary
from blackbox.difficulty import sablayrolles, watson
from blackbox.lira import lira
from blackbox.merlin import merlin
from blackbox.ml_leaks import ml_leaks
from blackbox.mlps import Training
from blackbox.noise_robustness import noise_robustness
from blackbox.quantile import quantile
from blackbox.reference import ye_p, ye_r, ye_s
from blackbox.rmia import rmia
from blackbox.shadow import shadow
from blackbox.similarity import gmia, similarity
from glasslab.oracle import Oracle

Run = Callable[[Given], Tensor]

FACTORS = (1 / 8, 1 / 4, 1 / 2, 1)  # of a case's records


@dataclass(frozen=True)
class Peer:
    """A script of benchmark/peers, on the first `records` (None: all), and how its task is not ours.

    `ours` runs ours with the package's settings (None: the case as it is). `exact`: then both scores must be
    equal; otherwise the rank correlation is written. `like` runs ours on what the package does beyond that.
    """

    script: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    records: int | None = None
    exact: bool = False
    ours: Run | None = None
    like: Run | None = None
    differs: str = ""


@dataclass(frozen=True)
class Case:
    """An attack, the largest number of its records, and what it is measured against.

    The twin gives the scores of one record as a formula is read; `sample` records are timed. `exact`: it must
    equal ours, as it does where nothing is drawn. What learns has a `plain` version of the whole attack
    instead, and what that is. `few` records make the run that goes before.
    """

    draw: Callable[[int, int, int], Arrays]  # records, models, seed
    run: Run
    records: int = 50_000
    models: int = 64
    few: int = 64
    twin: twins.Twin | None = None
    plain: tuple[str, twins.Plain] | None = None
    sample: int = 100
    exact: bool = True
    differs: str = ""
    peers: tuple[Peer, ...] = ()


AS_MIALIBRARY = (1.0, 0.0, 1.0)  # RMIA's gamma, nothing trimmed, p(z) a plain mean


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _lira(a: Given) -> Tensor:
    return lira(a["phi"], a["shadow_phi"], a["shadow_member"], variance="record")


def _lira_all(a: Given) -> Tensor:
    every = torch.cat([a["shadow_phi"], a["phi"]])
    return lira(every, a["shadow_phi"], a["shadow_member"], variance="record")


def _rmia(a: Given, gamma: float = 2.0, trim: float = 0.2, mix: float = 0.3) -> Tensor:
    held = [a[name] for name in ("log_p", "log_p_aux", "shadow_log_p", "shadow_log_p_aux", "shadow_member")]
    return rmia(*held, gamma=gamma, trim=trim, a=mix)


def _rmia_all(a: Given) -> Tensor:
    both = {name: torch.cat([a[f"shadow_{name}"], a[name]]) for name in ("log_p", "log_p_aux")}
    return _rmia({**a, **both}, *AS_MIALIBRARY)


def _shadow(a: Given, training: Training = Training()) -> Tensor:  # noqa: B008, it is frozen
    held = [a[name] for name in ("p", "y", "shadow_p", "y", "shadow_member")]
    return shadow(*held, generator=generator(), training=training)


def _augmentation(a: Given) -> Tensor:
    return augmentation(agreement(asked(a), a["image"], a["y"]), a["y"], rule="share")


def _augmentation_mlp(a: Given) -> Tensor:
    b, y = a["agree"], a["y"]
    told = partial(augmentation, shadow_agree=b, shadow_y=y, shadow_member=a["member"])
    return told(b, y, generator=generator())


CASES: dict[str, Case] = {
    "modified_entropy": Case(
        inputs.answers,
        lambda a: baseline.modified_entropy(a["z"], a["y"]),
        models=2,
        twin=twins.modified_entropy,
    ),
    "shadow": Case(
        inputs.probabilities,
        _shadow,
        records=1_600,
        models=8,
        peers=(
            Peer(
                "art_shadow",
                {"epochs": 100},
                like=lambda a: _shadow(a, Training(patience=100)),
                differs="one net of 512-100-64 and 256-64 units, told the label, 100 epochs; ours 64 units a "
                "class, stopped early (ratio_like: all 100 epochs)",
            ),
        ),
    ),
    "ml_leaks": Case(
        inputs.probabilities,
        lambda a: ml_leaks(a["p"], a["shadow_p"][:1], a["shadow_member"][:1], generator=generator()),
        records=5_000,
        models=2,
        few=400,
        plain=(f"scikit-learn {version('scikit-learn')}, MLPClassifier", twins.ml_leaks),
        differs="other batches and weights to begin with; all 100 epochs in both",
    ),
    "similarity": Case(
        inputs.answers,
        lambda a: similarity(a["z"], a["shadow_z"], a["shadow_member"]),
        twin=twins.similarity,
    ),
    "gmia": Case(
        inputs.losses, lambda a: gmia(a["loss"], a["shadow_loss"], a["shadow_member"]), twin=twins.gmia
    ),
    "sablayrolles": Case(
        inputs.one_query,
        lambda a: sablayrolles(a["phi"], a["shadow_phi"], a["shadow_member"]),
        twin=twins.sablayrolles,
    ),
    "watson": Case(
        inputs.one_query, lambda a: watson(a["phi"], a["shadow_phi"], a["shadow_member"]), twin=twins.watson
    ),
    "ye_p": Case(inputs.losses, lambda a: ye_p(a["loss"], a["loss"]), models=2, twin=twins.ye_p),
    "ye_s": Case(
        inputs.losses,
        lambda a: ye_s(a["loss"], a["y"], a["shadow_loss"], a["y"], a["shadow_member"]),
        twin=twins.ye_s,
        sample=20,
    ),
    "ye_r": Case(
        inputs.losses, lambda a: ye_r(a["loss"], a["shadow_loss"], a["shadow_member"]), twin=twins.ye_r
    ),
    "lira": Case(
        inputs.signals,
        _lira,
        twin=twins.lira,
        peers=(
            Peer(
                "mialibrary_lira",
                exact=True,
                like=_lira_all,
                differs="gives the scores of all 65 models, of which the target's are asked for (ratio_like: "
                "ours gives as many)",
            ),
        ),
    ),
    "rmia": Case(
        inputs.population,
        _rmia,
        twin=twins.rmia,
        sample=20,
        peers=(
            Peer(
                "mialibrary_rmia",
                ours=lambda a: _rmia(a, *AS_MIALIBRARY),
                like=_rmia_all,
                differs="gamma 1, no trim, no a, as ours here; divides by the number of x, not of z; leaves "
                "out the last of 65 models, and gives the scores of 64, of which the target's are asked for "
                "(ratio_like: ours gives those of 65)",
            ),
        ),
    ),
    "base": Case(
        inputs.population, lambda a: base(a["log_p"], a["shadow_log_p"], a["shadow_member"]), twin=twins.base
    ),
    "bavaria": Case(
        inputs.pooled, lambda a: bavaria(a["phi"], a["shadow_phi"], a["shadow_member"]), twin=twins.bavaria
    ),
    "merlin": Case(
        inputs.digits,
        lambda a: merlin(Oracle(net(a)), a["x"], a["y"], generator=generator(), sigma=0.3),
        records=2_000,
        models=1,
        twin=twins.merlin,
        exact=False,
        differs="noise of its own (both at sigma 0.3, as at 0.01 this loss is straight: 1/2 for all)",
    ),
    "quantile": Case(
        inputs.tables,
        lambda a: quantile(a["s"], a["x"], a["s_aux"], a["x_aux"], generator=generator(), patience=30),
        records=4_000,
        models=1,
        plain=("plain PyTorch loop", twins.quantile),
        differs="other batches and weights to begin with; all 30 epochs in both",
    ),
    "boundary": Case(
        inputs.digits,
        lambda a: boundary(asked(a), a["x"], a["y"], generator=generator(), box=(0.0, 1.0)),
        records=200,
        models=1,
        few=4,
        peers=(
            Peer(
                "art_boundary",
                {"steps": 10},
                records=25,
                differs="steps by iterations, not by a budget: queries_a_record, against 2,500",
            ),
            Peer(
                "foolbox_boundary",
                {"steps": 10},
                differs="steps by iterations, not by a budget: queries_a_record, against 2,500",
            ),
        ),
    ),
    "augmentation": Case(inputs.images, _augmentation, records=20_000, models=1, twin=twins.augmentation),
    "augmentation_mlp": Case(
        inputs.agreements,
        _augmentation_mlp,
        records=20_000,
        models=1,
        few=640,
        plain=("plain PyTorch loop", twins.augmentation_mlp),
        differs="the second half alone, from the answers on; steps on all pairs, not on all that differ",
    ),
    "noise_robustness": Case(
        inputs.digits,
        lambda a: noise_robustness(asked(a), a["x"], a["y"], generator=generator(), level=0.3),
        records=400,
        models=1,
        few=4,
        twin=twins.noise_robustness,
        sample=20,
        exact=False,
        differs="noise of its own",
    ),
}
