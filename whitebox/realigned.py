"""Shadows realigned to the target, then one classifier for all records (Cretu et al. 2024, arXiv:2306.05093).

The attacker has: the target's weights, m shadow models and their membership, and aux. Nets that were trained
apart write one feature into different units, so a classifier of raw weights and activations learns little.
Here each shadow's units are first permuted onto the target's (see `align`). Of every (shadow, record), and of
the last layers, the classifier sees
  OA = the layer's output (softmax at the last),  IA = W[y, :] * a,  G = delta a', the gradient of [W | b],
with a what the layer reads and delta the loss gradient at its output, and learns whether the record was in.
set_based: it sees the units of the last hidden layer as a set, one vector (OA_j, IA_j, G_:j) a unit, summed
after a small net: nothing to align.
Score: the log-odds of membership that it gives for the target. Higher = member.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from whitebox.align import Method, align
from whitebox.fitting import fresh
from whitebox.gradients import Captured, captured, check_eval, owners
from whitebox.realigned_net import OfLayers, OfSets, learned, log_odds
from whitebox.symmetry import check_shapes

Parts = list[Tensor]  # labels, then the inputs of the classifier, a row a record
Sketches = dict[str, Tensor]


def realigned(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    shadows: Sequence[nn.Module],
    member: Bool[Tensor, "m n"],
    aux_x: Float[Tensor, "a *d"],
    generator: Generator,
    *,
    alignment: Method | None = "activations",
    layers: int = 2,
    set_based: bool = False,
    double_softmax: bool = False,
    models: int = 10,
    rows: int = 10_000,
    side: int = 100,
    epochs: int = 100,
    batch: int = 64,
    lr: float = 1e-3,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """Log-odds of membership in nats, by a classifier trained on `rows` pairs (shadow, record), half in.

    member[i, j]: record j is in shadow i. The first `models` shadows are used, with their last `layers` dense
    or convolutional layers. A gradient with a side longer than `side` is projected to it by random signs.
    The rate halves after a flat epoch; training ends below 1e-4, or after `epochs`. `double_softmax` takes
    the gradient of a cross-entropy that is fed probabilities, as the authors' code does.
    ValueError in training mode, on shadows of other widths, a net that does not end in a dense layer, and
    where no pair is in or none is out. Fit on pooled records: a score depends on the other candidates.
    """
    names = _check(model, x, shadows, member, 1 if set_based else layers, models)
    sketches: Sketches = {}

    def seen(net: nn.Module, part: Tensor) -> Iterator[Parts]:
        for labels, both in _features(net, x[part], y[part], names, double_softmax, memory):
            if set_based:
                yield _of_units(net, labels, both)
            else:
                yield _of_layers(net, labels, both, side, sketches, generator)

    table, told, held = [], [], member[:models].cpu()
    for shadow, row, part in zip(shadows, held, _pairs(held, rows, generator), strict=False):
        net = shadow
        if alignment is not None and not set_based and len(owners(model)) > 1:  # one layer: nothing is hidden
            net = align(shadow, model, aux_x, method=alignment, generator=generator)
        table += list(seen(net, part.to(x.device)))
        told.append(row[part])
    parts = [torch.cat(column) for column in zip(*table, strict=True)]
    known, classes = torch.cat(told).to(x.device), _last(model, names).out_features
    scales = [p.square().mean().sqrt().clamp(min=1e-30) for p in parts[1:]]
    kind = OfSets if set_based else OfLayers
    net = fresh(lambda: kind([p.shape[1:] for p in parts[1:]], classes, scales), generator).to(x.device)
    net = learned(net, parts, known, generator, epochs, batch, lr)
    every = torch.arange(len(x), device=x.device)
    return torch.cat([log_odds(net, fed) for fed in seen(model, every)]).to(x.device)


def _pairs(member: Bool[Tensor, "m n"], rows: int, generator: Generator) -> list[Int64[Tensor, "_"]]:
    """Records of each shadow that the classifier learns from: of either side equally many, if there are."""
    share, out = max(1, rows // (2 * len(member))), []
    for row in member:
        sides = [side.nonzero()[:, 0] for side in (row, ~row)]
        drawn = [s[torch.randperm(len(s), generator=generator)[:share]] for s in sides]
        out.append(torch.cat(drawn))
    return out


def _features(
    model: nn.Module,
    x: Float[Tensor, "r *d"],
    y: Int[Tensor, "r"],
    names: Sequence[str],
    double_softmax: bool,
    memory: str,
) -> Iterator[tuple[Tensor, dict[str, Captured]]]:
    """Labels, and what each of the layers reads (a) and is told (delta), chunk by chunk."""
    if not len(x):
        return
    net, prefix = (nn.Sequential(model, nn.Softmax(-1)).eval(), "0.") if double_softmax else (model, "")
    within = [(prefix + name).rstrip(".") for name in names]
    done = 0
    for chunk in captured(net, x, y, layers=within, of="loss", memory=memory):
        both = dict(zip(names, (chunk[name] for name in within), strict=True))
        size = len(both[names[0]].a)
        yield y[done : done + size].to(both[names[0]].a.device), both
        done += size


def _outputs(
    model: nn.Module, last: Captured, y: Tensor, names: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """(softmax, what the last layer reads, IA) of each record."""
    layer = _last(model, names)
    h, w = last.a[:, 0, : layer.in_features], layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    return linear(h, w, bias).softmax(-1), h, w[y] * h


def _of_layers(
    model: nn.Module,
    y: Tensor,
    both: dict[str, Captured],
    side: int,
    sketches: Sketches,
    generator: Generator,
) -> Parts:
    """y, then OA of each layer, IA, and G of each layer, in float32."""
    names = [*both]
    p, h, ia = _outputs(model, both[names[-1]], y, names)
    # A layer's output as the next one reads it: after norm, activation and pooling
    read = [both[n].a.mean(1)[:, : _width(model, n)] for n in names[1:-1]] + [h] * (len(names) > 1)
    grads = []
    for name in names:
        a, delta = (
            _short(t, name + end, side, sketches, generator) for t, end in zip(both[name], "ao", strict=True)
        )
        grads.append(torch.einsum("bto,bti->boi", delta, a))
    return [y, *(t.float() for t in (*read, p, ia, *grads))]


def _of_units(model: nn.Module, y: Tensor, both: dict[str, Captured]) -> Parts:
    """y, then softmax, and for the units of the last hidden layer OA, IA and delta: G_:j is delta OA_j."""
    names = [*both]
    p, h, ia = _outputs(model, both[names[-1]], y, names)
    return [y, *(t.float() for t in (p, h, ia, both[names[-1]].delta[:, 0]))]


def _short(
    t: Float[Tensor, "b t i"], key: str, side: int, sketches: Sketches, generator: Generator
) -> Float[Tensor, "b t _"]:
    """The last axis as it is, or projected to `side` numbers, by the same random signs for every model."""
    # DIFFERS: theirs holds whole matrices; a convolution of 512 channels has 2.4 million numbers a record.
    if t.shape[-1] <= side:
        return t
    if key not in sketches:
        signs = torch.randint(2, (t.shape[-1], side), generator=generator) * 2 - 1
        sketches[key] = signs.to(t) / side**0.5
    return t @ sketches[key]


def _last(model: nn.Module, names: Sequence[str]) -> nn.Linear:
    layer = model.get_submodule(names[-1])
    assert isinstance(layer, nn.Linear)
    return layer


def _width(model: nn.Module, name: str) -> int:
    """Numbers that a layer reads at each position, without the 1 of the bias."""
    return int(model.get_parameter(f"{name}.weight".lstrip("."))[0].numel())


def _weighted(model: nn.Module, x: Float[Tensor, "n *d"]) -> list[tuple[str, Tensor]]:
    """Dense layers and convolutions of one group, in the order of their calls: name, what it read."""
    ran: dict[str, Tensor] = {}
    handles = []
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    for name, layer in model.named_modules():
        if isinstance(layer, kinds) and getattr(layer, "groups", 1) == 1:
            hook = partial(_keep, ran, name)
            handles.append(layer.register_forward_hook(hook))
    like = next(model.parameters(), x)
    try:
        with torch.no_grad():
            model(x[:2].to(like))
    finally:
        for handle in handles:
            handle.remove()
    return [*ran.items()]


def _keep(ran: dict[str, Tensor], name: str, _: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
    ran.pop(name, None)
    ran[name] = args[0]


def _check(
    model: nn.Module, x: Tensor, shadows: Sequence[nn.Module], member: Tensor, layers: int, models: int
) -> list[str]:
    """The names of the layers that are looked at."""
    for net in (model, *shadows[:models]):
        check_eval(net)
    if len(shadows) != len(member) or not len(shadows):
        raise ValueError(
            f"member must have a row a shadow, one or more, got {len(member)} for {len(shadows)}"
        )
    used = member[:models]
    if not used.any() or used.all():
        raise ValueError(f"member must hold both sides, got {int(used.sum())} of {used.numel()} pairs in")
    if layers < 1 or models < 1:
        raise ValueError(f"layers and models must be 1 or more, got {layers} and {models}")
    ran = _weighted(model, x)
    if not ran or not isinstance(model.get_submodule(ran[-1][0]), nn.Linear) or ran[-1][1].ndim != 2:
        raise ValueError(
            f"model must end in a dense layer that reads vectors, got {ran[-1][0] if ran else 'none'!r}"
        )
    for i, net in enumerate(shadows[:models]):
        check_shapes(net, model, f"shadow {i}")
    return [name for name, _ in ran[-layers:]]
