"""One pass through a model that keeps what its layers saw, and the gradient that came back to each.

A forward hook on a module stores its input, a tensor hook on its output receives delta, the gradient of the
records' margin there. In eval mode the margin of record i depends on record i alone, so one backward pass of
their sum serves a whole batch.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import logsigmoid

from glasslab import signals
from whitebox import rules

Of = Literal["phi", "loss"]
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
MOST, CACHED = 2048, 2**26  # records and bytes at a time: larger batches leave the caches and gain nothing


class Pass(NamedTuple):
    """What one batch left: calls of each layer, gradient at the records, logits, what `first` asks for."""

    calls: dict[str, list[rules.Call]]
    x: Tensor | None
    z: Float[Tensor, "b c"]
    first: dict[str, Tensor | None]


class Survey(NamedTuple):
    """Layers with a rule and without, and bytes a record: of all outputs, of `squares`, of `positions`."""

    hooked: tuple[str, ...]
    bare: tuple[str, ...]
    outputs: int
    products: int
    positions: int


def parameters(model: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
    """The layers' parameters by their full names, detached, whatever is frozen."""
    held = {}
    for layer in layers:
        for name, p in model.get_submodule(layer)._parameters.items():
            if p is not None:
                held[f"{layer}.{name}" if layer else name] = p.detach()
    return held


def placed(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Records and labels where the model is, and in its precision."""
    first = next(model.parameters(), x)
    x = x.detach().to(first.device, first.dtype if x.is_floating_point() else x.dtype)
    if any(getattr(m, "inplace", False) for m in model.modules()):
        x = x.clone()  # the first of them may be the first of all
    if x.ndim == 4 and x.device.type == "cpu":  # convolutions on a processor are faster so
        x = x.contiguous(memory_format=torch.channels_last)
    return x, y.to(first.device)


def pull(z: Float[Tensor, "b c"], y: Int[Tensor, "b"], of: Of) -> Float[Tensor, "b c"]:
    """Gradient at the logits: e_y less the softmax of the others. 1 - p would be 0 from phi = 17 on."""
    z = z.detach()
    true = y[:, None] == torch.arange(z.shape[1], device=z.device)
    grad = true.to(z.dtype) - z.masked_fill(true, -torch.inf).softmax(1)
    return grad if of == "phi" else (share(z, y, of)[:, None] * grad).to(z.dtype)


def share(z: Float[Tensor, "b c"], y: Int[Tensor, "b"], of: Of) -> Float64[Tensor, "b"]:
    """What the gradient of phi is multiplied with: 1, or -sigma(-phi) for the loss."""
    return -log_share(z, y, of).exp() if of == "loss" else torch.ones(len(z), device=z.device).double()


def log_share(z: Float[Tensor, "b c"], y: Int[Tensor, "b"], of: Of) -> Float64[Tensor, "b"]:
    """log|share|, finite where sigma(-phi) is 0 in float64, from phi = 745 on."""
    zero = torch.zeros(len(z), device=z.device, dtype=torch.float64)
    return zero if of == "phi" else logsigmoid(-signals.phi(z.detach(), y))


def watch(
    model: nn.Module,
    layers: Sequence[str],
    x: Tensor,
    y: Tensor,
    of: Of = "phi",
    first: Mapping[str, Tensor] | None = None,
) -> Pass:
    """One forward and one backward pass, all hooks gone afterwards. A call without a gradient has delta 0.

    `first`, parameters: only the first record's margin is differentiated, in them too.
    """
    own = {name: p.requires_grad_() for name, p in (first or {}).items()}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    deltas: dict[tuple[str, int], Tensor] = {}
    leaves: list[Tensor] = []

    def hook(layer: str) -> Callable[..., Tensor]:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
            if not out.requires_grad:  # nothing before it has a gradient: it begins here
                leaves.append(out.detach().requires_grad_())
                out = leaves[-1].clone()
            elif out._is_view():  # what is done to a view in place would go round a hook on it
                out = out.clone()
            key = (layer, len(seen[layer]))
            seen[layer].append(((args[0] if args else kwargs["input"]).detach(), out.detach()))
            out.register_hook(lambda grad: deltas.__setitem__(key, grad))
            return out

        return keep

    handles = [
        model.get_submodule(layer).register_forward_hook(hook(layer), with_kwargs=True) for layer in layers
    ]
    try:
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            start = x.detach().requires_grad_() if x.is_floating_point() else x
            z = functional_call(model, {n: p.detach() for n, p in model.named_parameters()} | own, (start,))
            ends = [*own.values(), *([start] if start.requires_grad else []), *leaves]
            seed = pull(z, y, of)
            if first is not None:
                seed[1:] = 0.0
            grads: Sequence[Tensor | None] = [None] * len(ends)
            if z.requires_grad:
                grads = torch.autograd.grad(z, ends, seed, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    calls = {
        layer: [
            (a, deltas.get((layer, i), out.new_zeros(()).expand_as(out))) for i, (a, out) in enumerate(kept)
        ]
        for layer, kept in seen.items()
    }
    at_x = grads[len(own)] if start.requires_grad else None
    return Pass(calls, at_x, z.detach(), dict(zip(own, grads, strict=False)))


def survey(model: nn.Module, layers: Sequence[str], x: Tensor, y: Tensor) -> Survey:
    """Which layers the rules cover, found by trying them on three records, and how much memory they need.

    The rules' gradient of the first record must be autograd's. A weight that is used without its module, a
    module that does not do what its class does, records that are not first: all of them show.
    """
    held = outputs(model, x, y)
    x, y = placed(model, x[:3], y[:3])
    able = [layer for layer in layers if rules.has_rule(model.get_submodule(layer))]
    caught = watch(model, able, x, y, first=parameters(model, able))
    hooked, products, positions = [], 0, 0
    for layer in able:
        m, calls = model.get_submodule(layer), caught.calls[layer]
        if not calls or any(len(a) != len(x) or len(delta) != len(x) for a, delta in calls):
            continue
        first = rules.formed(m, [(a[:1], delta[:1]) for a, delta in calls])
        prefix = f"{layer}." if layer else ""
        if all(_close(grad[0], caught.first[prefix + name]) for name, grad in first.items()):
            hooked.append(layer)
            need = rules.size(m, calls)
            products, positions = max(products, need[0]), positions + need[1]
    bare = tuple(layer for layer in layers if layer not in hooked)
    bytes_ = _bytes(model, x)
    return Survey(tuple(hooked), bare, held, products * bytes_, positions * bytes_)


def chunks(
    model: nn.Module, x: Tensor, y: Tensor, memory: str, need: int, *, least: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """As many records at a time as fit, `need` bytes each; `least`: one at a time where none fits."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(KiB|MiB|GiB)", memory)
    if found is None:
        raise ValueError(f"memory must be a number of KiB, MiB or GiB, such as '512MiB', got {memory!r}")
    fit = int(float(found[1]) * UNITS[found[2]] / max(need, 1))
    if not fit and not least:
        raise ValueError(
            f"memory must be {math.ceil(need / UNITS['MiB'])}MiB or more for one record here (`contract` "
            f"needs less), got {memory!r}"
        )
    size = max(1, min(fit, MOST, CACHED // max(need, 1)))
    for start in range(0, len(x), size):
        yield placed(model, x[start : start + size], y[start : start + size])


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Bytes a record that a forward and a backward pass hold: every innermost module's output, twice.

    Raises ValueError where the outputs are no logits of two classes or more, or y is none of these.
    """
    x = placed(model, x[:3], y)[0]
    total = [2 * x[0].numel()]

    def count(_: nn.Module, __: Any, out: Any) -> None:
        for part in out if isinstance(out, tuple) else (out,):
            total[0] += 2 * part.numel() // len(x) if isinstance(part, Tensor) else 0

    inner = [m for m in model.modules() if not any(m.children())]
    handles = [m.register_forward_hook(count) for m in inner]
    try:
        z = model(x)
    finally:
        for handle in handles:
            handle.remove()
    if z.ndim != 2 or z.shape[1] < 2:
        raise ValueError(f"model must give logits [n, c] of 2 classes or more, got {tuple(z.shape)}")
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise ValueError(f"y must lie in 0 to {z.shape[1] - 1}, got {int(y.min())} to {int(y.max())}")
    return total[0] * _bytes(model, x)


def _close(a: Tensor, b: Tensor | None) -> bool:
    """Whether two ways to one gradient agree; None: it does not depend on the parameter."""
    if b is None:
        return not a.any()
    slack = 10 * torch.finfo(a.dtype).eps ** 0.5
    return bool((a - b).double().norm() <= slack * b.double().norm())


def _bytes(model: nn.Module, x: Tensor) -> int:
    return next(model.parameters(), x).element_size()
