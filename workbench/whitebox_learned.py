"""Rows of white-box attacks that learn from shadows or known members, or hold more than a finished model."""

from collections.abc import Mapping, Sequence
from functools import partial

from jaxtyping import Float64
from torch import Generator, Tensor

from glasslab.game import Game
from whitebox import glir, inverse_hessian, layerwise, meta, nasr, realigned
from whitebox.align import Method
from workbench import learned_weights
from workbench.attack import Attack, Needs
from workbench.learned_weights import Displacement
from workbench.whitebox_weights import held, shortened

Cuts = tuple[str | None, ...]
LAST: Cuts = (None,)
KERNELS, HEAD = 32, (256, 128)  # of nasr's part that reads gradients, which is 14 million weights in print
ROWS = 4000  # (model, record) pairs that a classifier learns from, anew for each target
GRADIENTS = 2**32  # bytes of all records' gradients that IHA may hold: 4 GiB


def _general_wb(
    game: Game,
    generator: Generator,
    *,
    fits: int = 10,
    proxies: int = 1,
    epochs: int = 0,
    steps: int = 32,
    lr: float = 1e-3,
    n_steps: int = 50,
) -> Float64[Tensor, "n"]:
    game = shortened(game, epochs)
    learned = learned_weights.general(game, generator.initial_seed(), None, fits, proxies, steps, lr, n_steps)
    return layerwise.apply(learned, held(game), game.x, game.y, game.aux, game.recipe, generator).cpu()


def _meta(
    game: Game,
    generator: Generator,
    *,
    cuts: Cuts = LAST,
    displacement: Displacement = "subtract",
    fits: int = 10,
    proxies: int = 1,
    epochs: int = 0,
    steps: int = 32,
    lr: float = 1e-3,
) -> Float64[Tensor, "n"]:
    game, seed = shortened(game, epochs), generator.initial_seed()
    learned = learned_weights.meta_model(game, seed, cuts, displacement, fits, proxies, steps, lr)
    return meta.apply(learned, held(game), game.x, game.y, game.aux, game.recipe, generator).cpu()


def _meta_shadows(
    game: Game,
    generator: Generator,
    *,
    cuts: Cuts = LAST,
    proxies: int = 1,
    models: int = 64,
    epochs: int = 0,
    steps: int = 32,
) -> Float64[Tensor, "n"]:
    game, seed = shortened(game, epochs), generator.initial_seed()
    classifier = learned_weights.shadow_classifier(game, seed, cuts, proxies, models, steps)
    return classifier(learned_weights.own_features(game, seed, cuts, proxies))


def _nasr(
    game: Game,
    generator: Generator,
    *,
    rows: int = ROWS,
    epochs: int = 20,
    models: int = 8,
    kernels: int = KERNELS,
    head: Sequence[int] = HEAD,
) -> Float64[Tensor, "n"]:
    shadows = game.shadows
    return nasr.nasr(
        held(game),
        game.x,
        game.y,
        shadows.models,
        shadows.inside,
        generator,
        rows=rows,
        epochs=epochs,
        models=models,
        kernels=kernels,
        head=head,
    ).cpu()


def _nasr_known(
    game: Game,
    generator: Generator,
    *,
    rows: int = ROWS,
    epochs: int = 20,
    kernels: int = KERNELS,
    head: Sequence[int] = HEAD,
) -> Float64[Tensor, "n"]:
    assert game.known is not None
    return nasr.nasr_known(
        held(game),
        game.x,
        game.y,
        game.known,
        generator,
        rows=rows,
        epochs=epochs,
        kernels=kernels,
        head=head,
    ).cpu()


def _realigned(
    game: Game,
    generator: Generator,
    *,
    alignment: Method | None = "activations",
    set_based: bool = False,
    models: int = 10,
    rows: int = ROWS,
    epochs: int = 100,
) -> Float64[Tensor, "n"]:
    shadows = game.shadows
    return realigned.realigned(
        held(game),
        game.x,
        game.y,
        shadows.models,
        shadows.inside,
        game.aux.x,
        generator,
        alignment=alignment,
        set_based=set_based,
        models=models,
        rows=rows,
        epochs=epochs,
    ).cpu()


def _iha(
    game: Game,
    generator: Generator,
    *,
    skip_loss: bool = False,
    eps: float = 0.2,
    method: inverse_hessian.Method = "auto",
    tolerance: float = 1e-5,
    records: int = 128,
) -> Float64[Tensor, "n"]:
    assert game.known is not None
    d = sum(p.numel() for p in held(game).parameters())
    if 8 * d * len(game.x) > GRADIENTS:
        size = 8 * d * len(game.x) / 2**30
        raise ValueError(f"model must leave all records' gradients within 4 GiB, got {size:.0f} GiB")
    return inverse_hessian.inverse_hessian(
        held(game),
        game.x,
        game.y,
        game.known,
        game.recipe,
        skip_loss=skip_loss,
        eps=eps,
        method=method,
        tolerance=tolerance,
        records=min(records, len(game.x)),
    ).cpu()


def _glir(
    game: Game, generator: Generator, *, d: int = 650, steps: int | None = None
) -> Float64[Tensor, "n"]:
    assert game.steps is not None
    return glir.glir(game.steps()[:steps], game.x, game.y, game.aux, d=d).cpu()


LEINO, NASR, CRETU = "arXiv:1906.11798", "arXiv:1812.00910", "arXiv:2306.05093"
SURI, LEEMANN = "arXiv:2406.11544", "arXiv:2306.07273"
AUX, IN_AND_OUT = Needs(aux=100), Needs(n_in=1, n_out=1)
ALIGNED = Needs(n_in=1, n_out=1, aux=10)

_row = partial(Attack, family="whitebox", access="weights", asks=0, random=True)
_shadows = partial(_row, holds="weights+shadows", costly=True)
_small = {"rows": 200, "epochs": 2, "kernels": 4, "head": (16,)}
_few = {"fits": 2, "epochs": 3, "steps": 6, "lr": 1e-2}
_cretu = partial(_shadows, paper=CRETU, needs=ALIGNED, quick={"models": 2, "rows": 200, "epochs": 2})

_near = {"eps": 1.0, "method": "cg", "tolerance": 0.1}
_informed = partial(_row, paper=SURI, holds="informed", costly=True, random=False, quick=_near)

LEARNED: Mapping[str, Attack] = {
    "general-wb": _shadows(
        _general_wb, paper=LEINO, needs=AUX, decision=0.0, quick=_few | {"fits": 1, "n_steps": 4}
    ),
    "meta": _shadows(_meta, paper=LEINO, needs=AUX, decision=0.0, quick=_few, default=True),
    "meta-shadows": _shadows(
        _meta_shadows,
        paper=LEINO,
        needs=Needs(n_in=1, n_out=1, aux=100),
        decision=0.0,
        quick={"models": 2, "epochs": 2, "steps": 2},
    ),
    "nasr": _shadows(
        _nasr,
        paper=NASR,
        needs=IN_AND_OUT,
        decision=0.0,
        quick=_small | {"models": 2},
    ),
    "realigned": _cretu(_realigned, decision=0.0),
    "realigned-set": _cretu(partial(_realigned, set_based=True), decision=0.0),
    "realigned-off": _cretu(partial(_realigned, alignment=None), decision=0.0),
    "nasr-known": _row(
        _nasr_known,
        paper=NASR,
        holds="weights+known members",
        costly=True,
        quick=_small,
    ),
    "iha": _informed(_iha),
    "iha-skip-loss": _informed(partial(_iha, skip_loss=True)),
    "glir": _row(
        _glir,
        paper=LEEMANN,
        holds="steps",
        needs=AUX,
        costly=True,
        random=False,
        quick={"d": 300, "steps": 2},
    ),
}
