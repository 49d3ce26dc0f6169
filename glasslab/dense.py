"""A stack of dense nets by hand: forward, backward and update of m models in a dozen batched products a step.

Autograd spends more time on its bookkeeping than such small nets spend on arithmetic. Activations are kept
[m features batch], so that the longest axis is the one a processor vectorises (the ten outputs of a
digits net are not). Everything else is textbook back-propagation of the cross-entropy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from glasslab.nets import Scale
from glasslab.recipe import Recipe


def dense_layers(net: nn.Module) -> list[nn.Linear] | None:
    """The Linear layers of a net that has only a Scale before them and a ReLU between them; else None."""
    if not isinstance(net, nn.Sequential):
        return None
    parts = [part for part in net.modules() if not isinstance(part, nn.Sequential | nn.Flatten | Scale)]
    linear, relu = parts[::2], parts[1::2]
    if len(parts) % 2 == 0 or not all(isinstance(part, nn.ReLU) for part in relu):
        return None
    layers = [part for part in linear if isinstance(part, nn.Linear) and part.bias is not None]
    return layers if len(layers) == len(linear) else None


class DenseStack:
    """m nets of Linear and ReLU, cross-entropy with hard, smoothed or soft targets; SGD, Adam or AdamW."""

    def __init__(self, models: Sequence[nn.Module], recipe: Recipe) -> None:
        self.recipe, self.m, self.steps = recipe, len(models), 0
        layers = [dense_layers(model) or [] for model in models]
        self.names = [name for name, _ in models[0].named_parameters()]
        self.buffers, self.scale = dict(models[0].named_buffers()), nn.Sequential(*_scales(models[0]))
        shapes = [
            shape for l in layers[0] for shape in ((l.out_features, l.in_features), (l.out_features, 1))
        ]
        flat = [
            t.detach() for l in zip(*layers, strict=True) for t in (_gather(l, "weight"), _gather(l, "bias"))
        ]
        self.theta = torch.cat([t.flatten() for t in flat])
        self.slope = torch.zeros_like(self.theta)  # SGD: the momentum buffer itself
        self.moments = (torch.zeros_like(self.theta), torch.zeros_like(self.theta))  # Adam
        self.w, self.b = _views(self.theta, self.m, shapes)
        self.gw, self.gb = _views(self.slope, self.m, shapes)
        # Room for activations and slopes, kept: fresh pages each step cost as much as the arithmetic.
        room = [self.theta.new_empty(self.m, l.out_features, recipe.batch) for l in layers[0]]
        self.h, self.dh = room, [torch.empty_like(t) for t in room]
        self.ht, self.wt = [t.mT for t in self.h], [t.mT for t in self.w]
        self.ones = self.theta.new_ones(self.m, recipe.batch, 1)

    def inputs(self, x: Tensor) -> Tensor:
        """Records [n d], scaled once for all steps."""
        return self.scale(x).flatten(1)

    def targets(self, y: Tensor) -> Tensor:
        """Probabilities [n c], smoothed."""
        classes, smooth = self.w[-1].shape[1], self.recipe.label_smoothing
        p = y if y.is_floating_point() else one_hot(y, classes).to(self.theta.dtype)
        return p * (1 - smooth) + smooth / classes

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor, lr: float) -> None:
        z = self._forward(x, self.h)
        d = torch.softmax(z, 1, out=self.dh[-1]).sub_(y.mT)  # slope of the summed loss in the logits
        keep, scale = self._begin(), 1 / self.recipe.batch
        for i in reversed(range(len(self.w))):
            below = self.ht[i - 1] if i else x
            torch.baddbmm(self.gw[i], d, below, beta=keep, alpha=scale, out=self.gw[i])
            torch.baddbmm(self.gb[i], d, self.ones, beta=keep, alpha=scale, out=self.gb[i])
            if i:
                d = torch.bmm(self.wt[i], d, out=self.dh[i - 1])
                torch.ops.aten.threshold_backward.grad_input(d, self.h[i - 1], 0, grad_input=d)
        self._update(lr)

    def state(self) -> dict[str, Tensor]:
        both = [t for pair in zip(self.w, (b.squeeze(2) for b in self.b), strict=True) for t in pair]
        buffers = {name: t.expand(self.m, *t.shape) for name, t in self.buffers.items()}
        return {k: t.cpu().clone() for k, t in (dict(zip(self.names, both, strict=True)) | buffers).items()}

    @torch.no_grad()
    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.inputs(x).expand(self.m, -1, -1)
        z = self._forward(x, [x.new_empty(self.m, w.shape[1], x.shape[1]) for w in self.w])
        return -(z.log_softmax(1) * self.targets(y).mT).sum(1).mean(1)

    def _forward(self, x: Tensor, h: list[Tensor]) -> Tensor:
        """Logits [m c batch], the last of the h that it fills, one a layer [m features batch]."""
        below = x.mT
        for i in range(len(self.w)):
            below = torch.baddbmm(self.b[i], self.w[i], below.relu_() if i else below, out=h[i])
        return below

    def _begin(self) -> float:
        """What the gradient of this step is added to: the buffer times the number returned."""
        if self.recipe.optimiser != "sgd":
            return 0.0
        if not self.recipe.weight_decay:
            return self.recipe.momentum
        self.slope.mul_(self.recipe.momentum).add_(self.theta, alpha=self.recipe.weight_decay)
        return 1.0

    def _update(self, lr: float) -> None:
        """SGD, Adam (Kingma & Ba 2015, arXiv:1412.6980), AdamW (Loshchilov & Hutter, arXiv:1711.05101)."""
        self.steps += 1
        if self.recipe.optimiser == "sgd":
            self.theta.add_(self.slope, alpha=-lr)
            return
        decay, g = self.recipe.weight_decay, self.slope
        if self.recipe.optimiser == "adamw":
            self.theta.mul_(1 - lr * decay)
        elif decay:
            g.add_(self.theta, alpha=decay)
        mean, square = self.moments
        mean.lerp_(g, 1 - 0.9)
        square.mul_(0.999).addcmul_(g, g, value=1 - 0.999)
        spread = (square / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
        self.theta.addcdiv_(mean, spread, value=-lr / (1 - 0.9**self.steps))


def _scales(net: nn.Module) -> list[Scale]:
    return [part for part in net.modules() if isinstance(part, Scale)]


def _gather(layers: Sequence[nn.Linear], name: str) -> Tensor:
    return torch.stack([getattr(layer, name) for layer in layers])


def _views(flat: Tensor, m: int, shapes: list[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases as views of one flat tensor, so that an update is one operation."""
    parts = flat.split([m * rows * columns for rows, columns in shapes])
    views = [part.view(m, *shape) for part, shape in zip(parts, shapes, strict=True)]
    return views[::2], views[1::2]
