"""The net of `nasr` (Nasr, Shokri & Houmansadr 2019, arXiv:1812.00910): a part an input, an encoder on top.

ReLU in between, weights from N(0, 0.01^2), biases 0. It takes what `nasr` sees of a record and gives a logit.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor, nn

DROP = 0.2
LEAST = 1e-25  # below this root mean square an input counts as empty: float32 would overflow


class AttackNet(nn.Module):
    """A part for each input, by its shape, and the encoder: `scaled` inputs -> logits [b].

    [d] is a vector (the second one is the label), [c, s] a layer's output at s places, [o, p, w] a gradient
    of o output units, with w weights for each of p inputs.
    """

    scale: Tensor

    def __init__(self, inputs: Sequence[Float32[Tensor, "b ..."]], kernels: int, head: Sequence[int]) -> None:
        super().__init__()
        # DIFFERS: each input is divided by its root mean square and squashed by asinh. Gradients of fitted
        # records lie near 0 and those of others spread over decades; the paper's net sees them as they are.
        powers = [torch.linalg.vector_norm(v, dtype=torch.float64) / math.sqrt(v.numel()) for v in inputs]
        scale = torch.stack(powers)
        self.register_buffer("scale", torch.where(scale > LEAST, scale, 1.0).float())
        parts = [_part(v.shape[1:], i == 1, kernels, head) for i, v in enumerate(inputs)]
        self.parts = nn.ModuleList([nn.Sequential(*layers) for layers, _ in parts])
        sizes = (256, 128, 64, 1)
        self.encoder = nn.Sequential(*_dense(sum(width for _, width in parts), sizes)[:-1])
        for name, w in self.named_parameters():
            nn.init.normal_(w, std=0.01) if name.endswith("weight") else nn.init.zeros_(w)

    def scaled(self, inputs: Sequence[Float32[Tensor, "b ..."]]) -> list[Float32[Tensor, "b ..."]]:
        """What `forward` takes; done once, since asinh costs as much as an epoch."""
        return [(v / s).asinh() for v, s in zip(inputs, self.scale.unbind(), strict=True)]

    def forward(self, *inputs: Float32[Tensor, "b ..."]) -> Float32[Tensor, "b"]:
        read = [part(v) for part, v in zip(self.parts, inputs, strict=True)]
        return self.encoder(torch.cat(read, 1)).squeeze(1)


class Kernels(nn.Linear):
    """A convolution whose kernels span one input: all of its output units, all of its window."""

    def forward(self, v: Float32[Tensor, "b o p w"]) -> Float32[Tensor, "b p k"]:
        return super().forward(v.transpose(1, 2).flatten(2))


def _part(
    shape: Sequence[int], label: bool, kernels: int, head: Sequence[int]
) -> tuple[list[nn.Module], int]:
    """Layers of a part, and how many numbers it gives."""
    if len(shape) == 1:
        return _dense(shape[0], (128 if label else 100, 64)), 64
    if len(shape) == 2:  # kernels as large as the image: a dense map to one number a channel
        c = shape[0]
        return [nn.Flatten(), *_dense(math.prod(shape), (c,)), *_dropped(c, (1024, 512, 128, 64))], 64
    o, p, w = shape
    # DIFFERS: gradients of any shape, flattened for each output unit; the authors' code takes matrices alone.
    maps, tail = (kernels, tuple(head)) if w == 1 else (o, (64,))
    return [Kernels(o * w, maps), nn.ReLU(), nn.Flatten(), *_dropped(maps * p, tail)], tail[-1]


def _dropped(width: int, sizes: Sequence[int]) -> list[nn.Module]:
    """Dense layers with a dropout before the first two of them."""
    first, rest = _dense(width, sizes[:1]), _dense(sizes[0], sizes[1:])
    return [nn.Dropout(DROP), *first, *([nn.Dropout(DROP)] if rest else []), *rest]


def _dense(width: int, sizes: Sequence[int]) -> list[nn.Module]:
    pairs = zip((width, *sizes), sizes, strict=False)
    return [layer for a, b in pairs for layer in (nn.Linear(a, b), nn.ReLU())]
