"""Per-record gradients of one module, from its input a and the gradient delta at its output.

Every module here is linear in its own parameters: a dense layer, a convolution, a norm in eval mode, a table
of embeddings. Their gradient is the sum over positions t of delta_t a_t' (a unfolded for convolutions, or
normalised for norms), and over the calls where a module is used more than once.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn.functional import embedding, group_norm, instance_norm, layer_norm, linear, pad

Call = tuple[Tensor, Tensor]  # input, gradient at the output; records first
Conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Batch = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Instance = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
RULES = (nn.Linear, *Conv, *Batch, *Instance, nn.GroupNorm, nn.LayerNorm, nn.Embedding)


def own(m: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that the module itself holds."""
    return tuple(name for name, p in m._parameters.items() if p is not None)


def has_rule(m: nn.Module) -> bool:
    if not isinstance(m, RULES) or not set(own(m)) <= {"weight", "bias"}:
        return False
    return not isinstance(m, nn.Embedding) or (m.max_norm is None and not m.scale_grad_by_freq)


def unfolds(m: nn.Module) -> bool:
    """Whether its gradient is one matrix delta' a: dense layers, and convolutions of one group."""
    return isinstance(m, nn.Linear) or (isinstance(m, Conv) and m.groups == 1)


def learned(m: nn.Module, v: Tensor) -> Tensor:
    """A direction for a weight without what has no gradient by definition: an embedding's padding."""
    if not isinstance(m, nn.Embedding) or m.padding_idx is None:
        return v
    return v.index_fill(0, torch.tensor(m.padding_idx, device=v.device), 0.0)


def applied(m: nn.Module, a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The module's output for input a with other parameters in place of its own; None stands for zeros."""
    if weight is None and bias is not None:
        ahead = bias.ndim if isinstance(m, nn.LayerNorm) else 1
        spatial = 0 if isinstance(m, nn.Linear | nn.LayerNorm) else a.ndim - 2
        return bias.reshape(*[1] * ahead, *bias.shape, *[1] * spatial)
    assert weight is not None
    if isinstance(m, nn.Linear):
        return linear(a, weight, bias)
    if isinstance(m, Conv):
        return m._conv_forward(a, weight, bias)
    if isinstance(m, nn.Embedding):
        return embedding(a, learned(m, weight))
    each = [1] * (0 if isinstance(m, nn.LayerNorm) else a.ndim - 2)
    out = normalised(m, a) * weight.reshape(*weight.shape, *each)
    return out if bias is None else out + bias.reshape(*bias.shape, *each)


def normalised(m: nn.Module, a: Tensor) -> Tensor:
    """What a norm multiplies with its weight."""
    if isinstance(m, nn.LayerNorm):
        return layer_norm(a, m.normalized_shape, None, None, m.eps)
    if isinstance(m, nn.GroupNorm):
        return group_norm(a, m.num_groups, None, None, m.eps)
    assert isinstance(m, Batch + Instance)
    if m.running_mean is None or m.running_var is None:
        return instance_norm(a, eps=m.eps)
    shape = (-1, *[1] * (a.ndim - 2))
    return (a - m.running_mean.reshape(shape)) * (m.running_var + m.eps).rsqrt().reshape(shape)


def formed(m: nn.Module, calls: Sequence[Call]) -> dict[str, Tensor]:
    """Gradients of each record: parameter -> [b, *shape], summed over the calls."""
    each = [_formed(m, a, delta) for a, delta in calls]
    return {name: torch.stack([g[name] for g in each]).sum(0) for name in own(m)}


def squares(m: nn.Module, calls: Sequence[Call]) -> Float64[Tensor, "b"]:
    """Squared length of each record's gradient."""
    held = own(m)
    if "weight" not in held or not isinstance(m, (nn.Linear, *Conv)):
        grads = formed(m, calls)
        return sum((length(g).square() for g in grads.values()), torch.zeros((), dtype=torch.float64))
    if len(calls) == 1 and calls[0][0].ndim == 2:  # one position: the gradient is a product of two vectors
        a, delta = calls[0]
        return (length(a).square() + ("bias" in held)) * length(delta).square()
    parts = [positions(m, a, delta) for a, delta in calls]
    a, delta = (torch.cat(p, -2) if len(calls) > 1 else p[0] for p in zip(*parts, strict=True))
    scale = torch.linalg.vector_norm(delta.flatten(1), torch.inf, 1).clamp(min=torch.finfo(delta.dtype).tiny)
    delta = delta / scale[:, None, None, None]  # squares of small gradients would be 0 in float32
    t, i, o = a.shape[-2], a.shape[-1], delta.shape[-1]
    if 2 * t**2 < o * i:
        gram = (a @ a.mT) * (delta @ delta.mT)
        total = gram.sum((1, 2, 3), dtype=torch.float64).clamp(min=0)
    else:
        rows = torch.linalg.vector_norm(
            delta.mT @ a, dim=-1
        )  # in float64 it would take longer than the product
        total = rows.double().square().sum((1, 2))
    if "bias" in held:
        total = total + length(delta.sum(-2)).square()
    return total * scale.double().square()


def positions(
    m: nn.Module, a: Tensor, delta: Tensor, *, ordered: bool = False
) -> tuple[Float[Tensor, "b g t i"], Float[Tensor, "b g t o"]]:
    """Inputs that each position sees, and the gradient at its output, by groups of channels.

    `ordered` lays inputs out as the weight has them; without it they come in the order that is fastest.
    """
    if isinstance(m, nn.Linear):
        return a.reshape(len(a), 1, -1, a.shape[-1]), delta.reshape(len(a), 1, -1, delta.shape[-1])
    assert isinstance(m, Conv)
    n, dims = len(a), a.ndim - 2
    mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
    if any(m._reversed_padding_repeated_twice):
        a = pad(a, m._reversed_padding_repeated_twice, mode=mode)
    for d in range(dims):
        reach = m.dilation[d] * (m.kernel_size[d] - 1) + 1
        a = a.unfold(2 + d, reach, m.stride[d])[..., :: m.dilation[d]]
    a = a.unflatten(1, (m.groups, -1))  # b g c t.. k..
    at, window = range(3, 3 + dims), range(3 + dims, 3 + 2 * dims)
    last = (2, *window) if ordered else (*window, 2)
    a = a.permute(0, 1, *at, *last).flatten(2, 1 + dims).flatten(3)
    return a, delta.unflatten(1, (m.groups, -1)).flatten(3).mT.reshape(n, m.groups, a.shape[2], -1)


def size(m: nn.Module, calls: Sequence[Call]) -> tuple[int, int]:
    """Numbers a record that `squares` needs at once, and how many `positions` holds."""
    if not isinstance(m, (nn.Linear, *Conv)):
        at = sum(delta[0].numel() for _, delta in calls)
        return at + sum(p.numel() for p in m.parameters(recurse=False)), 2 * at
    groups = m.groups if isinstance(m, Conv) else 1
    i = math.prod(m.weight.shape[1:])
    o = m.weight.shape[0]
    t = sum(delta[0].numel() // o for _, delta in calls)
    if t == 1:
        return i + o, i + o
    both = t * (i * groups + o)
    return both + min(groups * 2 * t**2, o * i), both


def length(g: Tensor) -> Float64[Tensor, "b"]:
    """Euclidean length of each record's numbers; in float64 where float32 would lose their squares."""
    g = g.flatten(1)
    short = torch.linalg.vector_norm(g, dim=1)
    if g.dtype == torch.float64 or bool(((short > 1e-15) & (short < 1e15)).all()):
        return short.double()
    return torch.linalg.vector_norm(g, dim=1, dtype=torch.float64)


def _formed(m: nn.Module, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Gradients of one call."""
    if isinstance(m, (nn.Linear, *Conv)):
        if "weight" not in own(m):
            at = range(1, delta.ndim - 1) if isinstance(m, nn.Linear) else range(2, delta.ndim)
            return {"bias": delta.sum(tuple(at)) if len(at) else delta}
        seen, pulled = positions(m, a, delta, ordered=True)
        weight = (pulled.mT @ seen).reshape(len(a), *m.weight.shape)
        return {"weight": weight, "bias": pulled.sum(-2).flatten(1)}
    if isinstance(m, nn.Embedding):
        out = delta.new_zeros(len(a), *m.weight.shape)
        index = a.reshape(len(a), -1, 1).expand(-1, -1, delta.shape[-1]).long()
        out.scatter_add_(1, index, delta.reshape(len(a), -1, delta.shape[-1]))
        if m.padding_idx is not None:
            out[:, m.padding_idx] = 0.0
        return {"weight": out}
    if isinstance(m, nn.LayerNorm):
        at = range(1, delta.ndim - len(m.normalized_shape))
    else:
        at = range(2, delta.ndim)
    pull = delta * normalised(m, a)
    return {
        "weight": pull.sum(tuple(at)) if len(at) else pull,
        "bias": delta.sum(tuple(at)) if len(at) else delta,
    }
