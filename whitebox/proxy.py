"""Bayes-wb (Leino & Fredrikson 2020, arXiv:1906.11798): what does the target know that a proxy does not?

The attacker has: the target's weights and recipe, and aux, records in no training set. The target is cut into
trunk h and head f^. Proxy heads f~ learn (h(x), y) of aux by the target's recipe: on one trunk, features are
the same. A head linear at z = h(x), f_y(z) = w.z + b, is read as naive Bayes with Gaussian features; then
membership has log-odds (w^ - w~).z + b^ - b~, by the weights of the label. For any linearisation exact at z
that is log p^_y(x) - log p~_y(x), here a mean over proxies. Higher = member.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from captum.attr import IntegratedGradients  # type: ignore[import-untyped]
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor, nn

from glasslab.data import Data
from glasslab.recipe import Recipe
from glasslab.train import STACKS_BELOW, train
from whitebox import cut as slices
from whitebox.gradients import check_eval

Output = Literal["log_softmax", "logits"]
Form = Literal["difference", "point", "integrated"]

BATCH = 128  # records at a time, the last ones filled up, so that a score does not depend on their number
AT_ONCE = 1 << 22  # features on the path of integrated gradients at a time, over rows and steps
HELD = 10  # with early stopping, one record of so many is held out
STACKED = (
    nn.Sequential,
    nn.Flatten,
    nn.Linear,
    nn.Dropout,
    nn.Identity,
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
)


def bayes_wb(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux: Data,
    recipe: Recipe,
    generator: Generator,
    *,
    cut: str | None = None,
    proxies: int = 10,
    output: Output = "log_softmax",
    form: Form = "difference",
    n_steps: int = 50,
) -> Float64[Tensor, "n"]:
    """Log-probability of the label by the target, less the mean of that by the proxies, in nats.

    `cut` is the module at whose output the target is cut; None is the input of the last one with parameters.
    `form` takes the difference itself, or that of heads linearised at z, by the `point` gradient (the same
    but for rounding) or by `integrated` gradients from 0 over `n_steps` (an approximation).
    Raises ValueError for a model in training mode, a cut that information flows around, a class among y that
    aux lacks, a head without parameters, or with a module that has no `reset_parameters`.
    """
    _check(model, x, y, aux)
    own, _, heads = _trained(model, cut, aux, recipe, generator, proxies)

    def score(x: Tensor, y: Tensor) -> tuple[Tensor]:
        z = slices.cut(model, cut, x)
        if form == "difference":
            with torch.no_grad():
                target, *others = (_value(net, z, y, output) for net in (own, *heads))
            return (target - torch.stack(others).mean(0),)
        # DIFFERS: linear forms are averaged at each z; averaged weights make sense for one linear layer only.
        (w, b), *rest = (_linear(net, z, y, form, n_steps, output) for net in (own, *heads))
        other_w, other_b = (torch.stack(parts).mean(0) for parts in zip(*rest, strict=True))
        return (((w - other_w) * z).flatten(1).double().sum(1) + b - other_b,)

    return _batched(model, x, y, score)[0].to(x.device)


def train_heads(
    model: nn.Module, place: str | None, data: Data, recipe: Recipe, generator: Generator, *, proxies: int = 1
) -> list[nn.Module]:
    """Copies of the model, in eval mode, whose heads above `place` learned `data` afresh by `recipe`.

    Trunk and BatchNorm in it are the model's. Heads differ by what they draw from `generator`: first weights
    and batches. Raises ValueError as `bayes_wb`.
    """
    check_eval(model)
    _, names, heads = _trained(model, place, data, recipe, generator, proxies)
    copies = []
    for net in heads:
        copies.append(copy.deepcopy(model))
        copies[-1].load_state_dict({names[key]: t for key, t in net.state_dict().items()}, strict=False)
    return copies


def linearised(
    model: nn.Module,
    place: str | None,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    form: Literal["point", "integrated"] = "integrated",
    n_steps: int = 50,
    output: Output = "log_softmax",
) -> tuple[Float[Tensor, "n *u"], Float64[Tensor, "n"], Float[Tensor, "n *u"]]:
    """(w, b, z): features z at the cut, and w.z + b, the head's output for the label there, in nats.

    `point`: w is the gradient at z, and w.z + b is exact. `integrated`: w is the mean of the gradient from 0
    to z, and b the output at 0. Raises ValueError for training mode and a cut that information flows around.
    """
    check_eval(model)
    net, _ = slices.head(model, place, _like(model, x))

    def parts(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = slices.cut(model, place, x)
        return *_linear(net, z, y, form, n_steps, output), z

    w, b, z = _batched(model, x, y, parts)
    return w.to(x.device), b.to(x.device), z.to(x.device)


def _trained(
    model: nn.Module, place: str | None, data: Data, recipe: Recipe, generator: Generator, proxies: int
) -> tuple[nn.Module, dict[str, str], list[nn.Module]]:
    """The target's head, the names of its state in the target, and proxy heads trained in its stead."""
    if proxies < 1:
        raise ValueError(f"proxies must be 1 or more, got {proxies}")
    own, names = slices.head(model, place, _like(model, data.x))
    _drawn(own, names)
    above = {names[key] for key, w in own.named_parameters(remove_duplicate=False) if w.requires_grad}
    shared = {id(w) for name, w in model.named_parameters(remove_duplicate=False) if name in above}
    for name, w in model.named_parameters(remove_duplicate=False):
        if id(w) in shared and name not in above:
            raise ValueError(f"cut must part no shared parameter, but {name} is used on both sides of it")
    (z,) = _batched(model, data.x, data.y, lambda x, y: (slices.cut(model, place, x),))
    y, held = data.y.to(z.device), torch.zeros(len(data), dtype=torch.bool)
    if recipe.patience:
        held[torch.randperm(len(data), generator=generator)[: max(1, len(data) // HELD)]] = True
    val = Data(z, y, data.classes, data.name)[held.to(z.device)] if recipe.patience else None
    seeds = torch.randint(2**62, (proxies,), generator=generator).tolist()

    def fresh() -> nn.Module:
        net = copy.deepcopy(own)
        for module in _drawn(net, names):
            module.reset_parameters()  # type: ignore[operator]
        return net

    own_recipe, member = _of_heads(recipe, own), (~held).expand(proxies, -1)
    states = train(fresh, own_recipe, z, y, member, seeds, val=val, device=z.device)
    heads = [copy.deepcopy(own) for _ in seeds]
    for i, net in enumerate(heads):
        net.load_state_dict({key: t[i] for key, t in states.items()})
    return own, names, heads


def _of_heads(recipe: Recipe, net: nn.Module) -> Recipe:
    """The target's recipe, as far as it is one for features, with the engine that suits the head."""
    small = sum(w.numel() for w in net.parameters()) < STACKS_BELOW
    stacked = small and all(type(module) in STACKED for module in net.modules())
    # DIFFERS: features are computed once, from records as they are, not augmented.
    # An epoch of the trainer is as long as half of the records, as many as a target has of its candidates.
    longer = replace(recipe, epochs=2 * recipe.epochs, patience=2 * recipe.patience)
    engine: Literal["stacked", "serial"] = "stacked" if stacked else "serial"
    return replace(longer, augment=(), scale="none", precision="float32", engine=engine)


def _drawn(net: nn.Module, names: dict[str, str]) -> list[nn.Module]:
    """Modules of a head that own parameters to be learned. Raises ValueError unless all can be reset."""
    found = []
    for prefix, module in net.named_modules():
        own = [name for name, w in module.named_parameters(recurse=False) if w.requires_grad]
        if own and not callable(getattr(module, "reset_parameters", None)):
            name = names[f"{prefix}.{own[0]}".lstrip(".")].rpartition(".")[0] or type(net).__name__
            raise ValueError(f"cut must leave modules with reset_parameters above it, got `{name}` without")
        found += [module] * bool(own)
    if not found:
        raise ValueError("cut must leave a head with parameters, got one without")
    return found


def _value(net: nn.Module, z: Tensor, y: Tensor, output: Output) -> Float64[Tensor, "n"]:
    """The head's output for the label, in float64."""
    logits = net(z).double()
    # DIFFERS: weights are known up to one linear function added to all classes; on raw logits it would count.
    g = logits.log_softmax(-1) if output == "log_softmax" else logits
    return g.gather(1, y[:, None]).squeeze(1)


def _linear(
    net: nn.Module, z: Tensor, y: Tensor, form: Form, n_steps: int, output: Output
) -> tuple[Float[Tensor, "n *u"], Float64[Tensor, "n"]]:
    """(w, b) of the head's output for the label, linearised at z."""
    z = z.detach()
    if form == "point":
        with torch.enable_grad():
            z = z.requires_grad_()
            value = _value(net, z, y, output)
            (slope,) = torch.autograd.grad(value.sum(), z)
        return slope, value.detach() - (slope * z.detach()).flatten(1).double().sum(1)

    def total(z: Tensor, y: Tensor) -> Tensor:
        """One number, since rows do not mix: captum would take the gradients of rows one by one."""
        return _value(net, z, y, output).sum()[None]

    path = IntegratedGradients(total, multiply_by_inputs=False)
    rows = max(1, AT_ONCE // (n_steps * max(1, z[0].numel())))  # captum's own batches do not bound memory
    w = [
        path.attribute(part.requires_grad_(), 0, additional_forward_args=label, n_steps=n_steps).detach()
        for part, label in zip(z.split(rows), y.split(rows), strict=True)
    ]
    return torch.cat(w).to(z.dtype), _value(net, torch.zeros_like(z), y, output).detach()


def _batched(
    model: nn.Module, x: Tensor, y: Tensor, f: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """f over batches of one fixed size, without gradients, on the model's device and in its precision."""
    device, parts = next(model.parameters(), x).device, []
    for rows in torch.arange(len(x)).split(BATCH):
        filled = torch.cat([rows, rows[:1].expand(BATCH - len(rows))])
        with torch.no_grad():
            out = f(_like(model, x[filled]), y[filled].to(device))
        parts.append([t[: len(rows)] for t in out])
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _like(model: nn.Module, x: Float[Tensor, "n *d"]) -> Float[Tensor, "n *d"]:
    return x.to(next(model.parameters(), x))


def _check(model: nn.Module, x: Tensor, y: Tensor, aux: Data) -> None:
    check_eval(model)
    if len(x) != len(y) or not len(x):
        raise ValueError(f"x and y must be equally long, 1 record or more, got {len(x)} and {len(y)}")
    if x.shape[1:] != aux.x.shape[1:]:
        raise ValueError(f"aux must hold records of shape {[*x.shape[1:]]}, got {[*aux.x.shape[1:]]}")
    absent = sorted(set(y.tolist()) - set(aux.y.tolist()))
    if absent:
        raise ValueError(f"aux must hold every class of y, got no record of class {absent[0]}")
