"""What the meta attack model sees of a record: one column a feature, the same for shadows and target."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor, nn

from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.oracle import forward
from glasslab.recipe import Recipe
from glasslab.signals import loss, phi
from whitebox.cut import cut
from whitebox.gradients import norms
from whitebox.pairs import Displacement, chunks, displaced
from whitebox.proxy import train_heads

LOWEST = -100.0  # nats, of a logarithm


class Features(NamedTuple):
    """One column a name; after the bar stands the cut, or the layer, that it belongs to."""

    names: tuple[str, ...]
    values: Float64[Tensor, "n f"]


def features(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux_proxy: Data,
    recipe: Recipe,
    generator: Generator,
    cuts: Sequence[str | None] = (None,),
    *,
    displacements: Sequence[Displacement] | None = None,
    gradients: bool = True,
    proxies: int = 1,
    n_steps: int = 50,
) -> Features:
    """Features of records by a model, target or shadow, whose proxy heads learn `aux_proxy`; all in nats,
    but sigma(-phi).

    `displacements`: one net a cut; None subtracts. A logarithm of zero counts as -100, Floored warns how
    often. Raises ValueError in training mode, and for a cut with a way around it.
    """
    heads = [train_heads(model, place, aux_proxy, recipe, generator, proxies=proxies) for place in cuts]
    return described(
        model, heads, x, y, cuts, displacements=displacements, gradients=gradients, n_steps=n_steps
    )


def described(
    model: nn.Module,
    heads: Sequence[Sequence[nn.Module]],
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    cuts: Sequence[str | None],
    *,
    displacements: Sequence[Displacement] | None = None,
    gradients: bool = True,
    n_steps: int = 50,
) -> Features:
    """As `features`, with the proxy heads of each cut already trained."""
    columns: dict[str, Tensor] = {}
    for k, place in enumerate(cuts):
        at = "last" if place is None else place
        if displacements is None:
            columns[f"m | {at}"] = subtracted(model, heads[k], x, y)
        else:
            columns[f"m | {at}"] = displaced(displacements[k], model, heads[k], place, x, y, n_steps=n_steps)
        columns[f"log|h| | {at}"] = _length(model, place, x)
    margin = phi(forward(model, x), y)
    columns |= {"phi": margin, "sigma(-phi)": (-margin).sigmoid()}
    if gradients:
        found = norms(model, x, y)
        columns["log|grad_x phi|"] = found.log_input
        columns |= {f"log|J| | {name}": found.log_layer[:, l] for l, name in enumerate(found.layers)}
    values = torch.stack([column.double() for column in columns.values()], 1)
    below = torch.tensor([name.startswith("log") for name in columns]).to(x.device) & (values < LOWEST)
    if below.any():
        text = f"{int(below.sum())} of {values.numel()} features are logarithms of zero, taken for {LOWEST:g}"
        warnings.warn(text, Floored, stacklevel=3)
    return Features(tuple(columns), values.masked_fill(below, LOWEST))


def subtracted(
    model: nn.Module, heads: Sequence[nn.Module], x: Float[Tensor, "n *d"], y: Int[Tensor, "n"]
) -> Float64[Tensor, "n"]:
    """log p^_y - log p~_y, the mean over the proxies: what any exact linearisation subtracts to."""
    proxies = torch.stack([loss(forward(head, x), y) for head in heads])
    return proxies.mean(0) - loss(forward(model, x), y)


@torch.no_grad()
def _length(model: nn.Module, place: str | None, x: Float[Tensor, "n *d"]) -> Float64[Tensor, "n"]:
    parts = [cut(model, place, x[rows]).double().flatten(1).norm(dim=1) for rows in chunks(model, place, x)]
    return torch.cat(parts).log()
