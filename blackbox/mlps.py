"""Many small classifiers trained as one: g MLPs with one hidden layer, stacked along a leading axis.

Each learns from its own examples and keeps its own best weights, as if it were alone; one batched matrix
product does the work of g.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

Weights = list[Tensor]  # w1 [g f h], b1 [g 1 h], w2 [g h 2], b2 [g 1 2]


@dataclass(frozen=True)
class Training:
    """Adam on the cross-entropy of a two-way softmax; `patience` in epochs without a lower held-out loss."""

    epochs: int = 100
    batch: int = 100
    lr: float = 0.01
    l2: float = 1e-6
    patience: int = 10


TRAINING = Training()


@dataclass(frozen=True, eq=False)
class Examples:
    """Features and 0/1 labels for one MLP."""

    x: Float[Tensor, "l f"]
    t: Int[Tensor, "l"]


@dataclass(frozen=True, eq=False)
class Mlps:
    """g trained MLPs, and the mean and spread of the features that each was trained on."""

    weights: Weights
    mean: Float64[Tensor, "g f"]
    spread: Float64[Tensor, "g f"]

    def __call__(self, g: int, x: Float[Tensor, "*n f"]) -> Float64[Tensor, "*n"]:
        """Probability of label 1, as MLP g says; float64, for the tails."""
        flat = ((x.double() - self.mean[g]) / self.spread[g]).reshape(1, -1, x.shape[-1])
        z = _forward([w[g : g + 1].double() for w in self.weights], flat)
        return (z[..., 1] - z[..., 0]).sigmoid().reshape(x.shape[:-1])


@dataclass(eq=False)
class _Best:
    """The weights of each MLP's lowest held-out loss so far, and the epochs since."""

    weights: Weights
    loss: Float32[Tensor, "g"]
    since: Int[Tensor, "g"]

    def see(self, w: Weights, loss: Float32[Tensor, "g"], patience: int) -> bool:
        """Takes over what got better; says whether every MLP has run out of patience."""
        better = (loss < self.loss) & (self.since < patience)
        self.weights = [
            torch.where(better[:, None, None], v.detach(), b) for v, b in zip(w, self.weights, strict=True)
        ]
        self.loss, self.since = torch.where(better, loss, self.loss), torch.where(better, 0, self.since + 1)
        return bool((self.since >= patience).all())


def train(
    examples: Sequence[Examples],
    held: Sequence[Examples],
    *,
    hidden: int,
    generator: Generator,
    training: Training = TRAINING,
) -> Mlps:
    """One MLP with `hidden` ReLU units for each set of examples, of which none may be empty.

    Features are standardised by the examples (constant ones: spread 1). An MLP keeps the weights of its
    lowest loss on `held`, and stands still after `patience` epochs without a lower one; without held-out
    examples of its own it goes by the loss on all. Nothing held out at all: every epoch is run. In an epoch
    each MLP takes as many batches as the one with most examples, going round its own again.
    """
    mean = torch.stack([e.x.double().mean(0) for e in examples])
    spread = torch.stack([e.x.double().std(0, correction=0) for e in examples])
    spread = torch.where(spread > 1e-12 * mean.abs(), spread, 1.0)  # of a constant it is rounding
    own, unseen = (
        [_scaled(*each) for each in zip(side, mean, spread, strict=True)] for side in (examples, held)
    )
    x, t, g = torch.cat([e.x for e in own]), torch.cat([e.t for e in own]), len(own)
    w, stops = _initial(g, x.shape[1], hidden, generator), any(len(e.t) for e in unseen)
    optimiser = torch.optim.Adam(w, lr=training.lr, weight_decay=training.l2, fused=True)
    best = _Best(
        [v.detach().clone() for v in w], torch.full((g,), torch.inf), torch.zeros(g, dtype=torch.long)
    )
    for _ in range(training.epochs):
        for rows in _epoch([len(e.t) for e in own], training.batch, generator):
            optimiser.zero_grad()
            _losses(w, x[rows], t[rows]).mean(1).sum().backward()  # of a sum: each MLP gets its own gradient
            optimiser.step()
        if stops and best.see(w, _held_loss(w, unseen), training.patience):
            break
    return Mlps(best.weights if stops else [v.detach() for v in w], mean, spread)


def _scaled(e: Examples, mean: Float64[Tensor, "f"], spread: Float64[Tensor, "f"]) -> Examples:
    return Examples(((e.x.double() - mean) / spread).float(), e.t)


def _initial(g: int, f: int, hidden: int, generator: Generator) -> Weights:
    """Uniform within 1 / sqrt(fan in), weights and biases, as torch's linear layers."""
    shapes = (((g, f, hidden), f), ((g, 1, hidden), f), ((g, hidden, 2), hidden), ((g, 1, 2), hidden))
    drawn = [(2 * torch.rand(shape, generator=generator) - 1) / fan_in**0.5 for shape, fan_in in shapes]
    return [v.requires_grad_() for v in drawn]


def _epoch(sizes: Sequence[int], batch: int, generator: Generator) -> Iterable[Int[Tensor, "g b"]]:
    """Batches of rows: each MLP's examples, laid end to end, in an order of its own, round and round."""
    longest = max(sizes)
    steps, start, rows = -(-longest // batch), 0, []
    for size in sizes:
        order = torch.randperm(size, generator=generator)
        rows.append(start + order[torch.arange(steps * min(batch, longest)) % size])
        start += size
    return torch.stack(rows).chunk(steps, 1)


def _forward(w: Weights, x: Float[Tensor, "g b f"]) -> Float[Tensor, "g b 2"]:
    return torch.baddbmm(w[3], torch.baddbmm(w[1], x, w[0]).relu(), w[2])


def _losses(w: Weights, x: Float[Tensor, "g b f"], t: Int[Tensor, "g b"]) -> Float[Tensor, "g b"]:
    """Cross-entropy of each example, in nats."""
    return cross_entropy(_forward(w, x).movedim(-1, 1), t, reduction="none")


@torch.no_grad()
def _held_loss(w: Weights, held: Sequence[Examples]) -> Float32[Tensor, "g"]:
    """Mean loss of each MLP on its own held-out examples; of all of them, for one that has none."""
    x = pad_sequence([e.x for e in held], batch_first=True)
    t = pad_sequence([e.t for e in held], batch_first=True)
    size = torch.tensor([len(e.t) for e in held])
    there = torch.arange(t.shape[1]) < size[:, None]
    total = (_losses(w, x, t) * there).sum(1)
    return torch.where(size > 0, total / size.clamp(min=1), total.sum() / size.sum())
