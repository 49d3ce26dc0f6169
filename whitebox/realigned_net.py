"""The pooled classifiers of `realigned`, and how they are trained (Cretu et al. 2024, arXiv:2306.05093).

OA and IA each go through dense layers of 128 and 64; a gradient matrix through one dense map to 100 (theirs
is a convolution as high as the matrix), dropout of 0.2, 128 and 64; the label through an embedding of 16.
All of it, side by side, goes through 128 and 64 to two logits. Of sets: a net of 128 and 64 a unit, summed.
"""

import copy
from collections.abc import Sequence
from typing import Final, TypeVar

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

LEAST: Final = 1e-4  # rate below which training ends
HELD: Final = 0.1  # share of the rows that says whether an epoch was flat
BATCH: Final = 256  # rows at a time that the trained classifier sees

Net = TypeVar("Net", bound=nn.Module)


def dense(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())


def matrix(inputs: int) -> nn.Sequential:
    """Whole gradients: every output of the dense map sees every cell."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 100), nn.ReLU(), nn.Dropout(0.2), *dense(100))


class OfLayers(nn.Module):
    """(y, vectors and matrices) -> two logits. `scales`: what each input is divided by."""

    def __init__(self, shapes: Sequence[Sequence[int]], classes: int, scales: Sequence[Tensor]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(dense(s[0]) if len(s) == 1 else matrix(s[0] * s[1]) for s in shapes)
        self.label = nn.Embedding(classes, 16)
        self.top = nn.Sequential(*dense(64 * len(shapes) + 16), nn.Linear(64, 2))
        self.scales = [float(s) for s in scales]

    def forward(self, y: Int[Tensor, "b"], *parts: Float[Tensor, "b ..."]) -> Float[Tensor, "b 2"]:
        scaled = [p / s for p, s in zip(parts, self.scales, strict=True)]
        seen = [branch(p) for branch, p in zip(self.branches, scaled, strict=True)]
        return self.top(torch.cat([*seen, self.label(y)], 1))


class OfSets(nn.Module):
    """(y, softmax, and OA, IA of each unit, delta) -> two logits; the order of the units does not matter."""

    def __init__(self, shapes: Sequence[Sequence[int]], classes: int, scales: Sequence[Tensor]) -> None:
        super().__init__()
        self.unit, self.output = dense(2 + shapes[3][0]), dense(shapes[0][0])
        self.label = nn.Embedding(classes, 16)
        self.top = nn.Sequential(*dense(2 * 64 + 16), nn.Linear(64, 2))
        self.scales = [float(s) for s in scales]

    def forward(
        self,
        y: Int[Tensor, "b"],
        p: Float[Tensor, "b c"],
        oa: Float[Tensor, "b u"],
        ia: Float[Tensor, "b u"],
        delta: Float[Tensor, "b c"],
    ) -> Float[Tensor, "b 2"]:
        p, oa, ia, delta = (t / s for t, s in zip((p, oa, ia, delta), self.scales, strict=True))
        units = torch.cat([oa[..., None], ia[..., None], oa[..., None] * delta[:, None]], -1)
        return self.top(torch.cat([self.unit(units).sum(1), self.output(p), self.label(y)], 1))


def learned(
    net: Net,
    parts: Sequence[Tensor],
    member: Bool[Tensor, "r"],
    generator: Generator,
    epochs: int,
    batch: int,
    lr: float,
) -> Net:
    """The net, trained by Adam on cross-entropy; the epoch of lowest loss on a tenth of the rows is kept.

    An epoch that does not lower that loss halves the rate; below 1e-4 training ends.
    """
    order = torch.randperm(len(member), generator=generator).to(member.device)
    held, rest = order[: int(HELD * len(order))], order[int(HELD * len(order)) :]
    held = held if len(held) else rest  # too few to spare any
    optimiser = torch.optim.Adam(net.parameters(), lr)
    best, kept = torch.inf, copy.deepcopy(net.state_dict())
    devices = [member.device] if member.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # dropout draws from torch's global generator
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for _ in range(epochs):
            net.train()
            mixed = rest[torch.randperm(len(rest), generator=generator).to(rest.device)]
            for rows in mixed.split(batch):
                optimiser.zero_grad()
                cross_entropy(net(*(p[rows] for p in parts)), member[rows].long()).backward()
                optimiser.step()
            net.eval()
            now = _loss(net, [p[held] for p in parts], member[held])
            if now < best:
                best, kept = now, copy.deepcopy(net.state_dict())
                continue
            for group in optimiser.param_groups:
                group["lr"] /= 2
            if optimiser.param_groups[0]["lr"] < LEAST:
                break
    net.load_state_dict(kept)
    return net.eval()


@torch.no_grad()
def log_odds(net: nn.Module, parts: Sequence[Tensor]) -> Float64[Tensor, "r"]:
    """Logit of member less that of not, in nats."""
    z = [net(*rows) for rows in zip(*(p.split(BATCH) for p in parts), strict=True)]
    return (logits := torch.cat(z).double())[:, 1] - logits[:, 0]


@torch.no_grad()
def _loss(net: nn.Module, parts: Sequence[Tensor], member: Tensor) -> float:
    z = torch.cat([net(*rows) for rows in zip(*(p.split(BATCH) for p in parts), strict=True)])
    return float(cross_entropy(z, member.long()))
