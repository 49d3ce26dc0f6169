"""How the attacks that learn train their nets: Adam, equal shares of both sides, the best epoch kept."""

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits [b], 0 or 1 [b]) -> their mean
Net = TypeVar("Net", bound=nn.Module)


def fresh(make: Callable[[], Net], generator: Generator) -> Net:
    """A net whose weights are drawn from `generator`; torch's global one is left as it was."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def fit(
    net: Net,
    inputs: Sequence[Float[Tensor, "r ..."]],
    member: Bool[Tensor, "r"],
    generator: Generator,
    *,
    loss: Loss = binary_cross_entropy_with_logits,
    epochs: int = 32,
    batch: int = 64,
    lr: float = 1e-3,
    val: float = 0.1,
) -> Net:
    """A copy of `net`, trained to tell members: net(*rows of the inputs) -> logits [b]; it is in eval mode.

    Batches hold as many members as others. A share `val` of the rows is never trained on: the epoch with the
    lowest loss there is kept (the last one for val=0). ValueError where a side has no row left.
    """
    net = copy.deepcopy(net).train()
    for w in net.parameters():
        w.requires_grad_()
    order = torch.randperm(len(member), generator=generator)
    held, rest = order[: int(val * len(order))], order[int(val * len(order)) :]
    sides = [rest[member[rest]], rest[~member[rest]]]
    if not all(map(len, sides)):
        raise ValueError(f"member must hold both sides, got {len(sides[0])} in and {len(sides[1])} out")
    optimiser = torch.optim.Adam(net.parameters(), lr)
    best, kept = torch.inf, copy.deepcopy(net.state_dict())
    with torch.random.fork_rng(devices=[]):  # dropout draws from torch's global generator
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for _ in range(epochs):
            net.train()
            for rows in _epoch(sides, batch, generator):
                optimiser.zero_grad()
                loss(net(*(x[rows] for x in inputs)), member[rows.to(member.device)].to(inputs[0])).backward()
                optimiser.step()
            net.eval()
            now = _loss_of(net, inputs, member, held, loss) if len(held) else -torch.inf
            if now <= best or not len(held):
                best, kept = now, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)
    return net.eval()


def _epoch(sides: Sequence[Int[Tensor, "_"]], batch: int, generator: Generator) -> list[Int[Tensor, "b"]]:
    """Every row of the longer side once, the shorter one's over again; half a batch of each."""
    n, half = max(map(len, sides)), max(1, batch // 2)
    drawn = []
    for side in sides:
        times = -(-n // len(side))
        again = torch.cat([torch.randperm(len(side), generator=generator) for _ in range(times)])[:n]
        drawn.append(side[again])
    return [torch.cat([drawn[0][i : i + half], drawn[1][i : i + half]]) for i in range(0, n, half)]


@torch.no_grad()
def _loss_of(
    net: nn.Module, inputs: Sequence[Tensor], member: Tensor, rows: Tensor, loss: Loss, batch: int = 4096
) -> float:
    """Mean over the rows, members and others weighing the same."""
    logits = torch.cat([net(*(x[part] for x in inputs)) for part in rows.split(batch)])
    t = member.to(inputs[0].device)[rows]
    parts = [
        loss(logits[t == side], t[t == side].to(logits.dtype)) for side in (True, False) if (t == side).any()
    ]
    return float(torch.stack(parts).mean())
