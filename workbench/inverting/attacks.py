"""The attacks of `glasslab invert`: what each is given of a victim, and the settings it takes by default."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor, nn

from glasslab.data import Data
from glasslab.nets import Dae
from glasslab.oracle import Oracle
from glasslab.split import subseed
from inversion import gan, gmi, kedmi, label_only, plg_mi
from inversion.deepinversion import deepinversion
from inversion.gradient import Gradient, autograd, cosine, difference, nes
from inversion.miface import Start, miface
from inversion.prior import Pca, pca
from inversion.process import decoded, identity, through
from inversion.result import Inversion
from workbench.evidence import one_thread
from workbench.inverting.victim import Victim
from workbench.options import InvertOptions
from workbench.steps import masks_of

ASKED = {"autograd": 5000, "nes": 500, "difference": 50}  # steps, by what a step costs
WATCHED = 100  # points of a curve
PARTS = 40  # principal components of a prior
GAN_STEPS = 600
BATCH = 64  # images that DeepInversion finds together
PATIENCE = 100  # moves of a label-only search without growth


@dataclass(frozen=True)
class Row:
    """What to run; what its attacker has; whether it learns a prior on classes of its own, and whether that
    prior is what asked the target, once for all labels.
    """

    run: Callable[[Victim, InvertOptions, Int[Tensor, "c"]], Inversion]
    access: str
    prior: bool = False
    paper: str = "doi:10.1145/2810103.2813677"
    once: bool = False


def start_of(victim: Victim, options: InvertOptions) -> Start:
    """Zero, as in the literature; nets with ReLU may have no gradient there, and begin at the public mean."""
    if options.start is not None:
        return options.start
    return "public_mean" if any(isinstance(m, nn.ReLU) for m in victim.model.modules()) else "zero"


def asking(victim: Victim, options: InvertOptions, *, labels: bool = False) -> Oracle:
    """A fresh oracle behind the masks, within the budget."""
    reveals = "labels" if labels else "probabilities"
    return Oracle(victim.model, reveals=reveals, mask=masks_of(options.mask), budget=options.budget)  # type: ignore[arg-type]


def by_miface(
    victim: Victim, options: InvertOptions, y: Int[Tensor, "c"], *, steps: int | None = None
) -> Inversion:
    """MI-FACE on images, or on an autoencoder's code where the attacker holds it; `steps`: so many alone."""
    # Small sums: a second core waits more than it helps. PROCESS divides its images among cores itself.
    with nullcontext() if isinstance(victim.model, Dae) else one_thread():
        return _by_miface(victim, options, y, steps or options.steps or ASKED[options.gradient])


def _by_miface(victim: Victim, options: InvertOptions, y: Int[Tensor, "c"], made: int) -> Inversion:
    model, white = victim.model, options.gradient == "autograd"
    if isinstance(model, Dae) and white:
        process = through(model) if options.process_every else identity
        found = miface(
            autograd(model.above),
            y,
            shape=(model.decode.weight.shape[1],),
            steps=made,
            rate=options.rate,
            target_confidence=options.confidence if options.literal_gamma is None else None,
            literal_gamma=options.literal_gamma,
            process=process,
            process_every=max(options.process_every, 1),
            watch=1,
        )
        return decoded(model, found)
    return miface(
        autograd(model) if white else estimated(victim, options),
        y,
        shape=victim.data.shape,
        steps=made,
        rate=options.rate,
        target_confidence=options.confidence if options.literal_gamma is None else None,
        literal_gamma=options.literal_gamma,
        start=start_of(victim, options),
        aux=victim.aux,
        seed=options.seed,
        watch=1,
    )


def estimated(victim: Victim, options: InvertOptions) -> Gradient:
    """From answers, along low frequencies where an image has more pixels than those."""
    oracle, shape = asking(victim, options), victim.data.shape
    along = 0 < options.basis < math.prod(shape) and len(shape) == 3
    basis = cosine(options.basis, shape).to(victim.data.x) if along else None
    if options.gradient == "nes":
        return nes(oracle, options.pairs, options.width, seed=options.seed, basis=basis)
    return difference(oracle, options.width, basis=basis)


def _deepinversion(victim: Victim, options: InvertOptions, y: Int[Tensor, "c"]) -> Inversion:
    """Several images a label, so that the batch has statistics."""
    shape = victim.data.shape
    if len(shape) != 3:
        raise ValueError(f"data must be images for deepinversion, got records of shape {shape}")
    return deepinversion(
        victim.model,
        y.repeat(math.ceil(BATCH / len(y))),
        shape=(shape[0], shape[1], shape[2]),
        steps=options.steps or 500,
        flip=victim.about["mirror"],
        clip=(0.0, 1.0),
        seed=options.seed,
        watch=max(1, (options.steps or 500) // WATCHED),
    )


def _gmi(victim: Victim, options: InvertOptions, y: Int[Tensor, "c"]) -> Inversion:
    public, seed = _public(victim).x, subseed(options.seed, "generator")
    prior = parts(victim) if _faces(victim) else gan.train_gan(public, steps=GAN_STEPS, seed=seed)
    steps = options.steps or 1500
    return gmi.gmi(victim.model, y, prior, steps=steps, seed=options.seed, watch=max(1, steps // WATCHED))


def _kedmi(victim: Victim, options: InvertOptions, y: Int[Tensor, "c"]) -> Inversion:
    _small(victim, "kedmi")
    seed, oracle = subseed(options.seed, "generator"), asking(victim, options)
    prior = kedmi.train_gan(oracle, _public(victim).x, steps=GAN_STEPS, seed=seed)
    steps = options.steps or 1500
    return kedmi.kedmi(victim.model, y, prior, steps=steps, seed=options.seed, watch=max(1, steps // WATCHED))


def _plg_mi(victim: Victim, options: InvertOptions, y: Int[Tensor, "c"]) -> Inversion:
    _small(victim, "plg-mi")
    seed, oracle = subseed(options.seed, "generator"), asking(victim, options)
    prior = plg_mi.train_gan(victim.model, oracle, _public(victim).x, steps=GAN_STEPS, seed=seed)
    steps = options.steps or 600
    return plg_mi.plg_mi(
        victim.model, y, prior, steps=steps, seed=options.seed, watch=max(1, steps // WATCHED)
    )


def _label_only(victim: Victim, options: InvertOptions, y: Int[Tensor, "c"]) -> Inversion:
    prior, oracle = parts(victim), asking(victim, options, labels=True)
    return label_only.label_only(
        oracle, y, latent=prior.latent, decode=prior, patience=PATIENCE, seed=options.seed, watch=1
    )


def parts(victim: Victim) -> Pca:
    """Principal components of the public classes."""
    x = _public(victim).x
    return pca(x, min(PARTS, len(x) - 1, math.prod(victim.data.shape)))


def _public(victim: Victim) -> Data:
    assert victim.prior is not None, "an attack with a prior gets classes apart"
    return victim.prior


def _faces(victim: Victim) -> bool:
    """Too few images, and too many pixels, for a generator."""
    return min(victim.data.shape[1:]) > 32


def _small(victim: Victim, name: str) -> None:
    if _faces(victim):
        raise ValueError(
            f"data must be images of 32 pixels a side at most for {name}, got {victim.data.shape}"
        )


ATTACKS: Mapping[str, Row] = {
    "miface": Row(by_miface, "weights"),
    "deepinversion": Row(_deepinversion, "weights", paper="arXiv:1912.08795"),
    "gmi": Row(_gmi, "weights", True, "arXiv:1911.07135"),
    "kedmi": Row(_kedmi, "weights", True, "arXiv:2010.04092", once=True),
    "plg-mi": Row(_plg_mi, "weights", True, "arXiv:2302.09814", once=True),
    "label-only": Row(_label_only, "labels", True, "arXiv:2203.01925"),
}


def access_of(name: str, options: InvertOptions) -> str:
    """MI-FACE needs weights for its gradient, or answers."""
    return "probabilities" if name == "miface" and options.gradient != "autograd" else ATTACKS[name].access


def chosen(names: str) -> dict[str, Row]:
    """Rows by names joined by commas. Raises ValueError for unknown or repeated ones, or none."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in ATTACKS]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"attack must be one or more of {', '.join(ATTACKS)}, got {names!r}")
    return {name: ATTACKS[name] for name in wanted}


def asked(name: str, found: Inversion) -> int:
    """Queries in all."""
    return int(found.queries.max() if ATTACKS[name].once else found.queries.sum())
