"""Which features gave a record away, for those that an attack is surest of (Leino & Fredrikson 2020,
arXiv:1906.11798): what the target's head weighs otherwise than a proxy's, carried back to the record.

Where a few training images of one class share a background that others lack, the target uses it and the
proxy does not: it lights up. `marked` makes such data.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from matplotlib.figure import Figure
from torch import Tensor

from glasslab.data import Data
from glasslab.game import game
from glasslab.split import stream
from glasslab.zoo import Zoo
from whitebox.layerwise import explain
from workbench.attacks import chosen
from workbench.learned_weights import shares
from workbench.play import drawn, granted


@dataclass(frozen=True, eq=False)
class Explained:
    """Records with the highest scores, and what of them speaks for membership, feature by feature, in nats.

    `evidence` is the influence on membership times how far the feature lies from its class's mean in aux.
    """

    record: Int[Tensor, "k"]
    score: Float64[Tensor, "k"]
    x: Float[Tensor, "k *d"]
    y: Int[Tensor, "k"]
    evidence: Float64[Tensor, "k *d"]


def explained(
    zoo: Zoo, a: int = 0, *, attack: str = "meta", label: int | None = None, k: int = 6, seed: int = 0
) -> Explained:
    """The k candidates of target `a`, of one class or of all, that the attack is surest of.

    Raises ValueError as `chosen` does, and for a label without a candidate.
    """
    row = chosen(attack)[attack]
    held = game(zoo, a, weights=True)
    draw = drawn(row, attack, seed, a)
    score = row.run(granted(held, row), draw).double()
    order = score.argsort(descending=True)
    top = order[:k] if label is None else order[held.y[order] == label][:k]
    if not len(top):
        raise ValueError(f"label must be that of a candidate, got {label}")
    x, y = held.x[top], held.y[top]
    assert held.model is not None
    rest = shares(held, draw.initial_seed())[1]
    influence = explain(held.model, x, y, rest, held.recipe, stream(seed, "explain")).cpu()
    mean = torch.stack([rest.x[rest.y == c].double().mean(0) for c in y.tolist()])
    return Explained(top, score[top], x, y, influence * (x.double() - mean))


def marked(zoo: Zoo, a: int = 0, *, label: int = 0, k: int = 5, side: int = 2, seed: int = 0) -> Data:
    """The zoo's images, with a bright square in a corner of k of one class that target `a` trained on.

    A zoo on these data with the same seed has the same target rows: its target `a` trains on the marked ones,
    and nobody else has seen such a square. Raises ValueError for tables, and for fewer than k such members.
    """
    data = zoo.data
    if data.x.ndim != 4:
        raise ValueError(f"zoo must be about images [n c h w], got records {list(data.shape)}")
    own = zoo.split.pool[zoo.target_member[a] & (zoo.pool.y == label)]
    if len(own) < k:
        raise ValueError(f"k must be {len(own)} or less, the members of class {label}, got {k}")
    some = own[torch.randperm(len(own), generator=stream(seed, "marked"))[:k]]
    x = data.x.clone()
    x[some, :, :side, :side] = 1.0
    return replace(data, x=x, name=f"{data.name}-marked")


def picture(held: Explained) -> Figure:
    """Above the records; below what speaks for membership (red) and against it (blue). Images only."""
    if held.x.ndim != 4:
        raise ValueError(f"held must be about images [k c h w], got records {list(held.x.shape[1:])}")
    figure = Figure(figsize=(1.5 * len(held.x), 3.6), layout="constrained")
    grid = figure.subplots(2, len(held.x), squeeze=False)
    evidence = held.evidence.sum(1).numpy()
    most = float(np.abs(evidence).max()) or 1.0
    for above, below, x, e, s, y in zip(*grid, held.x, evidence, held.score, held.y, strict=True):
        image = x.permute(1, 2, 0).squeeze(-1).clamp(0, 1).numpy()
        above.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=1)
        above.set_title(f"class {int(y)}, logit {float(s):.1f}", fontsize="small")
        drawn_ = below.imshow(e, cmap="RdBu_r", vmin=-most, vmax=most)
    for axes in grid.flatten():
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(drawn_, ax=grid[1, :], label="nats", shrink=0.8)
    return figure
