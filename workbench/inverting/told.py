"""One attack on a victim, with its reference rows: the numbers and the images beside each other."""

import warnings
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glasslab.checks import Floored
from glasslab.recon_rows import Row
from inversion.result import Inversion
from workbench.inverting import attacks, measured
from workbench.inverting.measured import Line
from workbench.inverting.victim import Victim
from workbench.options import InvertOptions


@dataclass(frozen=True, eq=False)
class Told:
    """`lines`: the attack's own, then its references. `images`: one a label, by name, for pictures alone."""

    found: Inversion
    lines: list[Line]
    images: dict[str, Float[Tensor, "l *d"]]


def run(
    held: Victim, options: InvertOptions, name: str, y: Int[Tensor, "c"]
) -> tuple[Inversion, float, list[str]]:
    """What it found, seconds, and what was floored."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Floored)
        begun = perf_counter()
        found = attacks.ATTACKS[name].run(held, options, y)
        took = perf_counter() - begun
    return found, took, list(dict.fromkeys(str(w.message) for w in caught))


def told(
    held: Victim, options: InvertOptions, name: str, ran: tuple[Inversion, float, list[str]] | None = None
) -> Told:
    """Measures what an attack found; of all labels, where it has not run yet."""
    every = torch.arange(held.data.classes, device=held.data.y.device)
    found, seconds, notes = run(held, options, name, every) if ran is None else ran
    rows = measured.references(held, found, _first_step(held, options, found.y), options.seed)
    own = measured.measured(held, name, Row(found.x, found.y, False))
    line = own.line(options.seed) | {"attack": name, "notes": "; ".join(notes) or None}
    line |= measured.cost(held, found, seconds, attacks.access_of(name, options), attacks.asked(name, found))
    for rival in measured.RIVALS:
        line |= measured.against(own, rows[rival], options.seed)
    lines = [line, *(other.line(options.seed) | {"attack": name} for other in rows.values())]
    first = torch.stack([(found.y == label).nonzero()[0, 0] for label in found.y.unique()])
    x, y = found.x[first].float(), found.y[first]
    images = {
        "nearest original": measured.nearest_private(held, x, y),
        "class mean": rows["class mean"].row.x[first],
        "one step": rows["one step"].row.x[first],
        name: x,
    }
    return Told(found, lines, images)


def _first_step(held: Victim, options: InvertOptions, y: Int[Tensor, "n"]) -> Float[Tensor, "n *d"]:
    """One white-box step for each label, in the order of y, where several may share it."""
    labels, place = y.unique(return_inverse=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Floored)
        plain = replace(options, gradient="autograd", literal_gamma=None)
        return attacks.by_miface(held, plain, labels, steps=1).x[place]
