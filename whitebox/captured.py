"""What a layer saw and what came back to it, position by position: the two halves of its gradients.

For curvature in Kronecker factors and for products between the gradients of two records, which need no
gradient to be formed.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from whitebox import rules
from whitebox.hooks import Of, chunks, survey, watch
from whitebox.layers import check, chosen


class Captured(NamedTuple):
    """A layer's inputs, with a 1 appended where it has a bias, and the gradient at its outputs.

    t counts positions, over all calls; a record's gradient is delta' a, shaped [o, i1].
    """

    a: Float[Tensor, "b t i1"]
    delta: Float[Tensor, "b t o"]


def captured(
    model: nn.Module,
    x: Tensor,
    y: Int[Tensor, "n"],
    *,
    layers: Sequence[str] | None = None,
    of: Of = "phi",
    memory: str = "512MiB",
) -> Iterator[dict[str, Captured]]:
    """Inputs and deltas, chunk by chunk: layer -> Captured, for dense layers and convolutions of one group.

    layers=None leaves other layers out; named, they raise ValueError. Otherwise raises as `norms` does.
    """
    check(model, x, y, of)
    picked = chosen(model, layers, x)
    s = survey(model, picked, x, y)
    fit = tuple(layer for layer in s.hooked if rules.unfolds(model.get_submodule(layer)))
    other = [layer for layer in picked if layer not in fit]
    if (layers is not None and other) or not fit:
        raise ValueError(f"layers must be dense or convolutions of one group, got {', '.join(other)}")
    return _captured(model, fit, of, chunks(model, x, y, memory, s.outputs + s.positions))


def _captured(
    model: nn.Module, layers: Sequence[str], of: Of, parts: Iterator[tuple[Tensor, Tensor]]
) -> Iterator[dict[str, Captured]]:
    for rows, labels in parts:
        seen = watch(model, layers, rows, labels, of)
        out = {}
        for layer in layers:
            m = model.get_submodule(layer)
            both = [rules.positions(m, a, delta, ordered=True) for a, delta in seen.calls[layer]]
            a, delta = (
                torch.cat(p, -2)[:, 0] if len(both) > 1 else p[0][:, 0] for p in zip(*both, strict=True)
            )
            if "bias" in rules.own(m):
                a = torch.cat([a, a.new_ones(*a.shape[:2], 1)], -1)
            out[layer] = Captured(a, delta)
        yield out
