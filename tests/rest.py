"""Small nets trained until their gradient is 0: weights that are the sum over members that theory says."""

from functools import cache

import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call, grad
from torch.nn.functional import cross_entropy

from glasslab.split import shadow_rows, stream

DECAY, C = 0.02, 3


def blank(kind, d):
    if kind == "linear":
        return nn.Linear(d, C, bias=False).double().eval()
    if kind == "relu":
        layers = nn.Linear(d, 6, bias=False), nn.ReLU(), nn.Linear(6, C, bias=False)
    else:
        layers = nn.Linear(d, 5), nn.Tanh(), nn.Linear(5, C)
    return nn.Sequential(*layers).double().eval()


def at_rest(kind, x, y, seed=0, decay=DECAY):
    """Trained until the gradient of mean loss + decay / 2 |theta|^2 is 0: L-BFGS, then Newton's method."""
    model, g = blank(kind, x.shape[1]), stream(seed, "start")
    held = dict(model.named_parameters())
    shapes = {name: p.shape for name, p in held.items()}

    def loss(flat):
        parts = flat.split([s.numel() for s in shapes.values()])
        named = {n: part.view(s) for (n, s), part in zip(shapes.items(), parts, strict=True)}
        return cross_entropy(functional_call(model, named, (x,)), y) + decay / 2 * flat.square().sum()

    size = sum(s.numel() for s in shapes.values())
    flat = (0.5 * torch.randn(size, generator=g).double()).requires_grad_()
    descent = torch.optim.LBFGS([flat], max_iter=300, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def step():
        descent.zero_grad()
        value = loss(flat)
        value.backward()
        return value

    descent.step(step)
    at = flat.detach()
    for _ in range(5):
        slope = grad(loss)(at)
        if slope.abs().max() < 1e-14:
            break
        at = at - torch.linalg.solve(hessian(loss, at), slope)
    assert grad(loss)(at).abs().max() < 1e-11
    torch.nn.utils.vector_to_parameters(at, model.parameters())
    return model.requires_grad_(False)


def draw(n, d, seed, name="pool"):
    g = stream(seed, name)
    return torch.randn(n, d, generator=g).double(), torch.randint(C, (n,), generator=g)


@cache
def world(kind="linear", seed=0, n=24, d=16):
    """(model, x, y, member): half of the candidates trained it."""
    x, y = draw(n, d, seed)
    member = shadow_rows(2, n, seed)[0]
    return at_rest(kind, x[member], y[member], seed), x, y, member
