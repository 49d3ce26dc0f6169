"""A model's layers by name, and what must hold before a single record has a gradient.

A layer is a module that owns parameters itself. Names are those of `named_modules()`, never an index.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from whitebox import rules
from whitebox.hooks import parameters


def check_eval(model: nn.Module) -> None:
    """Raises ValueError, naming the module, where the margin of one record has no gradient of its own.

    So it is in training mode, and with a BatchNorm that uses the batch's statistics in eval mode too.
    """
    for name, m in model.named_modules():
        kind = type(m).__name__
        if isinstance(m, _BatchNorm) and (m.training or m.running_mean is None):
            mode = "training mode" if m.training else "track_running_stats=False"
            why = "its output mixes records: there is no gradient of one record"
        elif isinstance(m, _DropoutNd) and m.training:
            mode, why = "training mode", "its output is random: there is no gradient of one record"
        else:
            continue
        raise ValueError(f"model must be in eval mode, got {kind} {name!r} with {mode}; {why}")
    for name, m in model.named_modules():
        if m.training:
            where = f" in {type(m).__name__} {name!r}" if name else ""
            raise ValueError(f"model must be in eval mode, got training mode{where}")


def check_tied(model: nn.Module) -> None:
    """Raises ValueError where two modules share a parameter, naming both."""
    holder: dict[int, str] = {}
    for name, m in model.named_modules():
        for p in {id(p): p for p in m._parameters.values() if p is not None}.values():
            other = holder.setdefault(id(p), name)
            if other != name:
                raise ValueError(f"parameters must belong to one module, got one of {other!r} and {name!r}")


def owners(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that own parameters, in the order of `named_modules`."""
    return tuple(name for name, m in model.named_modules() if rules.own(m))


def chosen(model: nn.Module, layers: Sequence[str] | str | None, x: Tensor) -> tuple[str, ...]:
    """Names of the owners that `layers` names: None is all, `*` a wildcard, "last" the last one to begin.

    The name of a module without parameters of its own stands for the owners inside it. x: records, of which
    "last" runs one. Raises ValueError with the nearest names where nothing matches.
    """
    held = owners(model)
    if not held:
        raise ValueError("model must own parameters, got none")
    if layers is None:
        return held
    every = [name for name, _ in model.named_modules()]
    found: set[str] = set()
    for pattern in (layers,) if isinstance(layers, str) else layers:
        if pattern == "last":
            found.add(_last(model, held, x))
            continue
        hits = [name for name in every if fnmatchcase(name, pattern)]
        mine = {name for name in held if name in hits}
        mine |= {name for name in held for hit in hits if hit not in held and name.startswith(f"{hit}.")}
        if not mine:
            near = get_close_matches(pattern, held, cutoff=0.0)
            raise ValueError(f"layers must name modules with parameters, such as {near}, got {pattern!r}")
        found |= mine
    if not found:
        raise ValueError("layers must name a module or more, got none")
    return tuple(name for name in held if name in found)


def check(model: nn.Module, x: Tensor, y: Tensor, of: str) -> None:
    """Raises ValueError on a model or on records that have no gradient of one record."""
    check_eval(model)
    check_tied(model)
    if of not in ("phi", "loss"):
        raise ValueError(f"of must be 'phi' or 'loss', got {of!r}")
    if not len(x) or len(x) != len(y):
        raise ValueError(f"x and y must hold as many records, one or more, got {len(x)} and {len(y)}")


def owners_of(model: nn.Module, v: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Owners of the parameters that v names, in model order."""
    held = dict(model.named_parameters())
    for name, t in v.items():
        if name not in held:
            raise ValueError(
                f"v must name parameters of the model, such as {next(iter(held), '')!r}, got {name!r}"
            )
        if t.shape != held[name].shape:
            raise ValueError(f"{name} must have shape {tuple(held[name].shape)}, got {tuple(t.shape)}")
    if not v:
        raise ValueError("v must name a parameter or more, got none")
    return tuple(layer for layer in owners(model) if parameters(model, [layer]).keys() & v.keys())


@torch.no_grad()
def _last(model: nn.Module, held: Sequence[str], x: Tensor) -> str:
    """The owner that begins last."""
    begun = []

    def note(name: str) -> Any:
        return lambda *_: begun.append(name)

    handles = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in held]
    first = next(model.parameters())
    try:
        model(x[:1].to(first.device, first.dtype if x.is_floating_point() else x.dtype))
    finally:
        for handle in handles:
            handle.remove()
    if not begun:
        raise ValueError("layers must name modules with parameters, got 'last' where none of them is called")
    return begun[-1]
