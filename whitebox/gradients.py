"""Gradients of each record: lengths, products with a direction, the gradients themselves.

The attacker has: the weights. What is differentiated is the margin phi = z_y - logsumexp of the other
logits, J = grad phi; the loss has grad ell = -sigma(-phi) J. Models are in eval mode, where phi of one record
does not depend on the others. A layer is a module that owns parameters, by its name in `named_modules()`.
`memory` bounds how many records are worked on at a time, and changes no result.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn
from torch.func import functional_call

from glasslab.checks import Floored
from whitebox import rules
from whitebox.captured import Captured as Captured
from whitebox.captured import captured as captured
from whitebox.functional import along, rows_of, signs
from whitebox.hooks import Of, chunks, log_share, outputs, parameters, pull, share, survey, watch
from whitebox.layers import check, owners_of
from whitebox.layers import check_eval as check_eval
from whitebox.layers import chosen as chosen
from whitebox.layers import owners as owners

FEW = 16  # sketches up to which a forward-mode pass each is cheaper than whole gradients


class Norms(NamedTuple):
    """log of the gradient's length, in nats: by layer, and at the record; -inf where it is zero."""

    layers: tuple[str, ...]
    log_layer: Float64[Tensor, "n L"]
    log_input: Float64[Tensor, "n"]


def norms(
    model: nn.Module,
    x: Tensor,
    y: Int[Tensor, "n"],
    *,
    layers: Sequence[str] | None = None,
    of: Of = "phi",
    method: Literal["auto", "hooks"] = "auto",
    memory: str = "512MiB",
) -> Norms:
    """log|J_l| of each record and layer and log|grad_x phi|, in nats; of the loss with of="loss".

    A record has no gradient where x are integers, or where the model looks records up instead of computing
    with them: that counts as zero, and log_input is -inf. Layers without a rule of their own (recurrent ones,
    bare parameters) get full gradients, and a Floored warning names them; with method="hooks" they raise.
    Raises ValueError on a model in training mode, tied parameters, and memory that one record exceeds.
    """
    if method not in ("auto", "hooks"):
        raise ValueError(f"method must be 'auto' or 'hooks', got {method!r}")
    check(model, x, y, of)
    picked = chosen(model, layers, x)
    s = survey(model, picked, x, y)
    if s.bare and method == "hooks":
        raise ValueError(
            f"method 'hooks' needs a rule for every layer, got none for {', '.join(map(repr, s.bare))}"
        )
    _warn(s.bare)
    log: dict[str, list[Tensor]] = {layer: [] for layer in picked}
    log_input = []
    for rows, labels in chunks(model, x, y, memory, s.outputs + s.products):
        seen = watch(model, s.hooked, rows, labels)
        more = log_share(seen.z, labels, of)
        for layer in s.hooked:
            log[layer].append(0.5 * rules.squares(model.get_submodule(layer), seen.calls[layer]).log() + more)
        at_x = rows.new_zeros(len(rows), 1).double() if seen.x is None else seen.x
        log_input.append(rules.length(at_x).log() + more)
    for layer in s.bare:
        for z, labels, grads in rows_of(model, x, y, parameters(model, [layer]), memory):
            total = torch.stack([rules.length(g).square() for g in grads.values()]).sum(0)
            log[layer].append(0.5 * total.log() + log_share(z, labels, of))
    columns = torch.stack([torch.cat(log[layer]) for layer in picked], 1)
    return Norms(picked, columns.to(x.device), torch.cat(log_input).to(x.device))


def contract(
    model: nn.Module,
    x: Tensor,
    y: Int[Tensor, "n"],
    V: Mapping[str, Tensor],
    *,
    of: Of = "phi",
    memory: str = "512MiB",
) -> Float64[Tensor, "n L"]:
    """<J_l, V_l> of each record, one column for each module that V names parameters of, in model order.

    V holds tensors by parameter name; a layer's other parameters count as zero there. One forward and one
    backward pass for all layers. Raises ValueError as `norms` does, on unknown names and wrong shapes.
    """
    check(model, x, y, of)
    layers = owners_of(model, V)
    first = next(model.parameters())
    direction = {name: v.detach().to(first) for name, v in V.items()}
    s = survey(model, layers, x, y)
    _warn(s.bare)
    columns: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for rows, labels in chunks(model, x, y, memory, s.outputs, least=True):
        seen = watch(model, s.hooked, rows, labels, of)
        for layer in s.hooked:
            m, total = model.get_submodule(layer), seen.z.new_zeros(len(rows), dtype=torch.float64)
            weight, bias = (direction.get(f"{layer}.{p}" if layer else p) for p in ("weight", "bias"))
            for a, delta in seen.calls[layer]:
                product = delta * rules.applied(m, a, weight, bias)
                total += product.flatten(1).sum(1, dtype=torch.float64)
            columns[layer].append(total)
    for layer in s.bare:
        mine = {n: v for n, v in direction.items() if n in parameters(model, [layer])}
        columns[layer].append(inner(model, x, y, mine, of=of, memory=memory).to(first.device))
    return torch.stack([torch.cat(columns[layer]) for layer in layers], 1).to(x.device)


def inner(
    model: nn.Module,
    x: Tensor,
    y: Int[Tensor, "n"],
    v: Mapping[str, Tensor],
    *,
    of: Of = "phi",
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """<J, v> of each record over all parameters that v names, by forward-mode differentiation.

    Needs no rule and holds no graph. Where an operation has no forward rule, the same by two backward passes.
    Raises ValueError as `contract` does.
    """
    check(model, x, y, of)
    owners_of(model, v)
    first = next(model.parameters())
    held = {name: p.detach() for name, p in model.named_parameters() if name in v}
    direction = {
        name: rules.learned(model.get_submodule(name.rpartition(".")[0]), v[name].detach().to(first))
        for name in held
    }
    out = []
    for rows, labels in chunks(model, x, y, memory, outputs(model, x, y), least=True):
        z, dz = along(model, rows, held, direction)
        out.append((pull(z, labels, of).double() * dz.double()).sum(1))
    return torch.cat(out).to(x.device)


def per_example(
    model: nn.Module,
    x: Tensor,
    y: Int[Tensor, "n"],
    *,
    layers: Sequence[str] | None = None,
    of: Of = "phi",
    memory: str = "512MiB",
) -> Iterator[dict[str, Tensor]]:
    """Full gradients, chunk by chunk: parameter name -> [chunk, *shape], in the model's precision.

    Raises ValueError as `norms` does, and where the gradient of one record is more than `memory`.
    """
    check(model, x, y, of)
    held = parameters(model, chosen(model, layers, x))
    return (
        {name: _scaled(g, share(z, labels, of)) for name, g in grads.items()}
        for z, labels, grads in rows_of(model, x, y, held, memory)
    )


def sketch(
    model: nn.Module,
    x: Tensor,
    y: Int[Tensor, "n"],
    *,
    k: int,
    seed: int,
    layers: Sequence[str] | None = None,
    of: Of = "phi",
    memory: str = "512MiB",
) -> Float64[Tensor, "n k"]:
    """J R of each record, R of k random columns of +-1: the mean square over columns estimates |J|^2.

    The seed decides R: the first columns are the same for every k. Raises ValueError as `per_example` does.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    check(model, x, y, of)
    held = parameters(model, chosen(model, layers, x))
    if k <= FEW:
        directions = ({n: signs(seed, n, j, p).reshape(p.shape) for n, p in held.items()} for j in range(k))
        return torch.stack([inner(model, x, y, v, of=of, memory=memory) for v in directions], 1)
    out = []
    for z, labels, grads in rows_of(model, x, y, held, memory):
        part = z.new_zeros(len(z), k, dtype=torch.float64)
        for name, g in grads.items():
            for start in range(0, k, FEW):
                columns = range(start, min(start + FEW, k))
                block = torch.stack([signs(seed, name, j, held[name]) for j in columns], 1)
                part[:, start : start + FEW] += g.flatten(1).double() @ block.double()
        out.append(part * share(z, labels, of)[:, None])
    return torch.cat(out).to(x.device)


def mean_gradient(
    model: nn.Module,
    x: Tensor,
    y: Int[Tensor, "n"],
    *,
    layers: Sequence[str] | None = None,
    of: Of = "loss",
    memory: str = "512MiB",
) -> dict[str, Tensor]:
    """Mean over the records: parameter name -> float64 tensor shaped like it. One backward pass.

    Raises ValueError as `norms` does.
    """
    check(model, x, y, of)
    rest = {name: p.detach() for name, p in model.named_parameters()}
    mine = {name: p.requires_grad_() for name, p in parameters(model, chosen(model, layers, x)).items()}
    total = {name: torch.zeros_like(p, dtype=torch.float64, requires_grad=False) for name, p in mine.items()}
    for rows, labels in chunks(model, x, y, memory, 2 * outputs(model, x, y), least=True):
        with torch.enable_grad(), torch.autocast(rows.device.type, enabled=False):
            z = functional_call(model, rest | mine, (rows,))
            if not z.requires_grad:
                continue
            seed = pull(z, labels, of)
            grads = torch.autograd.grad(z, list(mine.values()), seed, allow_unused=True)
        for name, g in zip(mine, grads, strict=True):
            if g is not None:
                total[name] += g
    return {name: t / len(x) for name, t in total.items()}


def _warn(bare: Sequence[str]) -> None:
    if bare:
        text = f"no rule for {', '.join(map(repr, bare))}: gradients formed one by one"
        warnings.warn(text, Floored, stacklevel=3)


def _scaled(g: Tensor, factor: Float64[Tensor, "b"]) -> Tensor:
    return g * factor.to(g.dtype).reshape(-1, *[1] * (g.ndim - 1))
