"""Gradients of each record without rules for layers: torch.func on the model as one function.

Full gradients by vmap of grad, and how the logits change along a direction of the parameters, by
forward-mode differentiation.
"""

import warnings
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from glasslab.split import stream
from whitebox.hooks import chunks, outputs


def rows_of(
    model: nn.Module, x: Tensor, y: Tensor, held: Mapping[str, Tensor], memory: str
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Logits, labels and full gradients of phi in some parameters, chunk by chunk."""
    rest = {name: p.detach() for name, p in model.named_parameters() if name not in held}

    def margin(p: dict[str, Tensor], row: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        z = functional_call(model, rest | p, (row[None],))[0]
        true = torch.arange(len(z), device=z.device) == label
        others = z.masked_fill(true, -torch.inf).logsumexp(0)
        return z.masked_fill(~true, 0.0).sum() - others, z

    one = grad(margin, has_aux=True)
    need = outputs(model, x, y) + sum(p.numel() * p.element_size() for p in held.values())
    for rows, labels in chunks(model, x, y, memory, 2 * need):
        with torch.enable_grad(), torch.autocast(rows.device.type, enabled=False):
            try:
                grads, z = vmap(one, (None, 0, 0))(dict(held), rows, labels)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # an operation that vmap does not know: one record after another
                each = [one(dict(held), row, label) for row, label in zip(rows, labels, strict=True)]
                grads = {name: torch.stack([g[name] for g, _ in each]) for name in held}
                z = torch.stack([z for _, z in each])
        yield z.detach(), labels, {name: g.detach() for name, g in grads.items()}


def along(
    model: nn.Module, rows: Tensor, held: dict[str, Tensor], direction: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Logits, and how they change along a direction of the parameters."""
    rest = {name: p.detach() for name, p in model.named_parameters() if name not in held}

    def logits(p: dict[str, Tensor]) -> Tensor:
        return functional_call(model, rest | p, (rows,))

    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        try:
            with (
                warnings.catch_warnings()
            ):  # torch compiles its forward rules on first use, and warns of itself
                warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
                warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
                out = jvp(logits, (held,), (direction,))
            return out[0], out[1]
        except NotImplementedError:
            pass  # no forward rule: what comes back to the parameters is linear in u; differentiate in u
    with torch.enable_grad(), torch.autocast(rows.device.type, enabled=False):
        mine = {name: p.detach().requires_grad_() for name, p in held.items()}
        z = logits(mine)
        u = torch.zeros_like(z, requires_grad=True)
        back = torch.autograd.grad(z, list(mine.values()), u, create_graph=True, allow_unused=True)
        pairs = zip(back, direction.values(), strict=True)
        total = torch.stack([(g * v).sum() for g, v in pairs if g is not None]).sum()
        return z.detach(), torch.autograd.grad(total, u)[0]


def signs(seed: int, name: str, j: int, like: Tensor) -> Float[Tensor, "d"]:
    """Column j of the sketch, for one parameter."""
    bits = torch.randint(2, (like.numel(),), generator=stream(seed, f"sketch {name} {j}"))
    return (2 * bits - 1).to(like)
