"""Cuts a net in two: the trunk, from records x to features z, and the head, from z to logits.

A place is the name of a module, at whose output the net is cut; None is the input of the last called module
that owns parameters. Everything is found by running the net with hooks, so that any `nn.Module` will do. A
cut is a slice only if no information flows around it: then the logits are a function of z alone.
"""

import copy
import difflib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

PROBES = 8  # records on which a slice is tried


def cut(model: nn.Module, place: str | None, x: Shaped[Tensor, "n *d"]) -> Float[Tensor, "n *u"]:
    """Features z of the records at the cut; autograd is as the caller has set it.

    Raises ValueError for a place that the net lacks, or calls never or more than once, or that gives no
    single tensor with one row a record.
    """
    return _forward(model, _spot(model, place, x), x, None)[0]


def resume(
    model: nn.Module, place: str | None, x: Shaped[Tensor, "n *d"], z: Float[Tensor, "n *u"]
) -> Float[Tensor, "n c"]:
    """Logits of the net run on x, with z in the stead of its own features. z is left as it is.

    Raises ValueError as `cut`.
    """
    return _forward(model, _spot(model, place, x), x, z)[1]


@torch.no_grad()
def check_slice(model: nn.Module, place: str | None, x: Shaped[Tensor, "n *d"]) -> None:
    """Raises ValueError where logits depend on x by a way around the cut; names a module that will do.

    Tried on up to 8 records: the same z, with other records below it, must give the same logits.
    """
    spot = _spot(model, place, x)
    if not _flows_around(model, spot, x[:PROBES]):
        return
    parts = spot.name.split(".")
    for parent in (".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)):
        with suppress(ValueError):
            if not _flows_around(model, _Spot(parent, False), x[:PROBES]):
                tip = f"; cut at `{parent}`"
                break
    else:
        tip = ""
    raise ValueError(f"place must have no way around it, but information flows around `{spot}`{tip}")


def head_parameters(model: nn.Module, place: str | None, x: Shaped[Tensor, "n *d"]) -> tuple[str, ...]:
    """Names of the parameters above the cut, found by gradient; frozen ones too. Raises as `cut`."""
    spot, x = _spot(model, place, x), x[:1]
    free = {name: w.detach().requires_grad_() for name, w in model.named_parameters()}
    with torch.no_grad():
        z = _forward(model, spot, x, None)[0]
    with torch.enable_grad():
        logits = _forward(model, spot, x, z, free)[1]
        if not logits.requires_grad:
            return ()
        grads = torch.autograd.grad(logits.sum(), list(free.values()), allow_unused=True)
    return tuple(name for name, g in zip(free, grads, strict=True) if g is not None)


class Whole(nn.Module):
    """z -> logits through a whole net, run on a stand-in record; only what is called above learns."""

    stand_in: Tensor

    def __init__(self, model: nn.Module, spot: "_Spot", x: Tensor) -> None:
        super().__init__()
        learns = set(head_parameters(model, None if spot.before else spot.name, x))
        calls, _ = _calls(model, x)
        start = next(i for i, call in enumerate(calls) if call.name == spot.name)
        below = start if spot.before else calls[start].end
        self.above = {call.name for call in calls[below:]} - {call.name for call in calls[:below]}
        self.model, self.spot = copy.deepcopy(model), spot
        self.register_buffer("stand_in", x[:1].detach().clone(), persistent=False)
        for name, w in self.model.named_parameters():
            w.requires_grad_(name in learns)

    def forward(self, z: Float[Tensor, "n *u"]) -> Float[Tensor, "n c"]:
        return _forward(self.model, self.spot, self.stand_in.expand(len(z), *self.stand_in.shape[1:]), z)[1]

    def train(self, mode: bool = True) -> "Whole":
        """The trunk stays in eval mode."""
        super().train(False)
        for name, module in self.model.named_modules():
            module.training = mode and name in self.above
        return self


def head(model: nn.Module, place: str | None, x: Shaped[Tensor, "n *d"]) -> tuple[nn.Module, dict[str, str]]:
    """What lies above the cut as a net of its own, z -> logits, in eval mode, and the names of what it holds.

    Copies of the modules above the cut, chained, where the net is a chain there; else a `Whole`. What belongs
    to the head requires gradients. Names go from the head's state to the model's.
    Raises ValueError as `cut` and `check_slice`.
    """
    check_slice(model, place, x)
    spot, x = _spot(model, place, x), x[:PROBES]
    chain = _chain(model, spot, x)
    if chain is None:
        return Whole(model, spot, x).eval(), {f"model.{key}": key for key in model.state_dict()}
    net = copy.deepcopy(nn.Sequential(*(model.get_submodule(name) for name in chain))).requires_grad_()
    for module in net.modules():
        if getattr(module, "inplace", False):  # it would write into the caller's z
            setattr(module, "inplace", False)  # noqa: B010
    keys = [(key, *key.split(".", 1)) for key in net.state_dict()]
    return net.eval(), {key: f"{chain[int(i)]}.{rest}".lstrip(".") for key, i, rest in keys}


@dataclass(frozen=True)
class _Spot:
    """Where a net is cut, with the module's name settled."""

    name: str
    before: bool  # at its input

    def __str__(self) -> str:
        return f"the input of {self.name}" if self.before else self.name


@dataclass(eq=False)
class _Call:
    """One call of a module: its only input (None where it has more), and its output."""

    name: str
    given: Any
    end: int = -1  # how many calls had begun when it ended
    out: Any = None


def _spot(model: nn.Module, place: str | None, x: Tensor) -> _Spot:
    """The place, checked."""
    if place is not None:
        names = [name for name, _ in model.named_modules()]
        if place not in names:
            near = difflib.get_close_matches(place, names, 3, 0.0)
            raise ValueError(f"place must be a module's name, such as {', '.join(near)}, got {place!r}")
        return _Spot(place, False)
    owners = {name for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}
    called = [call.name for call in _calls(model, x[:1])[0] if call.name in owners]
    if not called:
        raise ValueError("model must own parameters where place is None, got none in a module it calls")
    return _Spot(called[-1], True)


def _flows_around(model: nn.Module, spot: _Spot, x: Tensor) -> bool:
    z, logits = _forward(model, spot, x, None)
    others = [x.flatten().roll(1).view_as(x)]  # the next feature, and at the edge the next record
    if x.is_floating_point():
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        others.append(x + noise * x.abs().amax().clamp(min=1))
    scale = float(logits.abs().max())
    return any(
        not torch.allclose(_forward(model, spot, other, z)[1], logits, rtol=0, atol=1e-6 * scale)
        for other in others
    )


def _forward(
    model: nn.Module, spot: _Spot, x: Tensor, z: Tensor | None, weights: dict[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """(features, logits); with z, the features are replaced by it, on the way up."""
    seen: list[Any] = []

    def meet(found: Any) -> Any:
        seen.append(found.clone() if isinstance(found, Tensor) else found)  # what follows may work in place
        return None if z is None else z.clone()

    def before(module: nn.Module, given: tuple[Any, ...]) -> Any:
        own = meet(given[0] if given else None)
        return None if own is None else (own, *given[1:])

    module = model.get_submodule(spot.name)
    hook = (
        module.register_forward_pre_hook(before)
        if spot.before
        else module.register_forward_hook(lambda module, given, out: meet(out))
    )
    try:
        logits = model(x) if weights is None else functional_call(model, weights, (x,))
    finally:
        hook.remove()
    if len(seen) != 1:
        raise ValueError(f"place must be called once a run, but `{spot}` is called {len(seen)} times")
    if not isinstance(seen[0], Tensor) or not seen[0].ndim or len(seen[0]) != len(x):
        raise ValueError(f"place must give one tensor with a row a record, got something else of `{spot}`")
    return seen[0], logits


def _calls(model: nn.Module, x: Tensor) -> tuple[list[_Call], Tensor]:
    """Calls of all modules in the order of their beginning, and the logits."""
    calls: list[_Call] = []
    open_: list[_Call] = []

    def begins(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            calls.append(_Call(name, given[0] if len(given) == 1 and not named else None))
            open_.append(calls[-1])

        return hook

    def ends(module: nn.Module, given: Any, out: Any) -> None:
        call = open_.pop()
        call.end, call.out = len(calls), out

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(begins(name), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(ends).remove)
        return calls, model(x)


def _chain(model: nn.Module, spot: _Spot, x: Tensor) -> list[str] | None:
    """Names of modules that, called one after another on z, give the logits; None where there are none."""
    calls, logits = _calls(model, x)
    first = next(i for i, call in enumerate(calls) if call.name == spot.name)
    names, now, after = [spot.name] * spot.before, calls[first].out, calls[first].end
    while True:
        following = (call for call in calls[after:] if call.given is now)
        call = next(following, None)
        if call is None:
            break
        names, now, after = [*names, call.name], call.out, call.end
    if now is not logits or len(set(names)) < len(names):
        return None
    return names
