"""IHA, the inverse-Hessian attack (Suri, Zhang & Evans 2024, arXiv:2406.11544).

The attacker has: the weights, every training record but the one under test, and the recipe (rate eta,
momentum mu, weight decay lambda).

    H_e = Hessian of the mean loss + (lambda + eps) I,  g = grad of the record's loss ell,  gbar0 = sum of the
    gradients of the other members / n,  u = H_e^-1 g,  v = H_e^-1 gbar0,  w = H_e^-1 u
    I1 = ell / (1 + mu);  I2 = |u|^2 / n;  I3 = 2 <v, u>;  I4 = <u, w> / n;  I5 = 2 <v, w>
    s = 1 - eta lambda / (1 + mu);  R = -(I4 + I5) (lambda / 2) (2 - eta lambda / (1 + mu))
    score = I1 - (I2 + I3) s / eta + R / eta

At a stationary point the gradients of the members sum to 0, so gbar0 is -g / n for a member and 0 for others:
I2 + I3 is -|u|^2 / n or +|u|^2 / n, whatever the metric H_e. Higher = member.
"""

import copy
import re
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.functional import cross_entropy

from glasslab import signals
from glasslab.checks import Floored
from glasslab.recipe import Recipe
from whitebox.gradients import check_eval, per_example
from whitebox.hooks import UNITS
from whitebox.krylov import Product, powers

Method = Literal["auto", "exact", "low_rank", "cg"]
Inverse = Callable[[Float64[Tensor, "b d"]], Float64[Tensor, "3 b d"]]  # H_e^-1 g, H_e^-2 g, H_e^-3 g

DENSE = 50_000  # parameters beyond which no d x d matrix is formed unasked
HELD = {"exact": 2, "low_rank": 3}  # d x d matrices in memory at a time
ITERATIONS = 100


def inverse_hessian(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    known: Bool[Tensor, "n"],
    recipe: Recipe,
    *,
    skip_loss: bool = False,
    eps: float = 0.2,
    method: Method = "auto",
    n_train: int | None = None,
    records: int | None = None,
    tolerance: float = 1e-5,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """I1 - (I2 + I3) s / eta + R / eta of each record i, given all other members: a change of loss, in nats.

    `known` marks the members; entry i is never used for record i. n is `n_train` (by default half of the
    candidates): a constant, since a count of `known` would tell. `skip_loss` leaves out I1 and the factor
    1 / eta. H is the mean over all candidates, or over `records` of them, evenly spaced by gradient norm.

    exact: H formed and factored. low_rank: its eigenvalues of size above eps, undamped. cg: conjugate
    gradients to a relative residual of `tolerance`, each step a product of H with the vectors of a block of
    records. auto: exact where two d x d matrices fit in `memory`, up to 50,000 parameters; else cg. Beside
    `memory` stand the gradients of all records, 8 n d bytes.

    Warns Floored where H_e has a negative eigenvalue, cg stops early, or low_rank keeps nothing. Raises
    ValueError for a model in training mode, settings out of range and matrices that do not fit.
    """
    check_eval(model)
    n = _settings(len(x), known, eps, n_train, records, tolerance)
    net = copy.deepcopy(model).double().requires_grad_()
    device = next(net.parameters(), x).device
    x, y, member = x.double().to(device), y.long().to(device), known.double().to(device)
    g = _gradients(net, x, y, memory)
    # DIFFERS: H over all candidates. Over the members, with i among them, it would change with entry i; any
    # positive H shows the change of sign.
    rows = _spread(g, len(x) if records is None else records)
    way, room = _way(method, g.shape[1], memory), _bytes(memory)
    size = max(1, room // (8 * g.shape[1] * ITERATIONS))  # vectors at a time
    product = _product(net, x[rows], y[rows], recipe.weight_decay + eps * (way != "low_rank"), size, room)
    inverse = _inverse(product, g, way, size, eps, tolerance)
    terms = []
    for start in range(0, len(x), size):
        own = g[start : start + size]
        u, w, t = inverse(own)
        pull, pull_twice = (2 * _others(g, v, member, start) / n for v in (w, t))  # <v, u> is <gbar0, w>
        terms.append(torch.stack([(u * u).sum(1) / n, pull, (u * w).sum(1) / n, pull_twice]))
    i2, i3, i4, i5 = torch.cat(terms, 1)
    mu = recipe.momentum if recipe.optimiser == "sgd" else 0.0
    decay, step = recipe.weight_decay, recipe.lr * recipe.weight_decay / (1 + mu)
    rest = -(i2 + i3) * (1 - step) - (i4 + i5) * decay / 2 * (2 - step)
    if skip_loss:
        return rest
    with torch.no_grad():
        ell = torch.cat([signals.loss(net(a), b) for a, b in zip(x.split(128), y.split(128), strict=True)])
    return ell / (1 + mu) + rest / recipe.lr


def _gradients(net: nn.Module, x: Tensor, y: Tensor, memory: str) -> Float64[Tensor, "n d"]:
    """Gradient of each record's loss, parameters in the order of named_parameters."""
    names = [name for name, _ in net.named_parameters()]
    chunks = per_example(net, x, y, of="loss", memory=memory)
    return torch.cat([torch.cat([c[name].flatten(1) for name in names], 1).detach() for c in chunks])


def _spread(g: Float64[Tensor, "n d"], k: int) -> Int[Tensor, "k"]:
    """k records, evenly spaced from the smallest gradient to the largest: their order does not matter."""
    order = g.norm(dim=1).argsort(stable=True)
    return order[torch.linspace(0, len(g) - 1, k, device=g.device).round().long()]


def _others(
    g: Float64[Tensor, "n d"], v: Float64[Tensor, "b d"], member: Float64[Tensor, "n"], start: int
) -> Float64[Tensor, "b"]:
    """Sum of <g_j, v_i> over the members j other than i = start, start + 1, ..."""
    inner = g @ v.T
    own = torch.arange(len(v), device=g.device)
    inner[start + own, own] = 0.0
    return member @ inner


def _product(net: nn.Module, x: Tensor, y: Tensor, shift: float, size: int, room: int) -> Product:
    """v -> (Hessian of the mean loss + shift I) v for a block of vectors, in one sweep over the records."""
    params = {name: p.detach() for name, p in net.named_parameters()}
    theta = torch.cat([p.flatten() for p in params.values()])
    sizes, k = [p.numel() for p in params.values()], len(x)
    held = max(1, room // (32 * size * _width(net, x)))  # records: each vector has activations of its own

    def slope(rows: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        def total(flat: Tensor) -> Tensor:
            parts = zip(params.items(), flat.split(sizes), strict=True)
            weights = {name: part.view_as(p) for (name, p), part in parts}
            return cross_entropy(functional_call(net, weights, (rows,)), labels, reduction="sum") / k

        return grad(total)

    pulls = [vjp(slope(a, b), theta)[1] for a, b in zip(x.split(held), y.split(held), strict=True)]

    def product(v: Float64[Tensor, "b d"]) -> Float64[Tensor, "b d"]:
        return sum((vmap(lambda one, pull=pull: pull(one)[0])(v).detach() for pull in pulls), shift * v)

    return product


def _width(net: nn.Module, x: Tensor) -> int:
    """Numbers that the backward pass of one record more keeps."""
    held = []
    for rows in (x[:1], torch.cat([x[:1], x[:1]])):
        sizes: list[int] = []

        def keep(t: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(t.numel())
            return t

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            net(rows).sum()
        held.append(sum(sizes))
    return max(1, held[1] - held[0], x[0].numel())


def _inverse(
    product: Product, g: Float64[Tensor, "n d"], way: str, size: int, eps: float, tolerance: float
) -> Inverse:
    if way == "cg":
        return lambda rows: powers(product, rows, tolerance=tolerance, limit=ITERATIONS)
    unit = torch.eye(g.shape[1], dtype=g.dtype, device=g.device)
    h = torch.cat([product(block) for block in unit.split(size)])
    h = (h + h.T) / 2
    if way == "low_rank":
        values, q = torch.linalg.eigh(h)
        kept = values.abs() > eps
        if not kept.any():
            warnings.warn(f"0 of {len(kept)} eigenvalues are larger than {eps:g}", Floored, stacklevel=3)
        values, q = values[kept], q[:, kept]
        return lambda rows: torch.stack([rows @ (q / values**k) @ q.T for k in (1, 2, 3)])
    factor, failed = torch.linalg.cholesky_ex(h)
    if not failed:
        return lambda rows: _thrice(lambda b: torch.cholesky_solve(b, factor), rows)
    text = f"the Hessian has negative eigenvalues that eps {eps:g} does not outweigh"
    warnings.warn(text, Floored, stacklevel=3)
    pivoted, pivots = torch.linalg.lu_factor(h)
    return lambda rows: _thrice(lambda b: torch.linalg.lu_solve(pivoted, pivots, b), rows)


def _thrice(solve: Callable[[Tensor], Tensor], rows: Float64[Tensor, "b d"]) -> Float64[Tensor, "3 b d"]:
    u = solve(rows.T)
    w = solve(u)
    return torch.stack([u.T, w.T, solve(w).T])


def _way(method: Method, d: int, memory: str) -> str:
    """The method, "auto" resolved. Raises ValueError where its matrices do not fit."""
    room = _bytes(memory)
    if method == "auto":
        return "exact" if d <= DENSE and 8 * HELD["exact"] * d * d <= room else "cg"
    if method not in (*HELD, "cg"):
        raise ValueError(f"method must be 'auto', 'exact', 'low_rank' or 'cg', got {method!r}")
    need = 8 * HELD.get(method, 0) * d * d
    if need > room:
        raise ValueError(
            f"memory must be {-(-need // 2**20)}MiB for method {method!r} and {d} parameters (cg forms no "
            f"matrix), got {memory!r}"
        )
    return method


def _settings(
    n: int, known: Tensor, eps: float, n_train: int | None, records: int | None, tolerance: float
) -> int:
    """n of the formulas."""
    if len(known) != n:
        raise ValueError(f"known must hold one entry a record, {n}, got {len(known)}")
    for name, value in (("eps", eps), ("tolerance", tolerance)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if records is not None and not 1 <= records <= n:
        raise ValueError(f"records must lie in 1 .. {n}, got {records}")
    if n_train is not None and n_train < 1:
        raise ValueError(f"n_train must be 1 or more, got {n_train}")
    # DIFFERS: the authors' code divides by the number of others, n - 1 for members and n else, which tells.
    return max(1, round(n / 2)) if n_train is None else n_train


def _bytes(memory: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(KiB|MiB|GiB)", memory)
    if not found:
        raise ValueError(f"memory must be a number of KiB, MiB or GiB, such as '512MiB', got {memory!r}")
    return int(float(found[1]) * UNITS[found[2]])
