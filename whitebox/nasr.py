"""The supervised white-box attack on a finished model (Nasr, Shokri & Houmansadr 2019, arXiv:1812.00910).

The attacker has: the target's weights, and either shadow models on records it knows (`nasr`), or the truth
about some of the target's own records (`nasr_known`, the paper's form). A record is described by its logits,
loss, one-hot label, the gradient of its loss in the chosen layers and, where asked, what layers put out. A
net, with one part for each of them and an encoder above, learns which of the records were in training.
Score: its logit. Higher = member.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import one_hot, pad

from glasslab import signals
from glasslab.oracle import forward
from whitebox.fitting import fit, fresh
from whitebox.gradients import check_eval, per_example
from whitebox.nasr_net import AttackNet

Layers = Sequence[str] | Literal["last"]
View = Callable[[nn.Module, Tensor, Tensor], list[Tensor]]

CHUNK, BATCH = 512, 128  # records looked at, and asked, at a time
FULL = (2024, 512, 256)  # the published gradient part; 14 million weights for a last layer of 64 x 10


def nasr(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    shadows: Sequence[nn.Module],
    member: Bool[Tensor, "m n"],
    generator: Generator,
    *,
    layers: Layers = "last",
    outputs: Sequence[str] = (),
    models: int = 8,
    rows: int = 10_000,
    kernels: int = 100,
    head: Sequence[int] = (1024, 512),
    full: bool = False,
    epochs: int = 20,
    batch: int = 64,
    lr: float = 1e-3,
) -> Float64[Tensor, "n"]:
    """Logit of membership in nats, by a net that learned on shadow models what members look like.

    It learns from `rows` (model, record) pairs of `models` shadows at most, drawn before any gradient is
    computed. `layers` and `outputs` name modules, with * wildcards. `kernels` and `head` are sizes of the
    part that reads gradients; `full` takes the published ones.
    Raises ValueError where a model is in training mode or its layers have other shapes than the target's,
    for names that no module has, one class, or where no model was trained on a record, or all on all.
    """
    if len(shadows) != len(member):
        raise ValueError(f"member must have a row for each of {len(shadows)} shadows, got {len(member)}")
    check_eval(model)
    view = partial(_view, layers=layers, outputs=outputs)
    seen, told = [], []
    used = torch.randperm(len(shadows), generator=generator)[:models].tolist()
    for k in used:
        drawn = _drawn(member[k].cpu(), max(2, rows // len(used)), generator)
        seen.append(view(shadows[k], x[drawn], y[drawn]))
        told.append(member[k].cpu()[drawn])
    _same_shapes([*seen, view(model, x[:1], y[:1])])
    inputs = [torch.cat(parts) for parts in zip(*seen, strict=True)]
    sizes = (100, FULL) if full else (kernels, head)
    net = _learned(inputs, torch.cat(told), "member", generator, sizes, epochs=epochs, batch=batch, lr=lr)
    return _scored(net, view, model, x, y)


def nasr_known(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    known: Bool[Tensor, "n"],
    generator: Generator,
    *,
    share: float = 0.5,
    layers: Layers = "last",
    outputs: Sequence[str] = (),
    rows: int = 10_000,
    kernels: int = 100,
    head: Sequence[int] = (1024, 512),
    full: bool = False,
    epochs: int = 20,
    batch: int = 64,
    lr: float = 1e-3,
) -> Float64[Tensor, "n"]:
    """Logit of membership, in spreads of its half, by a net that learned from the truth about other records.

    The records are cut into two halves at random. What scores one half learned from `share` of all records
    (at most 0.5, and `rows` of them), which lie in the other: known[i] never touches score i.
    Other settings and errors are those of `nasr`; each half must know members and others.
    """
    if not 0 < share <= 0.5:
        raise ValueError(f"share must lie above 0 and be 0.5 at most, got {share:g}")
    check_eval(model)
    view = partial(_view, layers=layers, outputs=outputs)
    sizes = (100, FULL) if full else (kernels, head)
    order = torch.randperm(len(x), generator=generator)
    # A stream for each half: how much a fit draws depends on what it knows, and must not move the other's.
    seeds = torch.randint(2**62, (2,), generator=generator).tolist()
    score = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for half, seed in enumerate(seeds):
        scored, others = order[half::2], order[1 - half :: 2]
        told = others[: min(rows, max(1, round(share * len(x))))]
        truth = known.cpu()[told]
        own = torch.Generator().manual_seed(seed)
        inputs = view(model, x[told], y[told])
        net = _learned(inputs, truth, "known", own, sizes, epochs=epochs, batch=batch, lr=lr)
        s = _scored(net, view, model, x[scored], y[scored])
        # Two nets, two scales. The spread is that of all scores of the half, whoever is a member.
        spread = s.std(correction=0)
        score[scored] = (s - s.mean()) / torch.where(spread > 0, spread, 1.0)
    return score


def _squared(logits: Float[Tensor, "b"], t: Float[Tensor, "b"]) -> Float[Tensor, ""]:
    return (logits.sigmoid() - t.to(logits)).square().mean()


def _learned(
    inputs: list[Tensor],
    member: Bool[Tensor, "r"],
    name: str,
    generator: Generator,
    sizes: tuple[int, Sequence[int]],
    *,
    epochs: int,
    batch: int,
    lr: float,
) -> AttackNet:
    """Of the epoch that was best on a tenth of the rows, held out."""
    inside = int(member.sum())
    if not 0 < inside < len(member):
        raise ValueError(f"{name} must hold both sides, got {inside} in and {len(member) - inside} out")
    # DIFFERS: the authors' code keeps the epoch that was best on the records under test.
    net = fresh(lambda: AttackNet(inputs, *sizes), generator).to(inputs[0].device)
    return fit(net, net.scaled(inputs), member, generator, loss=_squared, epochs=epochs, batch=batch, lr=lr)


def _scored(
    net: AttackNet, view: View, model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"]
) -> Float64[Tensor, "n"]:
    scores = []
    for part in torch.arange(len(x)).split(CHUNK):
        seen = view(model, x[part], y[part])
        with torch.no_grad():
            scores.append(net(*net.scaled(seen)).double())
    return torch.cat(scores)


def _view(
    model: nn.Module,
    x: Float[Tensor, "r *d"],
    y: Int[Tensor, "r"],
    *,
    layers: Layers,
    outputs: Sequence[str],
) -> list[Tensor]:
    """What the net is shown of each record: logits, label, loss, outputs of layers, gradients of the loss."""
    check_eval(model)
    parts = torch.arange(len(x)).split(CHUNK)
    chunks = [_chunk(model, x[part], y[part], layers, outputs) for part in parts]
    seen = [torch.cat(v) for v in zip(*chunks, strict=True)]
    bad = sum(int((~v.isfinite()).sum()) for v in seen)
    if bad:
        raise ValueError(f"model must give finite logits and gradients, got {bad} NaN or infinite values")
    return seen


def _chunk(
    model: nn.Module, x: Float[Tensor, "b *d"], y: Int[Tensor, "b"], layers: Layers, outputs: Sequence[str]
) -> list[Tensor]:
    z, given = _outputs(model, x, outputs)
    if z.shape[1] < 2:
        raise ValueError(f"model must tell 2+ classes apart, got {z.shape[1]}")
    label, loss = one_hot(y.long(), z.shape[1]).float(), signals.loss(z, y).float()[:, None]
    pieces = [_matrices(g) for g in per_example(model, x, y, layers=layers, of="loss")]
    gradients = [torch.cat(parts).float().to(x.device) for parts in zip(*pieces, strict=True)]
    return [z, label, loss, *given, *gradients]


def _outputs(
    model: nn.Module, x: Float[Tensor, "b *d"], patterns: Sequence[str]
) -> tuple[Float32[Tensor, "b c"], list[Float32[Tensor, "b ..."]]]:
    """Logits, and what the named modules put out: [b, d], or [b, c, s] with all places in one row."""
    modules = dict(model.named_modules())
    kept: dict[str, list[Tensor]] = {name: [] for p in patterns for name in _matching(modules, p)}

    def keep(to: list[Tensor], module: nn.Module, given: object, out: Tensor) -> None:
        to.append(out.detach().clone())  # what follows may work in place

    hooks = [modules[name].register_forward_hook(partial(keep, to)) for name, to in kept.items()]
    try:
        z = forward(model, x, BATCH)
    finally:
        for hook in hooks:
            hook.remove()
    for name, calls in kept.items():
        if (used := len(calls) / math.ceil(len(x) / BATCH)) != 1:
            raise ValueError(f"outputs must name modules that are used once, got {name}, used {used:g} times")
    out = [torch.cat(calls)[: len(x)].float().to(x.device) for calls in kept.values()]
    return z, [v.flatten(2) if v.ndim > 2 else v.reshape(len(v), -1) for v in out]


def _matching(modules: Mapping[str, nn.Module], pattern: str) -> list[str]:
    found = [name for name in modules if name and fnmatchcase(name, pattern)]
    if not found:
        near = ", ".join(difflib.get_close_matches(pattern, modules, n=3, cutoff=0)) or "none"
        raise ValueError(f"outputs must name modules, got {pattern!r}; the nearest are {near}")
    return found


def _matrices(gradients: Mapping[str, Tensor]) -> list[Float[Tensor, "b o p w"]]:
    """One for each parameter, by its output units; a bias stands with its weight, as one more input."""
    found = {name: _by_unit(g) for name, g in gradients.items()}
    for name in gradients:
        weight = f"{name.removesuffix('bias')}weight"
        if name.endswith("bias") and weight in found and found[weight].shape[1] == gradients[name].shape[1]:
            last = pad(found.pop(name), (0, found[weight].shape[3] - 1))
            found[weight] = torch.cat([found[weight], last], 2)
    return list(found.values())


def _by_unit(g: Float[Tensor, "b ..."]) -> Float[Tensor, "b o p w"]:
    return g.reshape(len(g), g.shape[1] if g.ndim > 1 else 1, -1, math.prod(g.shape[3:]))


def _drawn(member: Bool[Tensor, "n"], rows: int, generator: Generator) -> Int[Tensor, "r"]:
    """Half of the rows members and half others, as far as there are any."""
    sides = [side.nonzero().squeeze(1) for side in (member, ~member)]
    return torch.cat([side[torch.randperm(len(side), generator=generator)[: rows // 2]] for side in sides])


def _same_shapes(seen: Sequence[Sequence[Tensor]]) -> None:
    """The target comes last."""
    shapes = [[list(v.shape[1:]) for v in parts] for parts in seen]
    for own in shapes:
        if own != shapes[-1]:
            raise ValueError(f"shadows must show what the target shows, shapes {shapes[-1]}, got {own}")
