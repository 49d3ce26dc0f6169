"""Gradient norms: what the model has learned by heart hardly pulls at its weights any more.

Rezaei & Liu 2021, arXiv:2005.13702. The attacker has the weights.
Score: -log |grad loss|, differentiated in the chosen layers' weights or in the record. As grad loss is
-sigma(-phi) J with J = grad phi, this is -log sigma(-phi) - log |J|: a black box sees the first part too.
Higher = member.
"""

import warnings
from collections.abc import Sequence
from typing import Final, Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from glasslab.checks import Floored
from glasslab.signals import phi
from whitebox.gradients import check_eval, norms, per_example
from whitebox.hooks import chunks, outputs, watch

Norm = Literal[1, 2, "inf"]

FLOOR: Final = float(torch.tensor(torch.finfo(torch.float64).tiny, dtype=torch.float64).log())


def gradnorm(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    layers: Sequence[str] | None = None,
    norm: Norm = 2,
    of: Literal["loss", "margin", "input"] = "loss",
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """Minus the log of the gradient's norm, in nats; `margin` leaves out sigma(-phi).

    `loss` and `margin` are differentiated in the parameters of `layers`: names with `*`, "last" for the last
    layer that runs, None for all. `input` is the loss in the record. Norms 1 and "inf" need every record's
    whole gradient. A gradient of 0, as in a model that looks its answers up, counts as the smallest normal
    float64 (score 708.4), and a Floored warning says how many do.
    Raises ValueError on a model in training mode, unknown layers, layers given together with of="input",
    another norm, NaN or infinite records, and memory that one record exceeds.
    """
    check_eval(model)
    if norm not in (1, 2, "inf"):
        raise ValueError(f"norm must be 1, 2 or 'inf', got {norm!r}")
    if of not in ("loss", "margin", "input"):
        raise ValueError(f"of must be 'loss', 'margin' or 'input', got {of!r}")
    if of == "input" and layers is not None:
        raise ValueError(f"layers must be None with of='input', got {layers!r}")
    if bad := int((~x.isfinite()).sum()):
        raise ValueError(f"x must be finite, got {bad} NaN or infinite values")
    if of == "input":
        log = _at_input(model, x, y, norm, memory)
    elif norm == 2:
        kind: Literal["phi", "loss"] = "loss" if of == "loss" else "phi"
        log = (2 * norms(model, x, y, layers=layers, of=kind, memory=memory).log_layer).logsumexp(1) / 2
    else:
        log = _at_weights(model, x, y, layers, norm, memory)
        log = log + _share(model, x, y, memory) if of == "loss" else log
    if still := int((log == -torch.inf).sum()):
        warnings.warn(f"{still} of {len(x)} gradients are 0: norm floored", Floored, stacklevel=2)
    return -torch.where(log == -torch.inf, FLOOR, log)


def _at_input(
    model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"], norm: Norm, memory: str
) -> Float64[Tensor, "n"]:
    """log |grad_x loss|, from J: the loss's own gradient is 0 in float32 long before its log ends."""
    out = []
    for rows, labels in chunks(model, x, y, memory, outputs(model, x, y)):
        seen = watch(model, (), rows, labels)
        J = torch.zeros_like(rows) if seen.x is None else seen.x
        out.append(_length(J, norm).log() + logsigmoid(-phi(seen.z, labels)))
    return torch.cat(out).to(x.device)


def _share(
    model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"], memory: str
) -> Float64[Tensor, "n"]:
    """log sigma(-phi)."""
    parts = chunks(model, x, y, memory, outputs(model, x, y))
    seen = [(watch(model, (), rows, labels).z, labels) for rows, labels in parts]
    return torch.cat([logsigmoid(-phi(z, labels)) for z, labels in seen]).to(x.device)


def _at_weights(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    layers: Sequence[str] | None,
    norm: Norm,
    memory: str,
) -> Float64[Tensor, "n"]:
    """log |J| from whole gradients."""
    out = []
    for grads in per_example(model, x, y, layers=layers, of="phi", memory=memory):
        each = torch.stack([_length(g, norm) for g in grads.values()], 1)
        out.append(torch.linalg.vector_norm(each, _order(norm), dim=1).log())
    return torch.cat(out).to(x.device)


def _length(g: Float[Tensor, "b ..."], norm: Norm) -> Float64[Tensor, "b"]:
    return torch.linalg.vector_norm(g.reshape(len(g), -1).double(), _order(norm), dim=1)


def _order(norm: Norm) -> float:
    return torch.inf if norm == "inf" else float(norm)
